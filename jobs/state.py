"""What an output folder says of its job: written before a run, read to attach, resume or refuse.

The order matters: a folder whose units are about to be redone loses ``_SUCCESS.json`` first, so that no reader
and no later run takes the old result for the new one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.spec import LAYOUT_VERSION, JobSpec
from panoptile.pipeline import layout
from panoptile.pipeline.joined import read_commit
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.store import Store, StoreUnreachable

FULL = (errno.ENOSPC, errno.EDQUOT)


def is_unstarted(store: Store) -> bool:
    """True where a run began to make the folder and got no further than its staging area."""
    begun = ("_state/tmp/", "_state/probe/")
    return store.entries() == ["_state"] and all(s.key.startswith(begun) for s in store.walk("_state"))


def check_same_job(store: Store, fingerprint: str, fields: dict[str, object], uris: list[str]) -> None:
    """Refuse a folder that holds another job: exit 5, naming what differs; exit 2 where it cannot be read."""
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
    if other["inputs"] != uris:
        raise JobError(
            Exit.OTHER_JOB,
            f"{store.root} holds a job over other sources ({len(other['inputs'])} then, {len(uris)} now). "
            "Name the same sources, or another folder with -o.",
        )


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """A JSON object of the store; None where it is missing, broken, or something else."""
    try:
        value = json.loads(store.read_bytes(key))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_job(
    store: Store, spec: JobSpec, fingerprint: str, model: tuple[str, str], plans: Iterable[RasterPlan]
) -> None:
    """Claim the folder for this job, once: of two jobs that start together the second is refused."""
    uris = [plan.info.uri for plan in plans]
    description, sha256 = model
    fields = spec.fingerprint_fields(sha256)
    job = {
        "fingerprint": fingerprint,
        "fields": fields,
        "inputs": uris,
        "spec": spec.to_json(),
        "model": {"description": description, "sha256": sha256},
        "versions": {name: version(name) for name in ("panoptile", "torch", "rasterio", "numpy", "pyarrow")},
        "layout_version": LAYOUT_VERSION,
    }
    if not store.put_if_absent(layout.JOB, json.dumps(job, indent=1).encode()):
        check_same_job(store, fingerprint, fields, uris)


def open_units(store: Store, plans: Iterable[RasterPlan]) -> list[Unit]:
    """Write the plans and return the units that are not done; what is stale is withdrawn first.

    A unit is done where its commit can be read and its fragment has the committed size. An input that changed
    since, or a plan that cannot be read, opens all units of that input again.
    """
    stale = [
        plan for plan in plans if store.exists(layout.plan_key(plan.info.key)) and not _is_stored(store, plan)
    ]
    todo = [u for plan in plans for u in plan.units() if plan in stale or read_commit(store, u) is None]
    if todo:
        store.delete(layout.SUCCESS)
    for unit in todo:
        store.delete(layout.commit_key(unit))
    for plan in plans:
        if not _is_stored(store, plan):
            store.put_bytes(layout.plan_key(plan.info.key), plan.to_json())
    return todo


def _is_stored(store: Store, plan: RasterPlan) -> bool:
    try:
        return store.read_bytes(layout.plan_key(plan.info.key)) == plan.to_json()
    except FileNotFoundError:
        return False


def finished_before(
    store: Store, fingerprint: str, plans: Iterable[RasterPlan]
) -> tuple[Exit, dict[str, Any]] | None:
    """(exit code, metrics) of an earlier, complete run of this very job; None where anything is missing.

    Complete: ``_SUCCESS.json`` names this job and this manifest, the manifest's units are those that are committed
    now, and every published file is there in its size. ``verify`` is what reads all bytes again.
    """
    success, metrics = read_json(store, layout.SUCCESS), read_json(store, layout.METRICS)
    if success is None or metrics is None or success.get("fingerprint") != fingerprint:
        return None
    try:
        manifest = store.read_bytes(layout.MANIFEST)
        if hashlib.sha256(manifest).hexdigest() != success.get("manifest_sha256"):
            return None
        rows = pq.read_table(io.BytesIO(manifest)).to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    committed = {}
    for plan in plans:
        for unit in plan.units():
            commit = read_commit(store, unit)
            committed[unit.id] = None if commit is None else commit.sha256
    if committed != {row["name"]: row["sha256"] for row in rows if row["kind"] == "unit"}:
        return None
    assets = [row for row in rows if row["kind"] == "asset"]
    if not all(store.exists(row["name"]) and store.size(row["name"]) == row["bytes"] for row in assets):
        return None
    return Exit(int(success.get("exit", 0))), metrics


def cannot_write(out: str, error: OSError) -> JobError:
    """The sentence for a store that refuses a write: exit 6 for an object store, 4 on a full disk, else 2."""
    if isinstance(error, StoreUnreachable):
        return JobError(Exit.UNREACHABLE, f"{error.strerror}.")
    if error.errno in FULL:
        return JobError(
            Exit.FAILED,
            f"Cannot write to {out}: {error.strerror}. Free some space and run the same command again.",
        )
    return invalid(f"Cannot write to {out}: {error}. Choose another folder with -o.")
