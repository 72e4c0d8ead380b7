"""When a job runs again and again, and where: what a manifest is made from, checked on creation."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from panoptile.jobs.cron import check_cron
from panoptile.jobs.exits import invalid
from panoptile.jobs.kubernetes_names import check_image, check_namespace, check_secret, parse_claim
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.remote_uri import checked_uri, scheme_of

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


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job runs, and where.

    The job runs with ``--incremental --if-running skip``, and one that cannot is refused. That is a mosaic, which could
    not be run without ``--incremental`` either: over other sheets than before it is another job (exit 5).
    """

    spec: JobSpec
    """Its local paths are absolute."""
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
    """GPUs of a Kubernetes job, or GPU workers of a Ray cluster; 0: CPUs alone."""
    cpus: int = 4
    memory: str = "16Gi"
    deadline: int = 86_400
    """Seconds after which Kubernetes ends a run; the next one goes on where it stopped."""
    job_file: str | None = None
    """Absolute path of a file that says all of the job, for schedulers of this machine."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "cron", check_cron(self.cron)
        )  # a line break among its blanks would end the line
        try:
            dataclasses.replace(self.spec, incremental=True, if_running="skip")
        except ValueError as e:
            raise invalid(
                f"This job cannot be scheduled, because a scheduled run is --incremental --if-running skip: {e}"
            ) from e
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", self.name):
            raise invalid(f"--name wants lower-case letters, digits and '-' (at most 52), got {self.name!r}.")
        _check_places(self.spec)
        for check, given in (
            (_check_timezone, self.timezone),
            (check_image, self.image),
            (check_namespace, self.namespace),
            (check_secret, self.secret),
            (parse_claim, self.claim),
        ):
            if given is not None:
                check(given)
        _check_model(self.spec.model)
        for option, value, low in (
            ("--pod-gpus", self.gpus, 0),
            ("--pod-cpus", self.cpus, 1),
            ("--deadline", self.deadline, 60),
        ):
            if value < low:
                raise invalid(f"{option} must be at least {low}, got {value}.")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?", self.memory):
            raise invalid(f"--pod-memory wants a quantity such as 16Gi, got {self.memory!r}.")


def _check_places(spec: JobSpec) -> None:
    """Refuse URIs that a run would refuse, such as one with a password; the sentence does not repeat it."""
    model = spec.model.removeprefix("echo:").split(",")
    for place in filter(None, (*spec.sources, spec.out, spec.aoi, spec.labels, *model)):
        if scheme_of(place) in (None, "file"):
            continue
        try:
            checked_uri(place)
        except ValueError as e:
            raise invalid(str(e)) from e


def _check_model(model: str) -> None:
    """Refuse a relative path: it names nothing here, and would be looked for in another folder by night."""
    is_id = model.count("/") == 1 and not model.startswith((".", "~"))
    if not (model == "builtin" or model.startswith(("echo:", "/")) or is_id):
        raise invalid(
            f"There is no checkpoint at {model}: give a folder that is there, or by its absolute path one that is where "
            "the job will run, or a hub id."
        )


def _check_timezone(name: str) -> None:
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise invalid(f"--timezone wants an IANA name such as Europe/Zurich, got {name!r}.") from e
