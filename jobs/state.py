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

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.pipeline import layout
from panoptile.pipeline.parquet_read import read_columns
from panoptile.pipeline.store import Store, StoreUnreachable

FULL = (errno.ENOSPC, errno.EDQUOT)


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """A JSON object of the store; None where it is missing, broken, or something else."""
    try:
        return json_object(store.read_bytes(key))
    except FileNotFoundError:
        return None


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in ``data``; None for anything else."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def parquet_rows(data: bytes) -> list[dict[str, Any]] | None:
    """The rows of a Parquet file; None where the bytes are none, or damaged."""
    try:
        rows: list[dict[str, Any]] = read_columns(io.BytesIO(data)).to_pylist()
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
    skipped_sha256: str
    """Of the inputs that it skipped; empty where there were none."""


def finished_before(store: Store, fingerprint: str, units: Mapping[str, str | None]) -> Finished | None:
    """An earlier, complete run of this very job; None where anything is missing.

    Complete: ``_SUCCESS.json`` is what its generation says and names this job, this manifest and these classes, the
    manifest's units are ``units`` (unit id to the sha256 of its committed fragment, or None), every published file is
    there in its size, and so is the dead letter where there must be one. ``verify`` is what reads all bytes again. A
    few listings, whatever the number of units.
    """
    success, metrics = read_json(store, layout.SUCCESS), read_json(store, layout.METRICS)
    if success is None or metrics is None or success.get("fingerprint") != fingerprint:
        return None
    if not _is_recorded(store, success):
        return None
    manifest = _promised(store, layout.MANIFEST, success.get("manifest_sha256"))
    if manifest is None or _promised(store, layout.CLASSES, success.get("classes_sha256")) is None:
        return None
    rows = parquet_rows(manifest)
    if rows is None or dict(units) != {row["name"]: row["sha256"] for row in rows if row["kind"] == "unit"}:
        return None
    sizes = {s.key: s.size for top in ("rasters", "segments", "video") for s in store.walk(top)}
    if any(sizes.get(row["name"]) != row["bytes"] for row in rows if row["kind"] == "asset"):
        return None
    return Finished(
        Exit(int(success.get("exit", 0))),
        metrics,
        rows,
        success.get("link", {}),
        str(success.get("skipped_sha256", "")),
    )


def _is_recorded(store: Store, success: Mapping[str, Any]) -> bool:
    """``_SUCCESS.json`` is what its generation says; with exit 3 there is a dead letter that can be read."""
    number = success.get("generation")
    if not isinstance(number, int) or read_json(store, layout.generation_key(number)) != success:
        return False
    if success.get("exit") != Exit.QUARANTINED:
        return success.get("exit") == Exit.DONE
    try:
        return parquet_rows(store.read_bytes(layout.DEADLETTER)) is not None
    except FileNotFoundError:
        return False


def _promised(store: Store, key: str, sha256: object) -> bytes | None:
    """The bytes of ``key``; None where they are not what was promised."""
    try:
        data = store.read_bytes(key)
    except FileNotFoundError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


@contextlib.contextmanager
def store_errors(out: str, *, started: bool = False) -> Iterator[None]:
    """Turn what the store raises into one sentence with the documented exit code."""
    try:
        yield
    except OSError as e:
        raise cannot_write(out, e, started=started) from e


@contextlib.contextmanager
def read_errors(out: str) -> Iterator[None]:
    """The same for who only reads: exit 6 for an object store, else 2."""
    try:
        yield
    except StoreUnreachable as e:
        raise cannot_write(out, e) from e
    except OSError as e:
        raise invalid(f"Cannot read {out}: {e}.") from e


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
