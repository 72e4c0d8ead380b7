"""How a job stands, read from OUT alone: it outlives the cluster, and needs no network but the store."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from panoptile.jobs.cancellation import SUBMISSION
from panoptile.jobs.exits import Exit, invalid
from panoptile.jobs.interrupt import TERMINATED_EXIT
from panoptile.jobs.job_record import read_job
from panoptile.jobs.lease import Observer, Sight
from panoptile.jobs.left_out import LeftOut, failing, left_out_lines, left_out_of
from panoptile.jobs.state import read_json
from panoptile.pipeline import layout
from panoptile.pipeline.store import Store, open_store

State = Literal["submitted", "planned", "running", "interrupted", "failed", "done", "quarantined"]
TOTALS = "_state/totals.json"
TERMINAL: tuple[State, ...] = ("done", "quarantined", "failed", "interrupted")


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job stands."""

    out: str
    state: State
    fingerprint: str
    model: str
    inputs: int
    units: int
    """Of all inputs; 0 while the plans are being written."""
    done: int
    failed: int
    """Units with a failed attempt that are not done."""
    holder: str
    """Who works on it, or did last."""
    exit: int | None
    """The job's exit code, once it has ended."""
    message: str
    """The error that it ended with."""
    cluster: str | None
    job_id: str | None
    left_out: LeftOut
    """Inputs, units and tiles that are missing from the result, once it has ended."""

    def to_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "left_out"}
        return fields | self.left_out.to_json()


def look_at(out: str, observer: Observer | None = None) -> JobStatus:
    """How the job in OUT stands. Raises :class:`JobError` (exit 2) where OUT holds no job.

    An observer that is kept between looks can tell a run that died from one that works.
    """
    try:
        store = open_store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
    job, submission = read_job(store), read_json(store, SUBMISSION) or {}
    if job is None and not submission:
        raise invalid(f"{store.root} holds no panoptile job: give the folder that -o named.")
    success = read_json(store, layout.SUCCESS)
    sight = (observer or Observer(store)).look()
    state, code, message = _standing(submission, sight, success)
    done, totals = _committed(store), read_json(store, TOTALS) or {}
    failed = {s.key.split("/")[2] for s in store.walk("_state/dead")} - done
    job = job or {}
    return JobStatus(
        out=store.root,
        state=state,
        fingerprint=str(job.get("fingerprint", "")),
        model=str(job.get("model", {}).get("description", "")),
        inputs=len(job.get("inputs", ())),
        units=_count(totals, "units"),
        done=max(0, len(done) - _count(totals, "others")),
        failed=len(failed),
        holder=sight.holder,
        exit=code,
        message=message,
        cluster=submission.get("cluster"),
        job_id=submission.get("job_id"),
        left_out=_left_out(store, state, sorted(failed)),
    )


def _count(fields: dict[str, Any], name: str) -> int:
    number = fields.get(name, 0)
    return number if isinstance(number, int) else 0


def _standing(
    submission: dict[str, Any], sight: Sight, success: dict[str, Any] | None
) -> tuple[State, int | None, str]:
    """(state, exit code once it has ended, the error that it ended with)."""
    if success is None and _has_not_begun(submission, sight):
        if submission.get("stopped"):
            return "interrupted", TERMINATED_EXIT, "stopped on the cluster before it began"
        return "submitted", None, ""
    ending = sight.ending
    if success is not None and sight.state != "alive":
        code = _count(success, "exit")
        return "quarantined" if code == Exit.QUARANTINED else "done", code, ""
    ended = None if ending is None else ending.exit
    return _state(sight.state, ended), ended, "" if ending is None else ending.message


def _left_out(store: Store, state: State, failed: Sequence[str]) -> LeftOut:
    """Named once nothing changes any more: who watches looks every few seconds."""
    if state == "quarantined":
        return left_out_of(store)
    return failing(store, failed) if state == "failed" else LeftOut()


def _has_not_begun(submission: dict[str, Any], sight: Sight) -> bool:
    """Handed to a cluster after the last run that OUT knows of: what that run came to says nothing about this one."""
    after = submission.get("after_epoch")
    return isinstance(after, int) and sight.epoch <= after and sight.state in ("free", "dead")


def _state(lease: str, code: int | None) -> State:
    if lease in ("alive", "unknown"):
        return "running"
    if lease == "dead" or code in (int(Exit.INTERRUPTED), TERMINATED_EXIT):
        return "interrupted"
    return "planned" if code is None else "failed"


def write_totals(
    store: Store, *, unit_ids: Collection[str], items: int, recorded: frozenset[str] = frozenset()
) -> None:
    """Say once per run how much there is, so that looking does not read every plan. Raises ``OSError``.

    ``recorded``: ids of units that count as done though their commits may be gone. The total ``others`` is what the
    commits are more than what is done: those of inputs that the job has no longer, which are kept, less such units.
    """
    committed = _committed(store)
    others = len(committed.difference(unit_ids)) - len(recorded - committed)
    totals = {"units": len(unit_ids), "items": items, "others": others}
    store.put_bytes(TOTALS, json.dumps(totals).encode())


def _committed(store: Store) -> set[str]:
    """Ids of the units that are committed."""
    return {key.rsplit("/", 1)[-1].removesuffix(".json") for key in store.keys("_state/commits")}


def status_text(status: JobStatus) -> str:
    """One block for people."""
    share = f" ({status.done / status.units:.0%})" if status.units else ""
    lines = [
        f"{status.state:<12} {status.out}",
        f"  job        {status.fingerprint[:16]}  {status.model}",
        (
            f"  units      {status.done:,} of {status.units:,} done{share}, {status.failed:,} with failures, "
            f"{status.inputs:,} input{'s' if status.inputs != 1 else ''}"
        ),
    ]
    if status.job_id:
        lines.append(f"  cluster    {status.job_id} at {status.cluster}")
    if status.holder:
        lines.append(f"  {'running' if status.state == 'running' else 'last run':<10} {status.holder}")
    if status.message:
        label = "error" if status.state == "failed" else "ended"  # a job that was told to end is in no error
        lines.append(f"  {label:<10} {status.message}")
    return "\n".join(lines + left_out_lines(status.left_out))


def exit_of(status: JobStatus) -> int:
    """The job's exit code; what has not ended gives 0."""
    if status.state == "interrupted":
        return status.exit or int(Exit.INTERRUPTED)
    return status.exit or 0
