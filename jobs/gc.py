"""``panoptile gc``: remove what killed runs left behind. Nothing that is committed or published is ever touched."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.job_record import job_of
from panoptile.jobs.lease import Ending, Lease, Observer, beat_key, highest_epoch, lease_key
from panoptile.jobs.survey import read_commits
from panoptile.pipeline.commit import parse_commit
from panoptile.pipeline.store import Store

Kind = Literal["fragment", "staged file", "attempt", "probe", "old lease"]

_STAGING: dict[str, Kind] = {
    "_state/tmp": "staged file",
    "_state/attempts": "attempt",
    "_state/probe": "probe",
}
YOUNG_SECONDS = 600.0
"""What was staged less than this ago may be in use: a command that starts probes, and stages files, without the lease."""
ASK_SECONDS = 1.0
"""How long it counts that the lease was seen to be held: far less than its holder may be silent."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file that nothing refers to."""

    kind: Kind
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was, or would be, removed."""

    orphans: tuple[Orphan, ...]
    dry_run: bool

    @property
    def bytes(self) -> int:
        return sum(o.size for o in self.orphans)

    def to_json(self) -> dict[str, Any]:
        orphans = [{"kind": o.kind, "key": o.key, "bytes": o.size} for o in self.orphans]
        return {"dry_run": self.dry_run, "bytes": self.bytes, "orphans": orphans}


def orphans(store: Store, now: float) -> list[Orphan]:
    """What nothing refers to. Raises :class:`JobError` (2) for a folder without a job, ``OSError`` of the store.

    A commit that cannot be read keeps all fragments of its unit: what it named is not known. ``now`` is the time in
    seconds since 1970, at best by the store's own clock: what is staged and young is left.
    """
    job_of(store)
    found = [
        Orphan(kind, stored.key, stored.size)
        for folder, kind in _STAGING.items()
        for stored in store.walk(folder)
        if not stored.modified or now - stored.modified >= YOUNG_SECONDS
    ]
    found += _old_leases(store)
    fragments = list(
        store.walk("_state/data")
    )  # before the commits: what is committed meanwhile is seen then
    commits = read_commits(store)
    committed = {c.fragment for c in commits.values() if c is not None}
    unclear = tuple(
        f"_state/data/{key.rsplit('/', 1)[-1].removesuffix('.json')}-"
        for key, commit in commits.items()
        if commit is None
    )
    found += [
        Orphan("fragment", f.key, f.size)
        for f in fragments
        if f.key not in committed and not f.key.startswith(unclear)
    ]
    return found


def _old_leases(store: Store) -> Iterator[Orphan]:
    newest = highest_epoch(store)
    kept = {lease_key(newest), beat_key(newest)}
    for folder in ("_state/lease", "_state/beat"):
        for stored in store.walk(folder):
            if stored.key not in kept:
                yield Orphan("old lease", stored.key, stored.size)


def collect(store: Store, *, dry_run: bool) -> Collected:
    """Remove the orphans, holding the lease meanwhile. Raises :class:`JobError` (5) beside a live run."""
    if dry_run:
        return Collected(tuple(orphans(store, time.time())), dry_run=True)
    from panoptile.jobs.console import Console
    from panoptile.jobs.follow import Followed, take_lease

    orphans(store, time.time())  # a folder without a job is refused before anything is written
    before = Observer(store).look()
    ending = before.ending or Ending(int(Exit.INTERRUPTED), "")
    held = take_lease(store, "fail", Console(quiet=True), 0, "upkeep")
    if isinstance(held, Followed):
        raise JobError(Exit.OTHER_JOB, f"A run works on {store.root}: collect when it is over.")
    try:
        removed = _remove(store, held, orphans(store, _now_of(store, held)))
    finally:
        held.release(ending.exit, ending.message, before.holder)  # to who looks, the job stands as it stood
    return Collected(tuple(removed), dry_run=False)


def _now_of(store: Store, held: Lease) -> float:
    """The store's own clock: when it took our last beat."""
    beats = {s.key: s.modified for s in store.walk("_state/beat")}
    return beats.get(beat_key(held.epoch), time.time())


def _remove(store: Store, held: Lease, found: Sequence[Orphan]) -> list[Orphan]:
    """Those that were removed. Raises :class:`JobError` (5) once the lease is lost, ``OSError`` of the store.

    A run that has taken over may have put the very same fragment again, which is named by its content, and committed it.
    """
    removed: list[Orphan] = []
    asked = float("-inf")
    for orphan in found:
        if orphan.kind == "fragment" and _is_committed(store, orphan.key):
            continue
        if time.monotonic() - asked >= ASK_SECONDS:
            asked = time.monotonic()
            held.still_held()
        if held.lost:
            raise JobError(
                Exit.OTHER_JOB,
                f"Another run has taken over {store.root} after {len(removed):,} of {len(found):,} files were removed: "
                "collect the rest when it is over.",
            )
        store.delete(orphan.key)
        removed.append(orphan)
    return removed


def _is_committed(store: Store, fragment: str) -> bool:
    """Whether the commit of its unit names a fragment now, or cannot be read."""
    unit = fragment.rsplit("/", 1)[-1].rpartition("-")[0]
    try:
        return parse_commit(store.read_bytes(f"_state/commits/{unit}.json")).fragment == fragment
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def collected_text(store: Store, collected: Collected) -> str:
    """What ``gc`` prints."""
    lines = [f"{o.kind:<14} {store.uri(o.key)} {o.size:,} bytes" for o in collected.orphans]
    verb = "would remove" if collected.dry_run else "removed"
    lines.append(f"{verb} {len(collected.orphans):,} files, {collected.bytes / 1e6:,.1f} MB")
    return "\n".join(lines)
