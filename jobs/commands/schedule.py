"""``panoptile schedule render``."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid
from panoptile.jobs.job_options import ResolvedJob, with_job_options
from panoptile.jobs.spec import InputKind, JobSpec

if TYPE_CHECKING:
    from panoptile.jobs.schedule import Target

Cron = Annotated[str, typer.Option(metavar="'M H D M W'", help="When to run: five cron fields.")]
As = Annotated[
    str, typer.Option("--as", metavar="crontab|k8s|raycronjob|airflow", help="For which scheduler.")
]
Name = Annotated[str, typer.Option(metavar="NAME", help="Of the schedule.")]
Timezone = Annotated[
    str | None, typer.Option(metavar="ZONE", help="Such as Europe/Zurich; default: the scheduler's.")
]
Image = Annotated[str | None, typer.Option(metavar="IMAGE", help="Container image (k8s, raycronjob).")]
Namespace = Annotated[str | None, typer.Option(metavar="NAME", help="Kubernetes namespace.")]
Secret = Annotated[
    str | None, typer.Option(metavar="NAME", help="Kubernetes secret that becomes environment variables.")
]
Claim = Annotated[
    str | None,
    typer.Option("--volume-claim", metavar="CLAIM:/path", help="Volume with local sources or OUT."),
]
PodGpus = Annotated[
    int | None,
    typer.Option(
        "--pod-gpus", metavar="N", help="GPUs of the job (k8s), or GPU workers; 0: CPUs alone. Default: 1."
    ),
]
PodCpus = Annotated[int | None, typer.Option("--pod-cpus", metavar="N", help="CPUs of each pod; default: 4.")]
PodMemory = Annotated[
    str | None, typer.Option("--pod-memory", metavar="16Gi", help="Memory of each pod; default: 16Gi.")
]
Deadline = Annotated[
    int | None,
    typer.Option(
        metavar="S",
        help="Seconds after which a run is ended (not by cron); the next one goes on there. Default: 86400.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    schedule_app = typer.Typer(help="Run a job again and again, on what is new.", no_args_is_help=True)
    schedule_app.command(
        "render",
        epilog="Prints and runs nothing. Examples: panoptile schedule render job.yaml --cron '0 2 * * *' --as crontab; "
        "panoptile schedule render 's3://b/in/*.tif' -o s3://b/out --cron '0 2 * * *' --as raycronjob "
        "--image registry/panoptile:1 | kubectl apply -f -",
    )(with_job_options(render))
    app.add_typer(schedule_app, name="schedule")


def render(
    job: ResolvedJob,
    console: Console,
    *,
    cron: Cron,
    as_: As,
    name: Name = "panoptile",
    timezone: Timezone = None,
    image: Image = None,
    namespace: Namespace = None,
    secret: Secret = None,
    volume_claim: Claim = None,
    pod_gpus: PodGpus = None,
    pod_cpus: PodCpus = None,
    pod_memory: PodMemory = None,
    deadline: Deadline = None,
) -> None:
    """Print the manifest of an idempotent run that does what is new or changed, never two at a time."""
    from panoptile.jobs.manifests import render as rendered
    from panoptile.jobs.schedule import Schedule

    target = _target(as_)
    pods = {
        "image": image, "namespace": namespace, "secret": secret, "claim": volume_claim, "gpus": pod_gpus,
        "cpus": pod_cpus, "memory": pod_memory, "deadline": deadline,
    }  # fmt: skip
    given: dict[str, Any] = {option: value for option, value in pods.items() if value is not None}
    _check_used(given, target)
    _check_choices(job)
    spec = _from_anywhere(job.spec)
    schedule = Schedule(spec, cron, name, timezone, job_file=_whole_job_file(job, spec), **given)
    text = rendered(schedule, target)
    job.write_saved(console)
    console.data(text.rstrip("\n"), {"as": target, "manifest": text}, as_is=True)


def _target(as_: str) -> Target:
    """The scheduler that --as names. Raises :class:`JobError` (exit 2) for anything else."""
    from panoptile.jobs.schedule import TARGETS

    if as_ in get_args(InputKind):
        raise invalid(
            f"--as names the scheduler here ({', '.join(TARGETS)}): say what the sources are in a job file, as kind: {as_}."
        )
    for target in TARGETS:
        if as_ == target:
            return target
    raise invalid(f"--as is one of {', '.join(TARGETS)}, got {as_!r}.")


def _check_used(given: Collection[str], target: Target) -> None:
    """Refuse an option of the schedule that says nothing to its target."""
    from panoptile.jobs.schedule import POD, USED_BY

    idle = [option for option in given if option not in USED_BY[target]]
    if idle:
        flag = {"claim": "--volume-claim"}.get(idle[0], f"--{'pod-' * (idle[0] in POD)}{idle[0]}")
        raise invalid(f"{flag} says nothing to --as {target}: leave it out.")


def _check_choices(job: ResolvedJob) -> None:
    """Refuse what a scheduled run would not heed."""
    if job.origins["if_running"] != "default" and job.spec.if_running != "skip":
        raise invalid(
            f"--if-running {job.spec.if_running} cannot be scheduled: a run that finds another at work always leaves it "
            "alone. Leave it out, or give --if-running skip."
        )
    if job.origins["incremental"] != "default" and not job.spec.incremental:
        raise invalid(
            "--no-incremental cannot be scheduled: every scheduled run is incremental. Leave it out."
        )


def _from_anywhere(spec: JobSpec) -> JobSpec:
    """The job for a process with another working directory and another home."""
    from panoptile.jobs.job_file import with_absolute_paths

    if spec.model.startswith("~"):
        spec = dataclasses.replace(spec, model=str(Path(spec.model).expanduser()))
    return with_absolute_paths(spec)


def _whole_job_file(job: ResolvedJob, spec: JobSpec) -> str | None:
    """The job file, where it says all of the job, and says it to a process elsewhere too."""
    added = {name for name, origin in job.origins.items() if origin in ("flag", "environment")}
    if job.file is None or added - {"incremental", "if_running"} or spec != job.spec:
        return None
    return str(Path(job.file).expanduser().absolute())
