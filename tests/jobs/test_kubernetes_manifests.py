"""Manifests for Kubernetes and KubeRay, held against the schemas that they publish."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
import yaml
from referencing.jsonschema import DRAFT202012
from tests.jobs.raycronjob_schema import raycronjob_schema
from tests.jobs.test_schedule import REMOTE, rendered

from panoptile.jobs.exits import JobError
from panoptile.jobs.job_file import read_job_file
from panoptile.jobs.manifests import render
from panoptile.jobs.schedule import Schedule
from panoptile.jobs.spec import JobSpec

KUBERNETES = "1.34.0"


def kubernetes_schema(file: str) -> Any:
    """A file of Kubernetes' published strict schema: a kind's, or the definitions that all kinds refer to."""
    import kubernetes_validate

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    return json.loads((folder / f"v{KUBERNETES}-local-strict" / file).read_text())


def schema_errors(schema: Any, document: Any) -> list[str]:
    """What a schema that may refer to Kubernetes' definitions says against a document."""
    definitions = kubernetes_schema("_definitions.json")
    resource = referencing.Resource.from_contents(definitions, DRAFT202012)
    registry = resource @ referencing.Registry()  # under its own $id, to which the schemas refer
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    return [e.message for e in validator.iter_errors(document)]


def kubernetes_errors(kind: str, document: Any) -> list[str]:
    """What Kubernetes' published strict schema of a kind says against a document."""
    return schema_errors(kubernetes_schema(f"{kind}.json"), document)


def raycronjob_errors(document: Any) -> list[str]:
    """What KubeRay's definition of the RayCronJob says against a document."""
    return schema_errors(raycronjob_schema(kubernetes_schema("_definitions.json")["$id"]), document)


def test_the_kubernetes_manifest_is_valid() -> None:
    """ConfigMap and CronJob fulfil Kubernetes' own schema; nothing runs twice; the job file in it is this job."""
    schedule = Schedule(
        REMOTE, "0 2 * * *", "nightly", "Europe/Zurich", "registry/panoptile:1", "gis", "s3-keys", gpus=2
    )
    config, job = yaml.safe_load_all(render(schedule, "k8s"))
    assert kubernetes_errors("configmap-v1", config) == []
    assert kubernetes_errors("cronjob-batch-v1", job) == []
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["panoptile", "segment", "/etc/panoptile/job.yaml"]
    assert container["command"][3:] == ["--incremental", "--if-running", "skip", "--quiet"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_the_schema_check_can_fail() -> None:
    """A misspelt field is found: the check above means something."""
    schedule = Schedule(REMOTE, "0 2 * * *", image="i")
    _, job = yaml.safe_load_all(render(schedule, "k8s"))
    job["spec"]["concurencyPolicy"] = "Forbid"
    assert kubernetes_errors("cronjob-batch-v1", job)


def raycronjob(**options: Any) -> Any:
    schedule = Schedule(REMOTE, "0 2 * * *", "nightly", image="registry/panoptile:1", **options)
    return list(yaml.safe_load_all(render(schedule, "raycronjob")))[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timezone": "Europe/Zurich", "namespace": "gis", "secret": "s3-keys", "gpus": 4},
        {"gpus": 2, "claim": "sheets:/data", "cpus": 7, "memory": "1.5Gi", "deadline": 60},
    ],
)
def test_the_raycronjob_is_valid(options: dict[str, Any]) -> None:
    """Every field, of Ray's levels and of the pods, is one of the published definition, with its type."""
    job = raycronjob(**options)
    assert raycronjob_errors(job) == []
    template = job["spec"]["jobTemplate"]
    words = shlex.split(template["entrypoint"])
    gpus = options.get("gpus", 0)
    assert words[words.index("--workers") + 1] == str(max(1, gpus))
    assert template["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] == max(1, gpus)


def test_a_raycronjob_says_what_operator_it_needs() -> None:
    """The alpha resource wants a feature gate, and a time zone a newer operator: the manifest begins with it."""
    plain = render(Schedule(REMOTE, "0 2 * * *", image="i"), "raycronjob")
    zoned = render(Schedule(REMOTE, "0 2 * * *", image="i", timezone="UTC"), "raycronjob")
    assert "KubeRay 1.6" in plain.splitlines()[0]
    assert "KubeRay 1.7" not in plain
    assert "KubeRay 1.7" in zoned.splitlines()[1]


def _at(document: Any, path: str) -> tuple[Any, Any]:
    *parents, last = (int(word) if word.isdigit() else word for word in path.split("."))
    for name in parents:
        document = document[name]
    return document, last


POD = "spec.jobTemplate.rayClusterSpec.workerGroupSpecs.0.template.spec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.concurrencyPolicy", "Forbid"),  # Kubernetes' CronJob has it, this resource has not
        ("spec.timezone", "UTC"),
        ("spec.timeZone", ""),
        ("spec.schedule", 2),
        ("spec.jobTemplate.backofLimit", 2),
        ("spec.jobTemplate.preRunningDeadlineSeconds", 0),
        ("spec.jobTemplate.ttlSecondsAfterFinished", 2**31),
        ("spec.jobTemplate.deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}}),
        ("spec.jobTemplate.deletionStrategy", {"deletionRules": []}),
        ("spec.jobTemplate.rayClusterSpec.headGroupSpec.rayStartParams", {"num-gpus": 0}),
        ("spec.jobTemplate.rayClusterSpec.headGroupSpec.replicas", 1),
        ("spec.jobTemplate.rayClusterSpec.headGroupSpec.template.metadata", {"uid": "x"}),
        ("spec.jobTemplate.rayClusterSpec.workerGroupSpecs.0.minReplica", 1),
        ("spec.jobTemplate.rayClusterSpec.autoscalerOptions", {"upscalingMode": "Fast"}),
        (f"{POD}.volumes.0.configMap.naem", "nightly"),
        (f"{POD}.containers.0.resources.limits.memory", ["16Gi"]),
    ],
)
def test_the_check_of_a_raycronjob_can_fail(path: str, value: Any) -> None:
    """A misspelt, mistyped or contradictory field is found on every level."""
    job = raycronjob(timezone="UTC", gpus=1)
    parent, name = _at(job, path)
    parent[name] = value
    assert raycronjob_errors(job)


