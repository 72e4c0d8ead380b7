"""Manifests for scheduled runs: prints what another scheduler runs, and runs nothing itself."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from panoptile.jobs.exits import invalid
from panoptile.jobs.kubernetes_manifests import kubernetes_text
from panoptile.jobs.schedule import USED_BY, Schedule, Target
from panoptile.jobs.scheduled_command import command
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.redaction import MASK, redacted


def render(schedule: Schedule, target: Target) -> str:
    """The manifest as text, which holds no secret that was given with the job; to be printed as it is.

    Raises :class:`JobError` (exit 2) where the target cannot run this job, or where a secret would be in it.
    """
    text = _text(schedule, target)
    _check_secrets(schedule, target)
    return text


def _text(schedule: Schedule, target: Target) -> str:
    if target == "crontab":
        return _crontab(schedule)
    if target == "airflow":
        return _airflow(schedule)
    return kubernetes_text(schedule, target)


# --- secrets -------------------------------------------------------------------------------------------


def _check_secrets(schedule: Schedule, target: Target) -> None:
    """Refuse a secret in what was given: masked it would be dead, unmasked it would give the secret away.

    Each value is looked at by itself, as it was given: quotes and line breaks in a manifest could hide a secret. The
    manifest's own words are not looked at. They are the same for everybody, so a secret that is one of them is not
    given away by them.
    """
    for name, value in _given(schedule, target):
        shown = redacted(value)
        if shown != value:
            raise invalid(
                f"The manifest would hold a secret in {name} ({shown!r}), of a URI or of the environment: take it out of "
                "the job, and give credentials by the environment."
            )


def _given(schedule: Schedule, target: Target) -> Iterator[tuple[str, str]]:
    """(name, text) of every value in the manifest that is not our own word or default."""
    names = USED_BY[target] | {"cron", "name", "timezone"}
    path = Path(_executable())
    our_name_alone = Path(*[MASK if part == "panoptile" else part for part in path.parts])
    if target == "crontab" and redacted(str(path)) != str(our_name_alone):
        yield "the path of panoptile", str(path)
    if target == "crontab" and schedule.job_file is not None:
        names |= {"job_file"}  # it stands for the job
    else:
        yield from _changed(schedule.spec, frozenset(f.name for f in dataclasses.fields(JobSpec)))
    yield from _changed(schedule, names)


def _changed(given: Schedule | JobSpec, names: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of the values that differ from their default; of a list all together, as on a command line, too."""
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name not in names or value == field.default:
            continue
        values = (*value, ",".join(map(str, value))) if isinstance(value, tuple) else (value,)
        yield from ((field.name, str(v)) for v in values)


# --- cron ----------------------------------------------------------------------------------------------


def _crontab(schedule: Schedule) -> str:
    """Lines for a crontab. A percent sign would end the command there: it is escaped."""
    line = shlex.join(command(_executable(), schedule, schedule.job_file)).replace("%", r"\%")
    if "\n" in line:
        raise invalid("A source or path contains a line break, which a crontab cannot hold: rename it.")
    if len(line.encode()) > _LONGEST:
        raise invalid(
            f"The command would be {len(line.encode()):,} bytes long, and cron takes {_LONGEST}: write the job to a file "
            "with --save job.yaml, and schedule that file without other options."
        )
    zone = f"{_ZONE_NOTE}CRON_TZ={schedule.timezone}\n" if schedule.timezone else ""
    return f"# {schedule.name}: new and changed inputs only; a run that is still going is left alone\n{zone}{schedule.cron} {line}\n"


_LONGEST = 998
"""Bytes of a command, its backslashes too: Debian's crontab says 'command too long' from 999 on."""
_ZONE_NOTE = "# CRON_TZ holds for all lines below it, too: put these last; cronie knows it, Debian's and Ubuntu's cron does not\n"


def _executable() -> str:
    """The installation that is running: cron's own PATH holds no virtual environment."""
    beside = Path(sys.executable).with_name("panoptile")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("panoptile") or "panoptile"


# --- Airflow -------------------------------------------------------------------------------------------

_DAG = '''"""{name}: segments what is new or changed; made by `panoptile schedule render`."""

import datetime

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator  # Airflow 3
except ImportError:
    from airflow.operators.bash import BashOperator

with DAG(
    dag_id={name!r},
    schedule={cron!r},
    start_date=datetime.datetime(2024, 1, 1, tzinfo={zone}),
    catchup=False,
    max_active_runs=1,
    tags=["panoptile"],
) as dag:
    BashOperator(
        task_id="segment",
        bash_command={line!r},
        retries=2,
        retry_delay=datetime.timedelta(minutes=10),
        execution_timeout=datetime.timedelta(seconds={deadline}),
    )
'''


def _airflow(schedule: Schedule) -> str:
    """A DAG file. Jinja must not touch the command, so it stands in a raw block."""
    line = shlex.join(command("panoptile", schedule, None))
    if "endraw" in line:
        raise invalid(
            "A source or path contains 'endraw', which Airflow's templates would take for their own."
        )
    zone = (
        "datetime.timezone.utc" if schedule.timezone is None else f"zoneinfo.ZoneInfo({schedule.timezone!r})"
    )
    text = _DAG.format(
        name=schedule.name,
        cron=schedule.cron,
        zone=zone,
        line="{% raw %}"
        + line
        + "{% endraw %} ",  # the trailing blank: Airflow reads '….sh' as a template's name
        deadline=schedule.deadline,
    )
    return (
        text
        if schedule.timezone is None
        else text.replace("import datetime\n", "import datetime\nimport zoneinfo\n", 1)
    )
