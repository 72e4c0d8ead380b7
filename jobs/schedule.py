"""Manifests for scheduled runs: prints what another scheduler runs, and runs nothing itself.

Every manifest runs the same idempotent command: it does what is new or changed, and ``--if-running skip`` makes an
overlapping run end at once with exit 0 (the lease in OUT decides, so it also holds where the scheduler has no guard
of its own, as RayCronJob has none).
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from panoptile.jobs.cron import check_cron
from panoptile.jobs.exits import invalid
from panoptile.jobs.job_file import job_file_text
from panoptile.jobs.spec import JobSpec

Target = Literal["crontab", "k8s", "raycronjob", "airflow"]
TARGETS: tuple[Target, ...] = ("crontab", "k8s", "raycronjob", "airflow")
POD = ("gpus", "cpus", "memory")
_KUBERNETES = frozenset({"image", "namespace", "secret", "claim", *POD, "deadline"})
USED_BY: dict[Target, frozenset[str]] = {
    "crontab": frozenset(),
    "airflow": frozenset({"deadline"}),
    "k8s": _KUBERNETES,
    "raycronjob": _KUBERNETES,
}
"""What each scheduler's manifest takes of a :class:`Schedule`, besides job, time and name."""
_MOUNT = "/etc/panoptile"
_URI = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job runs, and where."""

    spec: JobSpec
    cron: str
    name: str = "panoptile"
    timezone: str | None = None
    """IANA name; None: the scheduler's own."""
    image: str | None = None
    """Container image with panoptile (and Ray), for Kubernetes."""
    namespace: str | None = None
    secret: str | None = None
    """Kubernetes secret whose keys become environment variables: credentials of the object store."""
    claim: str | None = None
    """``CLAIM:/path``: a persistent volume claim that holds local sources or OUT."""
    gpus: int = 1
    """GPUs of a Kubernetes job, or GPU workers of a Ray cluster."""
    cpus: int = 4
    memory: str = "16Gi"
    deadline: int = 86_400
    """Seconds after which Kubernetes ends a run; the next one goes on where it stopped."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "cron", check_cron(self.cron)
        )  # a line break among its blanks would end the line
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", self.name):
            raise invalid(f"--name wants lower-case letters, digits and '-' (at most 52), got {self.name!r}.")
        if self.timezone is not None:
            _check_timezone(self.timezone)
        for option, value, low in (
            ("--pod-gpus", self.gpus, 0),
            ("--pod-cpus", self.cpus, 1),
            ("--deadline", self.deadline, 60),
        ):
            if value < low:
                raise invalid(f"{option} must be at least {low}, got {value}.")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?", self.memory):
            raise invalid(f"--pod-memory wants a quantity such as 16Gi, got {self.memory!r}.")


def render(schedule: Schedule, target: Target) -> str:
    """The manifest as text. Raises :class:`JobError` (exit 2) where the target cannot run this job."""
    if target == "crontab":
        return _crontab(schedule)
    if target == "airflow":
        return _airflow(schedule)
    _check_cluster_job(schedule)
    if target == "raycronjob" and schedule.spec.local:
        raise invalid(
            "--local runs on one machine, and a RayCronJob is a cluster: leave it out, or use --as k8s."
        )
    manifest = _cron_job(schedule) if target == "k8s" else _ray_cron_job(schedule)
    note = "" if target == "k8s" else f"{_OPERATOR_NOTE}{_OPERATOR_ZONE_NOTE if schedule.timezone else ''}"
    return note + "---\n".join(yaml.safe_dump(d, sort_keys=False) for d in (_config_map(schedule), manifest))


_OPERATOR_NOTE = (
    "# RayCronJob is alpha: it needs KubeRay 1.6 or newer, started with its feature gate RayCronJob=true\n"
)
_OPERATOR_ZONE_NOTE = "# timeZone needs KubeRay 1.7 or newer; an older one refuses the field\n"


def command(executable: str, schedule: Schedule, job_file: str | None) -> list[str]:
    """The idempotent incremental run, as words."""
    guard = ["--incremental", "--if-running", "skip", "--quiet"]
    if job_file is not None:
        return [executable, "segment", job_file, *guard]
    return [executable, "segment", *_arguments(schedule.spec), *guard]


# --- cron ----------------------------------------------------------------------------------------------


def _crontab(schedule: Schedule) -> str:
    """Lines for a crontab. A percent sign would end the command there: it is escaped."""
    line = shlex.join(command(_executable(), schedule, None)).replace("%", r"\%")
    if "\n" in line:
        raise invalid("A source or path contains a line break, which a crontab cannot hold: rename it.")
    zone = f"{_ZONE_NOTE}CRON_TZ={schedule.timezone}\n" if schedule.timezone else ""
    return f"# {schedule.name}: new and changed inputs only; a run that is still going is left alone\n{zone}{schedule.cron} {line}\n"


_ZONE_NOTE = "# CRON_TZ holds for all lines below it, too: put these last; cronie knows it, Debian's and Ubuntu's cron does not\n"


def _executable() -> str:
    """The installation that is running: cron's own PATH holds no virtual environment."""
    beside = Path(sys.executable).with_name("panoptile")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("panoptile") or "panoptile"


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