@pytest.mark.parametrize(
    "path",
    [
        "spec.schedule",
        "spec.jobTemplate.rayClusterSpec.headGroupSpec",
        "spec.jobTemplate.rayClusterSpec.workerGroupSpecs.0.maxReplicas",
        f"{POD}.containers",
    ],
)
def test_the_check_of_a_raycronjob_wants_what_is_required(path: str) -> None:
    """A required field that is gone is found."""
    job = raycronjob(gpus=1)
    parent, name = _at(job, path)
    del parent[name]
    assert raycronjob_errors(job)


def test_the_raycronjob_fulfils_the_published_definition() -> None:
    """The whole definition of the resource, where PANOPTILE_KUBERAY_CRD names its file."""
    path = os.environ.get("PANOPTILE_KUBERAY_CRD")
    if path is None:
        pytest.skip("PANOPTILE_KUBERAY_CRD does not name KubeRay's ray.io_raycronjobs.yaml")
    definition = yaml.safe_load(Path(path).read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.Draft7Validator(schema).validate(raycronjob(gpus=2))


def test_the_job_in_the_manifest_is_the_job(tmp_path: Path) -> None:
    """The ConfigMap's file reads back as the job that was asked for."""
    config, _ = yaml.safe_load_all(render(Schedule(REMOTE, "0 2 * * *", image="i"), "k8s"))
    (tmp_path / "job.yaml").write_text(config["data"]["job.yaml"])
    assert JobSpec(**read_job_file(str(tmp_path / "job.yaml"))) == REMOTE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "echo:/here/l.tif"}, "/here/l.tif is a local path"),
        ({"model": str(Path(__file__).parent)}, "is a local path"),
        ({"local": True}, "--local runs on one machine"),
    ],
)
def test_a_ray_cluster_does_not_see_this_machine(options: dict[str, Any], words: str) -> None:
    """A checkpoint of this machine and --local would fail, or idle, every night: exit 2."""
    spec = dataclasses.replace(REMOTE, **options)
    with pytest.raises(JobError, match=re.escape(words)):
        render(Schedule(spec, "0 2 * * *", image="i"), "raycronjob")


def test_the_jobs_own_number_of_replicas_counts() -> None:
    """--workers of the job is not replaced by that of the GPU workers."""
    spec = dataclasses.replace(REMOTE, workers=3)
    _, job = yaml.safe_load_all(render(Schedule(spec, "0 2 * * *", image="i", gpus=2), "raycronjob"))
    words = shlex.split(job["spec"]["jobTemplate"]["entrypoint"])
    assert words[words.index("--workers") + 1] == "3"


