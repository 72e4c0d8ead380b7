"""``panoptile verify``: read every byte again and compare it with what was promised. Needs the store alone.

A folder may change while it is read: nothing is called damaged before a second look has found that no run changed it.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image

from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.follow import LOOK_SECONDS
from panoptile.jobs.job_record import job_of, record_problem
from panoptile.jobs.lease import Ending, Observer, patience
from panoptile.jobs.results import PUBLISHED_FOLDERS, highest_generation, result_key
from panoptile.jobs.state import json_object, parquet_rows, read_json
from panoptile.jobs.survey import read_commits
from panoptile.pipeline import layout
from panoptile.pipeline.commit import Commit
from panoptile.pipeline.plan import kind_of
from panoptile.pipeline.store import Store

READERS = 8
"""Files that are read at once: a store far away answers slowly, not little."""

MAX_READS = 3
"""How often a folder is read in which something is wrong, and which a run has changed meanwhile."""

Kind = Literal[
    "job", "fragment", "commit", "file", "manifest", "classes", "success", "generation", "tiles", "preview", "record",
    "deadletter", "metrics",
]  # fmt: skip

_OF_INPUTS: tuple[Kind, ...] = ("fragment", "commit", "file", "tiles", "record")
_OF_ARCHIVED = (
    "of an input that the sources do not name any more (--incremental) no fragment is made again, and what is published "
    "of it stays; its published files are made again while all its fragments are there: where a fragment of it is named "
    "beside other things, put its file back before you delete these"
)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing that is not what it should be."""

    kind: Kind
    name: str
    """Key in the store."""
    problem: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read, and what was wrong with it."""

    files: int
    """Published files that were read."""
    fragments: int
    bytes: int
    finished: bool
    """False where no run has finished: there is nothing published to compare."""
    mismatches: tuple[Mismatch, ...]

    @property
    def exit(self) -> Exit:
        return Exit.MISMATCH if self.mismatches else Exit.DONE

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit": int(self.exit)}


@dataclass(frozen=True, slots=True)
class _Standing:
    """What every run changes in a folder: two equal ones have the same result between them."""

    success: bytes | None
    generation: int
    epoch: int
    ending: Ending | None
    """Of the last holder of the lease."""
    job: tuple[bytes | None, bytes | None]


def verify(store: Store) -> Verified:
    """Read all that is committed and published; again where a run came to its end meanwhile.

    Raises :class:`JobError` (2) for a folder without a job, (5) where something is wrong while a run changes the folder,
    and ``OSError``.
    """
    observer = Observer(store)
    before = _standing(store, observer)
    for _ in range(MAX_READS):
        verified = _read(store, before.success)
        if not verified.mismatches:
            return verified
        holder = _holder(observer)
        if holder is not None:
            raise JobError(
                Exit.OTHER_JOB, f"{holder} is working on {store.root}: verify it when that run is over."
            )
        now = _standing(store, observer)
        if now == before:
            return verified
        before = now
    raise JobError(
        Exit.OTHER_JOB, f"{store.root} changed each time that it was read: verify it when no run works on it."
    )


def _standing(store: Store, observer: Observer) -> _Standing:
    sight = observer.look()
    success, job, copy = (_bytes(store, key) for key in (layout.SUCCESS, layout.JOB, layout.JOB_COPY))
    return _Standing(success, highest_generation(store), sight.epoch, sight.ending, (job, copy))


def _holder(observer: Observer) -> str | None:
    """Who works on the folder; None where nobody does. Watches a beat for as long as it takes to tell."""
    while (sight := observer.look()).state == "unknown":
        time.sleep(min(LOOK_SECONDS, patience() / 10))
    return sight.holder if sight.state == "alive" else None


def _bytes(store: Store, key: str) -> bytes | None:
    try:
        return store.read_bytes(key)
    except FileNotFoundError:
        return None


def _read(store: Store, success_bytes: bytes | None) -> Verified:
    """Read all once. ``success_bytes`` were read before the commits, which a run writes first."""
    job = job_of(store)
    success = None if success_bytes is None else json_object(success_bytes)
    commits = read_commits(store)
    found = [Mismatch("job", *problem)] if (problem := record_problem(store)) is not None else []
    found += [
        Mismatch("commit", key, "cannot be read as a commit") for key, c in commits.items() if c is None
    ]
    whole = [c for c in commits.values() if c is not None]
    fragments = [(c.fragment, c.sha256, c.size) for c in whole]
    rows: list[dict[str, Any]] = []
    if success is not None:
        rows, wrong = _read_manifest(store, success)
        found += wrong
        found += _check_generation(store, success, job)
        found += _check_units(rows, commits)
    elif success_bytes is not None:
        found.append(Mismatch("success", layout.SUCCESS, "cannot be read"))
    files = [(r["name"], r["sha256"], r["bytes"]) for r in rows if r["kind"] == "asset"]
    tables: list[tuple[str, str, int]] = []
    if rows:
        found += _check_unlisted(store, {name for name, _, _ in files})
        tables, wrong = _check_beside(store, sorted({row["input"] for row in rows}))
        found += wrong
    if success is not None:
        found += _check_about(store, success)
    with ThreadPoolExecutor(READERS, "verify") as readers:
        found += _compare(store, readers, "fragment", fragments)
        found += _compare(store, readers, "file", files)
        found += _compare(store, readers, "tiles", tables)
    size = sum(c.size for c in whole) + sum(size for _, _, size in [*files, *tables])
    return Verified(len(files), len(fragments), size, success is not None, tuple(found))


def _read_manifest(store: Store, success: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Mismatch]]:
    found = []
    for kind, key, name in (
        ("manifest", layout.MANIFEST, "manifest_sha256"),
        ("classes", layout.CLASSES, "classes_sha256"),
    ):
        problem = _differs(store, key, str(success.get(name)), None)
        if problem is not None:
            found.append(Mismatch(kind, key, problem))  # type: ignore[arg-type]
    if any(m.kind == "manifest" for m in found):
        return [], found  # what a damaged list says of other files would only mislead
    try:
        rows = parquet_rows(store.read_bytes(layout.MANIFEST)) or []
    except FileNotFoundError:
        rows = []
    return rows, found


def _check_generation(store: Store, success: dict[str, Any], job: dict[str, Any]) -> Iterator[Mismatch]:
    number = success.get("generation")
    highest = highest_generation(store)
    if number != highest:
        yield Mismatch("success", layout.SUCCESS, f"points to generation {number}, the newest is {highest}")
    elif read_json(store, layout.generation_key(highest)) != success:
        yield Mismatch("generation", layout.generation_key(highest), f"is not what {layout.SUCCESS} says")
    if success.get("fingerprint") != job.get("fingerprint"):
        yield Mismatch("success", layout.SUCCESS, "is of another job than job.json")


def _check_units(rows: list[dict[str, Any]], commits: dict[str, Commit | None]) -> Iterator[Mismatch]:
    """The manifest lists exactly the units that are committed, with their fragments."""
    units = [row for row in rows if row["kind"] == "unit"]
    names = [row["name"] for row in units]
    for name in sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else ():
        yield Mismatch("manifest", layout.MANIFEST, f"lists the unit {name} twice")
    for row in units:
        key = f"_state/commits/{row['name']}.json"
        commit = commits.get(key)
        if row["sha256"] is None:
            continue  # quarantined then; a later run may have committed it without publishing yet
        if key not in commits:
            yield Mismatch("commit", key, "is gone, but the manifest lists its unit as done")
        elif commit is not None and commit.sha256 != row["sha256"]:
            yield Mismatch("commit", key, "names another fragment than the manifest")


def _check_unlisted(store: Store, listed: set[str]) -> Iterator[Mismatch]:
    for folder in PUBLISHED_FOLDERS:
        for stored in store.walk(folder):
            if stored.key not in listed:
                yield Mismatch("file", stored.key, "is not in the manifest")


def _check_beside(store: Store, keys: list[str]) -> tuple[list[tuple[str, str, int]], list[Mismatch]]:
    """(tables of tiles as promised, what is wrong with records, pictures, and tables that no hash is kept of)."""
    records, plans = store.read_all("_state/results"), store.read_all("_state/plan")
    promised: list[tuple[str, str, int]] = []
    found: list[Mismatch] = []
    for key in keys:
        try:
            finished = json.loads(records[result_key(key)])["finished"]
            table, preview = finished.get("tile_table"), finished["preview"]
            if table is not None:
                promised.append((table["key"], table["sha256"], table["size"]))
            elif kind_of(plans[layout.plan_key(key)]) == "raster":
                found += _unreadable(store, "tiles", layout.tile_table_key(key))
            if preview is not None:
                found += _unreadable(store, "preview", preview)
        except (ValueError, KeyError, TypeError, AttributeError):
            found.append(Mismatch("record", result_key(key), "or its plan is gone or cannot be read"))
    wanted = {layout.tile_table_key(key) for key in keys}
    found += [Mismatch("tiles", s.key, "is of no input") for s in store.walk("tiles") if s.key not in wanted]
    return promised, found


def _check_about(store: Store, success: dict[str, Any]) -> Iterator[Mismatch]:
    """What tells of the run; it differs from run to run, so that it can only be read."""
    if read_json(store, layout.METRICS) is None:
        yield Mismatch("metrics", layout.METRICS, "is gone or cannot be read")
    if success.get("exit") == Exit.QUARANTINED:
        yield from _unreadable(store, "deadletter", layout.DEADLETTER)


def _unreadable(store: Store, kind: Kind, key: str) -> Iterator[Mismatch]:
    """A table or picture that is not there, or not whole."""
    try:
        data = store.read_bytes(key)
    except FileNotFoundError:
        yield Mismatch(kind, key, "is gone")
        return
    if not (_is_whole_picture(data) if kind == "preview" else parquet_rows(data) is not None):
        yield Mismatch(kind, key, "cannot be read")


def _is_whole_picture(data: bytes) -> bool:
    """Checks every checksum of a PNG; it may be drawn anew at any time, in another size."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _compare(
    store: Store, readers: ThreadPoolExecutor, kind: Kind, promised: Iterable[tuple[str, str, int]]
) -> Iterator[Mismatch]:
    promised = list(promised)
    problems = readers.map(lambda p: _differs(store, *p), promised)
    for (key, _, _), problem in zip(promised, problems, strict=True):
        if problem is not None:
            yield Mismatch(kind, key, problem)


def _differs(store: Store, key: str, sha256: str, size: int | None) -> str | None:
    """How a file differs from what was promised; None where it does not."""
    try:
        if size is not None and (now := store.size(key)) != size:
            return f"has {now:,} bytes instead of {size:,}"
        return None if store.sha256(key) == sha256 else "holds other bytes than were promised"
    except FileNotFoundError:
        return "is gone"


def verified_text(store: Store, verified: Verified) -> str:
    """What ``verify`` prints."""
    lines = [f"{m.kind:<10} {store.uri(m.name)} {m.problem}" for m in verified.mismatches]
    what = f"{verified.files:,} files and {verified.fragments:,} fragments, {verified.bytes / 1e6:,.1f} MB"
    if verified.mismatches:
        lines.append(
            f"mismatch {len(verified.mismatches):,} of {what}: delete what is named and run the same command, "
            "or panoptile resume, to make it again"
        )
        if any(m.kind in _OF_INPUTS for m in verified.mismatches):
            lines.append(_OF_ARCHIVED)
    elif verified.finished:
        lines.append(f"verified {what}: all as promised")
    else:
        lines.append(f"verified {what}: as committed; no run has finished yet")
    return "\n".join(lines)
