"""What an output folder says of its job: written before a run, read to attach, resume or refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.spec import LAYOUT_VERSION, JobSpec
from panoptile.pipeline import layout
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.redaction import redacted_json
from panoptile.pipeline.remote_uri import scheme_of
from panoptile.pipeline.store import Store, StoreUnreachable

FULL = (errno.ENOSPC, errno.EDQUOT)


def is_unstarted(store: Store) -> bool:
    """True where a run began to make the folder and got no further than its staging area."""
    begun = ("_state/tmp/", "_state/probe/", "_state/attempts/", "_state/submission.json")
    return store.entries() == ["_state"] and all(s.key.startswith(begun) for s in store.walk("_state"))


def check_same_job(
    store: Store, fingerprint: str, fields: dict[str, object], uris: list[str], *, growing: bool = False
) -> None:
    """Refuse a folder that holds another job: exit 5, naming what differs; exit 2 where it cannot be read.

    ``growing``: the inputs may be others than before.
    """
    other = read_json(store, layout.JOB)
    if (
        other is None
        or not isinstance(other.get("fields"), dict)
        or not isinstance(other.get("inputs"), list)
    ):
        raise invalid(f"{store.uri(layout.JOB)} cannot be read as a job: choose an empty folder with -o.")
    if other.get("fingerprint") != fingerprint:
        changed = [k for k in fields if other["fields"].get(k) != fields[k]]
        raise JobError(
            Exit.OTHER_JOB,
            f"{store.root} holds another job: {', '.join(changed) or 'another version'} differ"
            f"{'s' if len(changed) == 1 else ''}. Use the same options, or another folder with -o.",
        )
    if not growing and other["inputs"] != redacted_json(uris):
        raise JobError(
            Exit.OTHER_JOB,
            f"{store.root} holds a job over other sources ({len(other['inputs'])} then, {len(uris)} now). "
            "Name the same sources, add to them with --incremental, or name another folder with -o.",
        )


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """A JSON object of the store; None where it is missing, broken, or something else."""
    try:
        value = json.loads(store.read_bytes(key))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def parquet_rows(data: bytes) -> list[dict[str, Any]] | None:
    """The rows of a Parquet file; None where the bytes are none, or damaged."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError):  # a damaged footer, page or string each raise their own
        return None
    return rows


def write_job(
    store: Store, spec: JobSpec, fingerprint: str, model: tuple[str, str], uris: Sequence[str]
) -> None:
    """Claim the folder for this job, once: of two jobs that start together the second is refused.

    ``uris`` are all inputs that the job names, those too that are skipped because they are invalid.
    """
    description, sha256 = model
    fields = spec.fingerprint_fields(sha256)
    job = {
        "fingerprint": fingerprint,
        "fields": fields,
        "inputs": list(uris),
        "spec": {**absolute_paths(spec).to_json(), "out": store.root},
        "model": {"description": description, "sha256": sha256},
        "versions": {name: version(name) for name in ("panoptile", "torch", "rasterio", "numpy", "pyarrow")},
        "layout_version": LAYOUT_VERSION,
    }
    data = json.dumps(redacted_json(job), indent=1).encode()
    if not store.put_if_absent(layout.JOB, data):
        check_same_job(store, fingerprint, fields, list(uris), growing=spec.incremental)
    reach("job.written")


def absolute_paths(spec: JobSpec) -> JobSpec:
    """The job with all local paths absolute, so that it can be resumed from anywhere."""
    model = spec.model
    if model.startswith("echo:"):
        model = "echo:" + ",".join(map(_absolute, model.removeprefix("echo:").split(",")))
    elif Path(model).expanduser().exists() and model != "builtin":
        model = _absolute(model)
    return dataclasses.replace(
        spec,
        sources=tuple(map(_absolute, spec.sources)),
        model=model,
        labels=None if spec.labels is None else _absolute(spec.labels),
        aoi=None if spec.aoi is None else _absolute(spec.aoi),
    )


def _absolute(path: str) -> str:
    return path if scheme_of(path) is not None else str(Path(path).expanduser().absolute())


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """A complete, earlier run of this very job."""

    exit: Exit
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    """Of the manifest."""
    link: dict[str, Any]
    """How the segments of videos were linked; empty where there are none."""


def finished_before(store: Store, fingerprint: str, units: Mapping[str, str | None]) -> Finished | None:
    """An earlier, complete run of this very job; None where anything is missing.

    Complete: ``_SUCCESS.json`` names this job and this manifest, the manifest's units are ``units`` (unit id to the
    sha256 of its committed fragment, or None), and every published file is there in its size. ``verify`` is what
    reads all bytes again. A few listings, whatever the number of units.
    """
    success, metrics = read_json(store, layout.SUCCESS), read_json(store, layout.METRICS)
    if success is None or metrics is None or success.get("fingerprint") != fingerprint:
        return None
    try:
        manifest = store.read_bytes(layout.MANIFEST)
        if hashlib.sha256(manifest).hexdigest() != success.get("manifest_sha256"):
            return None
    except FileNotFoundError:
        return None
    rows = parquet_rows(manifest)
    if rows is None or dict(units) != {row["name"]: row["sha256"] for row in rows if row["kind"] == "unit"}:
        return None
    sizes = {s.key: s.size for top in ("rasters", "segments", "video") for s in store.walk(top)}
    if any(sizes.get(row["name"]) != row["bytes"] for row in rows if row["kind"] == "asset"):
        return None
    return Finished(Exit(int(success.get("exit", 0))), metrics, rows, success.get("link", {}))


@contextlib.contextmanager
def store_errors(out: str, *, started: bool = False) -> Iterator[None]:
    """Turn what the store raises into one sentence with the documented exit code."""
    try:
        yield
    except OSError as e:
        raise cannot_write(out, e, started=started) from e


def cannot_write(out: str, error: OSError, *, started: bool = False) -> JobError:
    """The sentence for a store that refuses a write: exit 6 for an object store, 4 on a full disk or once units
    have run, else 2."""
    if isinstance(error, StoreUnreachable):
        return JobError(Exit.UNREACHABLE, f"{error.strerror}.")
    if error.errno in FULL:
        return JobError(
            Exit.FAILED,
            f"Cannot write to {out}: {error.strerror}. Free some space and run the same command again.",
        )
    if started:
        return JobError(
            Exit.FAILED,
            f"Cannot write to {out}: {error}. What is done is kept: run the same command to go on.",
        )
    return invalid(f"Cannot write to {out}: {error}. Choose another folder with -o.")
