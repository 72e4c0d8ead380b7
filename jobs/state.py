"""What an output folder says of its job: written before a run, read to attach, resume or refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.pipeline import layout
from panoptile.pipeline.store import Store, StoreUnreachable

FULL = (errno.ENOSPC, errno.EDQUOT)


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
