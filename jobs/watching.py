"""Waiting for a job, in OUT and on its cluster; every wait has an end of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.job_status import TERMINAL, JobStatus, look_at
from panoptile.jobs.job_status import exit_of as exit_in_out
from panoptile.jobs.lease import Observer
from panoptile.jobs.submission import exit_of, last_error, state_of
from panoptile.pipeline.store import open_store

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

WATCH_SECONDS = 2.0
SETTLE_SECONDS = 12.0
"""A run beats every five seconds or oftener."""
BEGIN_SECONDS = 600.0
"""After which a submitted job should have begun."""
SILENCE_SECONDS = 120.0
"""How long a cluster may give no answer before its job is taken for lost; a head that restarts takes less."""


def settled(out: str) -> JobStatus:
    """The status once it is known whether the last run still lives, or cannot be known soon."""
    look_at(out)  # a folder without a job ends here
    observer = Observer(open_store(out))
    deadline = time.monotonic() + SETTLE_SECONDS
    while observer.look().state == "unknown":
        if time.monotonic() > deadline:
            found = look_at(out, observer)
            return dataclasses.replace(found, holder=f"{found.holder}, silent for {SETTLE_SECONDS:.0f} s")
        time.sleep(0.5)
    return look_at(out, observer)


def looks(out: str) -> Iterator[JobStatus]:
    """How a job in OUT stands, every ``WATCH_SECONDS`` to its end. Raises :class:`JobError` (exit 6) for one that does
    not begin."""
    look_at(out)  # a folder without a job ends here
    observer = Observer(open_store(out))
    until = time.monotonic() + BEGIN_SECONDS
    while True:
        found = look_at(out, observer)
        if found.state in ("submitted", "planned") and time.monotonic() > until:
            raise JobError(Exit.UNREACHABLE, _not_begun(found))
        yield found
        if found.state in TERMINAL:
            return
        time.sleep(WATCH_SECONDS)


def _not_begun(found: JobStatus) -> str:
    if found.job_id is None:
        return f"No run of {found.out} has begun within {BEGIN_SECONDS:.0f} s: start one with panoptile resume {found.out}."
    return (
        f"{found.job_id} was submitted to {found.cluster} but has not begun within {BEGIN_SECONDS:.0f} s: see what the "
        f"cluster says of it with panoptile list --cluster {found.cluster}."
    )


def watch_out(out: str, console: Console) -> JobStatus:
    """Follow a job in OUT to its end, as :func:`looks` does, and say how it goes on."""
    said = ""
    for found in looks(out):
        line = _progress(found.state, found)
        if line != said:
            console.say(line)
            said = line
    return found


def watch_job(client: JobSubmissionClient, job_id: str, out: str, console: Console) -> int:
    """Follow a job on the cluster, its progress read from OUT; returns its exit code.

    A cluster that gives no answer for a while is asked again; OUT says meanwhile whether the job has ended. Raises
    :class:`JobError` (exit 6) where it stays silent and OUT does not know the end.
    """
    said, silent_since = "", None
    while True:
        try:
            info, lost, silent_since = client.get_job_info(job_id), None, None
        except JobError as e:
            info, lost, silent_since = None, e, silent_since or time.monotonic()
        status = _in_out(out)
        state = "no answer from the cluster" if info is None else state_of(info)
        line = state if status is None else _progress(state, status)
        if line != said:
            console.say(line)
            said = line
        if info is not None and info.status.is_terminal():
            return _ended(client, job_id, info, console)
        if lost is not None and silent_since is not None:
            if status is not None and status.state in ("done", "quarantined", "failed"):
                return exit_in_out(status)
            if time.monotonic() - silent_since > SILENCE_SECONDS:
                raise lost
        time.sleep(WATCH_SECONDS)


def _ended(client: JobSubmissionClient, job_id: str, info: JobDetails, console: Console) -> int:
    code = exit_of(info)
    if code not in (int(Exit.DONE), int(Exit.QUARANTINED)):
        console.error(last_error(client, job_id))
    return code


def _in_out(out: str) -> JobStatus | None:
    try:
        return look_at(out)
    except JobError:
        return None  # it has not begun yet


def _progress(state: str, found: JobStatus) -> str:
    """One line; before the plans are written there is nothing to count."""
    if not found.units:
        return state
    return f"{state}  {found.done:,}/{found.units:,} units, {found.failed:,} with failures"
