"""``job.json``, and the copy of it in ``_state``: a job can be continued as long as one of the two can be read.

The copy carries its own hash, so it is known to be whole, and whoever changes the job changes it first. Where both are
there and differ, the copy is right: ``job.json`` was damaged, or a kill came between the two, or the holder of the lease
is just changing both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.spec import LAYOUT_VERSION, JobSpec
from panoptile.jobs.state import read_json
from panoptile.pipeline import layout
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.redaction import redacted_json
from panoptile.pipeline.remote_uri import scheme_of
from panoptile.pipeline.store import Store

REPAIRS = 3
"""How often ``job.json`` is written anew by one command: more than once only where the job grows meanwhile."""
_TYPES = {"fingerprint": str, "fields": dict, "inputs": list, "spec": dict, "model": dict, "versions": dict}


def read_job(store: Store) -> dict[str, Any] | None:
    """The job of the folder; None where neither record of it can be read. Raises ``OSError`` of the store."""
    return _copy(store) or _original(store)


def job_of(store: Store) -> dict[str, Any]:
    """The job of the folder. Raises :class:`JobError` (exit 2) where there is none, ``OSError`` of the store."""
    job = read_job(store)
    if job is None:
        raise no_job(store)
    return job


def no_job(store: Store) -> JobError:
    return invalid(
        f"{store.root} holds no job of panoptile: there is no readable {layout.JOB}, and no readable copy in "
        f"{layout.JOB_COPY}."
    )


def is_unstarted(store: Store) -> bool:
    """True where a run began to make the folder and got no further than its staging area.

    In an object store a folder ends with its last object: once a probe is removed there is nothing at all.
    """
    begun = ("_state/tmp/", "_state/probe/", "_state/attempts/", "_state/submission.json")
    is_bare = store.entries() in ([], ["_state"])
    return is_bare and all(s.key.startswith(begun) for s in store.walk("_state"))


def check_same_job(
    store: Store, fingerprint: str, fields: dict[str, object], uris: list[str], *, growing: bool = False
) -> None:
    """Refuse a folder that holds another job: exit 5, naming what differs; exit 2 where it cannot be read.

    ``growing``: the inputs may be others than before.
    """
    other = read_job(store)
    if other is None:
        raise invalid(
            f"{store.uri(layout.JOB)} cannot be read as a job, and there is no whole copy of it in {layout.JOB_COPY}: "
            "choose an empty folder with -o."
        )
    fields_then, inputs_then = other.get("fields", {}), other.get("inputs", [])
    if other["fingerprint"] != fingerprint:
        changed = [k for k in fields if fields_then.get(k) != fields[k]]
        raise JobError(
            Exit.OTHER_JOB,
            f"{store.root} holds another job: {', '.join(changed) or 'another version'} differ"
            f"{'s' if len(changed) == 1 else ''}. Use the same options, or another folder with -o.",
        )
    if not growing and inputs_then != redacted_json(uris):
        raise JobError(
            Exit.OTHER_JOB,
            f"{store.root} holds a job over other sources ({len(inputs_then)} then, {len(uris)} now). "
            "Name the same sources, add to them with --incremental, or name another folder with -o.",
        )


def write_job(
    store: Store, spec: JobSpec, fingerprint: str, model: tuple[str, str], uris: Sequence[str]
) -> bool:
    """Claim the folder for this job, once: of two jobs that start together the second is refused.

    True where ``job.json`` was damaged or gone, and was written anew.

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
    if not _claim(store, redacted_json(job)):
        check_same_job(store, fingerprint, fields, list(uris), growing=spec.incremental)
    reach("job.written")
    return repair_job(store)


def record_links(store: Store, spec: JobSpec) -> None:
    """Have the job name other linking options. Only the holder of the lease may call it. Raises ``OSError`` of the store."""
    job = job_of(store)
    fields = {**job["spec"], **absolute_paths(spec).link_fields(), "all_queries": spec.keeps_all_queries}
    changed = redacted_json({**job, "spec": fields})
    if changed != job:
        replace_job(store, changed)


def replace_job(store: Store, job: dict[str, Any]) -> None:
    """Change the record of the job. Only the holder of the lease may call it. Raises ``OSError`` of the store."""
    _put_copy(store, job)
    store.put_bytes(layout.JOB, _bytes(job))


def repair_job(store: Store) -> bool:
    """Make both records whole again; True where ``job.json`` had to be. Raises ``OSError`` of the store.

    Called without the lease too: what its holder changes meanwhile is looked at again after each write, for an older
    job must not stay in its place.
    """
    if _copy(store) is None:
        _make_copy(store)
        return False
    for repairs in range(REPAIRS):
        copy = _unlike_original(store)
        if copy is None:
            return repairs > 0
        store.put_bytes(layout.JOB, _bytes(copy))
    return True


def record_problem(store: Store) -> tuple[str, str] | None:
    """(key, what is wrong) of the record that is damaged; None where neither is. Raises ``OSError`` of the store."""
    if _copy(store) is None:
        is_damaged = store.exists(layout.JOB_COPY)
        return (layout.JOB_COPY, "is no whole copy of job.json") if is_damaged else None
    if _unlike_original(store) is None:
        return None
    is_gone = not store.exists(layout.JOB)
    return layout.JOB, "is gone" if is_gone else f"is not what its copy in {layout.JOB_COPY} says"


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


def _claim(store: Store, job: dict[str, Any]) -> bool:
    """Make the folder that of this job, unless it has one; True where it had none."""
    return read_job(store) is None and store.put_if_absent(layout.JOB, _bytes(job))


def _original(store: Store) -> dict[str, Any] | None:
    job = read_json(store, layout.JOB)
    return job if job is not None and _is_job(job) else None


def _copy(store: Store) -> dict[str, Any] | None:
    """The copy; None where it is missing, or not what was written."""
    record = read_json(store, layout.JOB_COPY) or {}
    job = record.get("job")
    return job if isinstance(job, dict) and record.get("sha256") == _digest(job) and _is_job(job) else None


def _unlike_original(store: Store) -> dict[str, Any] | None:
    """The copy where ``job.json`` is not what it says, at two looks: the job may grow between the two reads of one."""
    copy = None
    for _ in range(2):
        original, copy = read_json(store, layout.JOB), _copy(store)
        if original == copy:
            return None
    return copy


def _make_copy(store: Store) -> None:
    """Put a copy where none is whole. Another command may put the first, and let the job grow: that one stays."""
    is_damaged = store.exists(layout.JOB_COPY)  # asked first: a copy that comes later is whole
    job = job_of(store)
    if is_damaged:
        _put_copy(store, job)
    else:
        store.put_if_absent(layout.JOB_COPY, _copy_bytes(job))


def _put_copy(store: Store, job: dict[str, Any]) -> None:
    store.put_bytes(layout.JOB_COPY, _copy_bytes(job))


def _copy_bytes(job: dict[str, Any]) -> bytes:
    return json.dumps({"sha256": _digest(job), "job": job}).encode()


def _is_job(job: dict[str, Any]) -> bool:
    """A job of some version: it has a fingerprint, and what else it has is of the right type."""
    right = all(isinstance(job[name], kind) for name, kind in _TYPES.items() if name in job)
    return right and "fingerprint" in job and all(isinstance(uri, str) for uri in job.get("inputs", ()))


def _bytes(job: dict[str, Any]) -> bytes:
    return json.dumps(job, indent=1).encode()


def _digest(job: dict[str, Any]) -> str:
    return hashlib.sha256(_bytes(job)).hexdigest()
