"""The command that every schedule runs, as words: it does what is new or changed, and ends at once where another is at work.

The lease in OUT decides who is at work, so it also holds where the scheduler has no guard of its own, as RayCronJob
has none.
"""

from __future__ import annotations

import dataclasses
import json
from typing import get_args

from panoptile.jobs.exits import invalid
from panoptile.jobs.option_values import NAME_LISTS, names
from panoptile.jobs.options import JOB
from panoptile.jobs.schedule import Schedule
from panoptile.jobs.spec import JobSpec


def command(executable: str, schedule: Schedule, job_file: str | None) -> list[str]:
    """The idempotent incremental run, as words."""
    guard = ["--incremental", "--if-running", "skip", "--quiet"]
    if job_file is not None:
        return [executable, "segment", job_file, *guard]
    return [executable, "segment", *_arguments(schedule.spec), *guard]


def _arguments(spec: JobSpec) -> list[str]:
    """The job as arguments of ``segment``, defaults left out. Raises :class:`JobError` for what they cannot say."""
    words = ["--out", spec.out]
    for field in dataclasses.fields(JobSpec):
        value = getattr(spec, field.name)
        if field.name in ("sources", "out", "incremental", "if_running") or value == field.default:
            continue
        flag, no_flag = _flags(field.name)
        if isinstance(value, bool):
            words.append(flag if value else no_flag)
        elif isinstance(value, tuple):
            words += [flag, _listed(field.name, flag, value)]
        else:
            words += [flag, str(value)]
    return [*spec.sources, *words]


def _flags(name: str) -> tuple[str, str]:
    """The option of a job's field and, for a switch, that which turns it off; as the command line declares them."""
    _, option = get_args(JOB[name])
    first = option.default  # in Annotated it is no default: typer takes it for the first name of the option
    declared = [words for words in (first, *(option.param_decls or ())) if str(words).startswith("--")]
    flag, _, no_flag = (declared[0] if declared else f"--{name.replace('_', '-')}").partition("/")
    return flag, no_flag


def _listed(name: str, flag: str, value: tuple[str | int, ...]) -> str:
    """A list as one word. Raises :class:`JobError` (exit 2) for names that commas would tear apart."""
    text = ",".join(map(str, value))
    if not value or (name in NAME_LISTS and names(flag, text) != value):
        raise invalid(
            f"{flag} {json.dumps(value)} cannot be said on a command line, where commas part the names: schedule a job "
            "file without other options, with --as crontab, k8s or raycronjob."
        )
    return text
