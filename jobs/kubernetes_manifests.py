"""Manifests for Kubernetes: a CronJob, or a RayCronJob of KubeRay, with the job file in a ConfigMap."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any, Literal

import yaml

from panoptile.jobs.exits import invalid
from panoptile.jobs.job_file import job_file_text
from panoptile.jobs.kubernetes_names import JOB_MOUNT, is_below, parse_claim
from panoptile.jobs.schedule import Schedule
from panoptile.jobs.scheduled_command import command
from panoptile.pipeline.remote_uri import local_path_of, scheme_of

_OPERATOR_NOTE = (
    "# RayCronJob is alpha: it needs KubeRay 1.6 or newer, started with its feature gate RayCronJob=true\n"
)
_OPERATOR_ZONE_NOTE = "# timeZone needs KubeRay 1.7 or newer; an older one refuses the field\n"


def kubernetes_text(schedule: Schedule, target: Literal["k8s", "raycronjob"]) -> str:
    """ConfigMap and job as YAML. Raises :class:`JobError` (exit 2) for what a pod cannot run."""
    _check_cluster_job(schedule)
    if target == "raycronjob" and schedule.spec.local:
        raise invalid(
            "--local runs on one machine, and a RayCronJob is a cluster: leave it out, or use --as k8s."
        )
    if target == "raycronjob" and not re.fullmatch(r"[a-z][a-z0-9-]{0,35}", schedule.name):
        raise invalid(
            f"--name of a RayCronJob begins with a letter and has at most 36 characters, got {schedule.name!r}: KubeRay "
            "makes longer names from it."
        )
    manifest = _cron_job(schedule) if target == "k8s" else _ray_cron_job(schedule)
    note = "" if target == "k8s" else f"{_OPERATOR_NOTE}{_OPERATOR_ZONE_NOTE if schedule.timezone else ''}"
    return note + "---\n".join(yaml.safe_dump(d, sort_keys=False) for d in (_config_map(schedule), manifest))


def _cron_job(schedule: Schedule) -> dict[str, Any]:
    container = _container(schedule, gpus=schedule.gpus)
    container["command"] = command("panoptile", schedule, f"{JOB_MOUNT}/job.yaml")
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
    cluster = {
        "rayVersion": _ray_version(),
        "headGroupSpec": {
            "rayStartParams": {"num-gpus": "0"},
            "template": {"spec": _pod(schedule, head)},
        },
        "workerGroupSpecs": [_workers(schedule)],
    }
    words = command("panoptile", schedule, f"{JOB_MOUNT}/job.yaml")
    if schedule.gpus:
        words += ["--workers", str(schedule.spec.workers or schedule.gpus)]
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


def _workers(schedule: Schedule) -> dict[str, Any]:
    """Pods with a GPU each, or without GPUs: then the job sees none in the cluster, and takes a CPU for each replica."""
    replicas = schedule.spec.workers or 1
    pods = schedule.gpus or math.ceil(replicas * schedule.spec.threads / schedule.cpus)
    worker = _container(schedule, gpus=min(1, schedule.gpus)) | {"name": "ray-worker"}
    return {
        "groupName": "gpu" if schedule.gpus else "cpu",
        "replicas": pods,
        "minReplicas": 0,
        "maxReplicas": pods,
        "rayStartParams": {},
        "template": {"spec": _pod(schedule, worker)},
    }


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
    mounts = [{"name": "job", "mountPath": JOB_MOUNT, "readOnly": True}]
    if schedule.claim:
        mounts.append({"name": "data", "mountPath": parse_claim(schedule.claim)[1]})
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
        volumes.append(
            {"name": "data", "persistentVolumeClaim": {"claimName": parse_claim(schedule.claim)[0]}}
        )
    return {"containers": [container], "volumes": volumes}


def _check_cluster_job(schedule: Schedule) -> None:
    """A pod sees object stores and its volume; anything else would fail every night."""
    if schedule.image is None:
        raise invalid("A manifest for Kubernetes needs --image: a container image that holds panoptile.")
    if schedule.spec.accelerator_type is not None and not schedule.gpus:
        raise invalid(
            "--accelerator-type chooses GPUs, and --pod-gpus 0 gives the job none: leave one of them out."
        )
    mount = None if schedule.claim is None else parse_claim(schedule.claim)[1]
    spec = schedule.spec
    places = (*spec.sources, spec.out, spec.aoi, spec.labels, *_model_paths(spec.model))
    local = [path for path in map(_local_path, filter(None, places)) if path is not None]
    outside = [path for path in local if mount is None or not is_below(path, mount)]
    if outside:
        raise invalid(
            f"{outside[0]} is a local path that a pod cannot see: use an object store, or mount its volume with "
            "--volume-claim CLAIM:/path."
        )


def _local_path(place: str) -> str | None:
    """The local path that a path or a file:// URL names; None for an object store."""
    if scheme_of(place) not in (None, "file"):
        return None
    try:
        return str(local_path_of(place))
    except ValueError as e:
        raise invalid(str(e)) from e


def _model_paths(model: str) -> list[str]:
    """Paths of this machine in --model: a checkpoint that is here, and an echo's rasters; not one of the image's own."""
    if model.startswith("echo:"):
        return model.removeprefix("echo:").split(",")
    return [model] if Path(model).exists() else []


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")
