"""The command that every schedule runs, as words: it does what is new or changed, and ends at once where another is at work.

The lease in OUT decides who is at work, so it also holds where the scheduler has no guard of its own, as RayCronJob
has none.
"""

from __future__ import annotations

import dataclasses

from panoptile.jobs.schedule import Schedule
from panoptile.jobs.spec import JobSpec


def command(executable: str, schedule: Schedule, job_file: str | None) -> list[str]:
    """The idempotent incremental run, as words."""
    guard = ["--incremental", "--if-running", "skip", "--quiet"]
    if job_file is not None:
        return [executable, "segment", job_file, *guard]
    return [executable, "segment", *_arguments(schedule.spec), *guard]


def _arguments(spec: JobSpec) -> list[str]:
    """The job as arguments of ``segment``, defaults left out."""
    words = ["--out", spec.out]
    for field in dataclasses.fields(JobSpec):
        value = getattr(spec, field.name)
        if field.name in ("sources", "out", "incremental", "if_running") or value == field.default:
            continue
        flag = _FLAGS.get(field.name, field.name).replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", ",".join(map(str, value))]
        else:
            words += [f"--{flag}", str(value)]
    return (
        [*words, "--", *spec.sources]
        if any(s.startswith("-") for s in spec.sources)
        else [*spec.sources, *words]
    )


_FLAGS = {"unit_timeout": "timeout_unit"}
"""Fields whose option has another name."""