@pytest.mark.parametrize(("workers", "pods"), [(None, 1), (1, 1), (5, 3)])
def test_a_ray_cluster_without_gpus(workers: int | None, pods: int) -> None:
    """Its workers hold no GPU, and are as many as the replicas need; their number is the job's own or the cluster's."""
    spec = dataclasses.replace(REMOTE, workers=workers, threads=2)
    _, job = yaml.safe_load_all(render(Schedule(spec, "0 2 * * *", image="i", gpus=0), "raycronjob"))
    assert raycronjob_errors(job) == []
    template = job["spec"]["jobTemplate"]
    [group] = template["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["groupName"], group["replicas"], group["maxReplicas"]) == ("cpu", pods, pods)
    assert "nvidia.com/gpu" not in json.dumps(job)
    assert "--workers" not in template["entrypoint"]


@pytest.mark.parametrize("target", ["k8s", "raycronjob"])
def test_no_gpu_has_a_type(target: Any) -> None:
    """--accelerator-type without a GPU would wait for one every night: exit 2."""
    spec = dataclasses.replace(REMOTE, accelerator_type="H100")
    with pytest.raises(JobError, match="--pod-gpus 0 gives the job none"):
        render(Schedule(spec, "0 2 * * *", image="i", gpus=0), target)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--namespace", "A B", "--namespace wants"),
        ("--namespace", "n" * 64, "--namespace wants"),
        ("--namespace", "a.b", "--namespace wants"),
        ("--namespace", "-a", "--namespace wants"),
        ("--namespace", "a\n", "--namespace wants"),
        ("--secret", "A B", "--secret wants"),
        ("--secret", "a..b", "--secret wants"),
        ("--image", "bad image", "--image wants"),
        ("--image", "Registry/Panoptile", "--image wants"),
        ("--image", "registry/panoptile:", "--image wants"),
        ("--image", "registry/panoptile@sha256:1", "--image wants"),
        ("--volume-claim", "C:/data", "--volume-claim wants"),
        ("--volume-claim", "c:data", "--volume-claim wants"),
        ("--volume-claim", "c:/data:ro", "--volume-claim wants"),
        ("--volume-claim", "c:/data/../etc", "--volume-claim wants"),
        ("--volume-claim", "c:/", "cannot be mounted at /, "),
        ("--volume-claim", "c:/etc/", "cannot be mounted at /etc, "),
        ("--volume-claim", "c:/etc//panoptile", "cannot be mounted at /etc/panoptile, "),
        ("--volume-claim", "c:/etc/panoptile/x", "cannot be mounted at /etc/panoptile/x, "),
    ],
)
def test_names_and_mounts_that_kubernetes_refuses(option: str, value: str, words: str) -> None:
    """Exit 2 and a sentence that says what is wanted."""
    given = {"--image": "i"} | {option: value}
    with pytest.raises(JobError, match=re.escape(words)) as e:
        rendered(
            "s3://b/a.tif", "-o", "s3://b/out", "--cron", "0 2 * * *", "--as", "k8s",
            *(word for pair in given.items() for word in pair),
        )  # fmt: skip
    assert int(e.value.code) == 2


@pytest.mark.parametrize(
    "image",
    ["panoptile", "registry:5000/a/b_c-d:1.0-rc", "ghcr.io/team/p", "eu.gcr.io/p/q@sha256:" + "0f" * 32,
     "localhost/p:1@sha256:" + "0f" * 32],
)  # fmt: skip
def test_images_that_a_runtime_takes(image: str) -> None:
    """With registry, port, tag and digest."""
    assert Schedule(REMOTE, "0 2 * * *", image=image, namespace="gis-1", secret="s3.keys").image == image


@pytest.mark.parametrize("name", ["2-nights", "n" * 37])
def test_a_name_that_kuberay_refuses(name: str) -> None:
    """It makes the names of jobs and clusters from it, which begin with a letter and have a limit."""
    schedule = Schedule(REMOTE, "0 2 * * *", name, image="i")
    assert name in render(schedule, "k8s")
    with pytest.raises(JobError, match="--name of a RayCronJob"):
        render(schedule, "raycronjob")


@pytest.mark.parametrize(
    "source", ["/data/../etc/a.tif", "file:///etc/a.tif", "/database/a.tif", "file:///data/../etc/a.tif"]
)
def test_a_path_that_only_looks_mounted(source: str) -> None:
    """Where it really leads decides whether the pod sees it."""
    spec = JobSpec((source,), "s3://b/out")
    with pytest.raises(JobError, match="is a local path that a pod cannot see"):
        render(Schedule(spec, "0 2 * * *", image="i", claim="c:/data/"), "k8s")


def test_a_url_of_a_mounted_file_is_seen() -> None:
    """file:// names a path of the pod like any other."""
    spec = JobSpec(("file:///data/a.tif",), "/data/out")
    assert "/data/a.tif" in render(Schedule(spec, "0 2 * * *", image="i", claim="c:/data"), "k8s")


def test_a_volume_makes_its_paths_local() -> None:
    """Sources and OUT below the mount are seen by the pod."""
    text = rendered(
        "/data/a.tif", "-o", "/data/out", "--cron", "0 2 * * *", "--as", "k8s", "--image", "i",
        "--volume-claim", "sheets:/data",
    )  # fmt: skip
    assert "claimName: sheets" in text