# --- Kubernetes ----------------------------------------------------------------------------------------


def _cron_job(schedule: Schedule) -> dict[str, Any]:
    container = _container(schedule, gpus=schedule.gpus)
    container["command"] = command("panoptile", schedule, f"{_MOUNT}/job.yaml")
    spec: dict[str, Any] = {
        "schedule": schedule.cron,
        "concurrencyPolicy": "Forbid",
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {
            "spec": {
                "backoffLimit": 2,
                "activeDeadlineSeconds": schedule.deadline,
                "template": {"spec": {**_pod(schedule, container), "restartPolicy": "Never"}},
            }
        },
    }
    if schedule.timezone:
        spec["timeZone"] = schedule.timezone
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": _metadata(schedule), "spec": spec}


def _ray_cron_job(schedule: Schedule) -> dict[str, Any]:
    head = _container(schedule, gpus=0) | {"name": "ray-head"}
    worker = _container(schedule, gpus=1) | {"name": "ray-worker"}
    cluster = {
        "rayVersion": _ray_version(),
        "headGroupSpec": {
            "rayStartParams": {"num-gpus": "0"},
            "template": {"spec": _pod(schedule, head)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu",
                "replicas": max(1, schedule.gpus),
                "minReplicas": 0,
                "maxReplicas": max(1, schedule.gpus),
                "rayStartParams": {},
                "template": {"spec": _pod(schedule, worker)},
            }
        ],
    }
    words = [*command("panoptile", schedule, f"{_MOUNT}/job.yaml"), "--workers", str(_workers(schedule))]
    spec: dict[str, Any] = {
        "schedule": schedule.cron,
        "jobTemplate": {
            "entrypoint": shlex.join(words),
            "submissionMode": "K8sJobMode",
            "backoffLimit": 2,
            "activeDeadlineSeconds": schedule.deadline,
            "preRunningDeadlineSeconds": 1800,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": cluster,
        },
    }
    if schedule.timezone:
        spec["timeZone"] = schedule.timezone
    return {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": _metadata(schedule), "spec": spec}


def _workers(schedule: Schedule) -> int:
    """Replicas of a Ray cluster: the job's own number, else one for each GPU worker."""
    return max(1, schedule.gpus) if schedule.spec.workers is None else schedule.spec.workers


def _config_map(schedule: Schedule) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(schedule),
        "data": {"job.yaml": job_file_text(schedule.spec)},
    }


def _metadata(schedule: Schedule) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": schedule.name, "labels": {"app.kubernetes.io/name": "panoptile"}}
    if schedule.namespace:
        metadata["namespace"] = schedule.namespace
    return metadata


def _container(schedule: Schedule, *, gpus: int) -> dict[str, Any]:
    limits: dict[str, Any] = {"cpu": str(schedule.cpus), "memory": schedule.memory}
    if gpus:
        limits["nvidia.com/gpu"] = str(gpus)
    mounts = [{"name": "job", "mountPath": _MOUNT, "readOnly": True}]
    if schedule.claim:
        mounts.append({"name": "data", "mountPath": _claim(schedule.claim)[1]})
    container: dict[str, Any] = {
        "name": "panoptile",
        "image": schedule.image,
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": mounts,
    }
    if schedule.secret:
        container["envFrom"] = [{"secretRef": {"name": schedule.secret}}]
    return container


def _pod(schedule: Schedule, container: dict[str, Any]) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "job", "configMap": {"name": schedule.name}}]
    if schedule.claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": _claim(schedule.claim)[0]}})
    return {"containers": [container], "volumes": volumes}


def _claim(text: str) -> tuple[str, str]:
    name, _, path = text.partition(":")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name) or not path.startswith("/"):
        raise invalid(f"--volume-claim wants CLAIM:/path, got {text!r}.")
    return name, path.rstrip("/") or "/"


def _check_cluster_job(schedule: Schedule) -> None:
    """A pod sees object stores and its volume; anything else would fail every night."""
    if schedule.image is None:
        raise invalid("A manifest for Kubernetes needs --image: a container image that holds panoptile.")
    mount = None if schedule.claim is None else _claim(schedule.claim)[1]
    spec = schedule.spec
    local = [
        p
        for p in (*spec.sources, spec.out, spec.aoi, spec.labels, *_model_paths(spec.model))
        if p is not None and not _URI.match(p)
    ]
    outside = [p for p in local if mount is None or not f"{p}/".startswith(f"{mount.rstrip('/')}/")]
    if outside:
        raise invalid(
            f"{outside[0]} is a local path that a pod cannot see: use an object store, or mount its volume with "
            "--volume-claim CLAIM:/path."
        )


def _model_paths(model: str) -> list[str]:
    """Paths of this machine in --model: a checkpoint that is here, and an echo's rasters; not one of the image's own."""
    if model.startswith("echo:"):
        return model.removeprefix("echo:").split(",")
    return [model] if Path(model).exists() else []


def _check_timezone(name: str) -> None:
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise invalid(f"--timezone wants an IANA name such as Europe/Zurich, got {name!r}.") from e


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")
