"""The schema of KubeRay's RayCronJob (ray.io/v1): every field of the published definition, each level closed.

The definition is generated from KubeRay's types and carries no prose: names, types, required fields, choices,
bounds and a few rules. Those of Ray's own levels stand here as they are published in ``ray.io_raycronjobs.yaml``
(KubeRay after 1.7, commit 034971d; the file's nine tenths are copies of Kubernetes' pods). What is Kubernetes'
own, pods, services, environment variables, quantities, refers to the schema that Kubernetes publishes for it.
Left out: that a lease of an active and passive head is longer than its renewal, which JSON Schema cannot say.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_CORE = "io.k8s.api.core.v1."
_NETWORK = "io.k8s.api.networking.v1."
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_MAP: Schema = {"type": "object", "additionalProperties": _TEXT}


def raycronjob_schema(definitions: str) -> Schema:
    """The JSON schema of a RayCronJob; ``definitions`` is the URI of Kubernetes' own definitions."""

    def kubernetes(name: str) -> Schema:
        return {"$ref": f"{definitions}#/$defs/{name}"}

    def embedded(name: str) -> Schema:
        """A whole Kubernetes object within this one: its metadata has five fields alone."""
        metadata = _closed(annotations=_MAP, finalizers=_TEXTS, labels=_MAP, name=_TEXT, namespace=_TEXT)
        return {"allOf": [kubernetes(_CORE + name), {"properties": {"metadata": metadata}}]}

    environment = _list(kubernetes(f"{_CORE}EnvVar"))
    resources = kubernetes(f"{_CORE}ResourceRequirements")
    collector = _closed(env=environment, image=_TEXT, imagePullPolicy=_TEXT, resources=resources)
    cluster = _closed(
        ("headGroupSpec",),
        authOptions=_closed(enableK8sTokenAuth=_FLAG, mode=_one("disabled", "token"), secretName=_TEXT),
        autoscalerOptions=_closed(
            args=_TEXTS,
            command=_TEXTS,
            env=environment,
            envFrom=_list(kubernetes(f"{_CORE}EnvFromSource")),
            idleTimeoutSeconds=_int32(),
            image=_TEXT,
            imagePullPolicy=_TEXT,
            resources=resources,
            securityContext=kubernetes(f"{_CORE}SecurityContext"),
            upscalingMode=_one("Default", "Aggressive", "Conservative"),
            version=_one("v1", "v2"),
            volumeMounts=_list(kubernetes(f"{_CORE}VolumeMount")),
        ),
        enableInTreeAutoscaling=_FLAG,
        gcsFaultToleranceOptions=_fault_tolerance(
            kubernetes(f"{_CORE}EnvVarSource"), kubernetes("io.k8s.apimachinery.pkg.api.resource.Quantity")
        ),
        headGroupSpec=_closed(
            ("template",),
            enableIngress=_FLAG,
            headService=embedded("Service"),
            ingressOptions=_closed(
                host=_TEXT,
                path=_TEXT,
                pathType=_one("Exact", "Prefix", "ImplementationSpecific"),
                tls=_list(kubernetes(f"{_NETWORK}IngressTLS")),
            ),
            labels=_MAP,
            rayStartParams=_MAP,
            resources=_MAP,
            serviceType=_TEXT,
            template=embedded("PodTemplateSpec"),
        ),
        headServiceAnnotations=_MAP,
        historyServerOptions=_closed(collectorOptions=collector),
        managedBy=_MANAGER,
        networkPolicy=_network_policy(
            kubernetes(f"{_NETWORK}NetworkPolicyPort"), kubernetes(f"{_NETWORK}NetworkPolicyPeer")
        ),
        rayVersion=_TEXT,
        suspend=_FLAG,
        tlsOptions=_closed(enabled=_FLAG),
        upgradeStrategy=_closed(type=_one("Recreate", "None")),
        workerGroupSpecs=_list(
            _closed(
                ("groupName", "maxReplicas", "minReplicas", "template"),
                groupName=_TEXT,
                idleTimeoutSeconds=_int32(),
                labels=_MAP,
                maxReplicas=_int32(),
                minReplicas=_int32(),
                numOfHosts=_int32(),
                priority=_int32(),
                rayStartParams=_MAP,
                replicas=_int32(),
                resources=_MAP,
                scaleStrategy=_closed(workersToDelete=_TEXTS),
                suspend=_FLAG,
                template=embedded("PodTemplateSpec"),
            )
        ),
    )
    job = _closed(
        activeDeadlineSeconds=_int32(),
        backoffLimit=_int32(),
        clusterSelector=_MAP,
        deletionStrategy=_deletion_strategy(),
        entrypoint=_TEXT,
        entrypointNumCpus=_NUMBER,
        entrypointNumGpus=_NUMBER,
        entrypointResources=_TEXT,
        jobId=_TEXT,
        managedBy=_MANAGER,
        metadata=_MAP,
        preRunningDeadlineSeconds=_int32(minimum=1),
        rayClusterSpec=cluster,
        runtimeEnvYAML=_TEXT,
        shutdownAfterJobFinishes=_FLAG,
        submissionMode=_TEXT,
        submitterConfig=_closed(backoffLimit=_int32()),
        submitterPodTemplate=embedded("PodTemplateSpec"),
        suspend=_FLAG,
        ttlSecondsAfterFinished=_int32(),
    )
    return _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=_one("ray.io/v1"),
        kind=_one("RayCronJob"),
        metadata=kubernetes("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
        spec=_closed(
            ("jobTemplate", "schedule"),
            jobTemplate=job,
            schedule=_TEXT,
            suspend=_FLAG,
            timeZone={"type": "string", "minLength": 1},
        ),
        status=_closed(lastScheduleTime={"type": "string", "format": "date-time"}),
    )


def _closed(required: tuple[str, ...] = (), /, **fields: Schema) -> Schema:
    """An object of these fields and no other, as the API server takes it under strict validation."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": fields,
    }


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _one(*choices: str) -> Schema:
    return {"enum": list(choices)}


def _int32(minimum: int = -(2**31)) -> Schema:
    return {"type": "integer", "minimum": minimum, "maximum": 2**31 - 1}


_MANAGER = _one("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")


def _fault_tolerance(source: Schema, quantity: Schema) -> Schema:
    credential = _closed(value=_TEXT, valueFrom=source)
    return _closed(
        activePassiveHeadOptions=_closed(
            enabled=_FLAG,
            leaseDurationSeconds=_int32(1),
            renewDeadlineSeconds=_int32(1),
            retryPeriodSeconds=_int32(1),
        ),
        backend=_one("redis", "rocksdb"),
        externalStorageNamespace=_TEXT,
        redisAddress=_TEXT,
        redisPassword=credential,
        redisUsername=credential,
        storage=_closed(
            accessModes=_TEXTS,
            claimName=_TEXT,
            deletionPolicy=_one("DeleteWithCluster", "Retain"),
            size=quantity,
            storageClassName=_TEXT,
            subPath=_TEXT,
        ),
    )


def _network_policy(port: Schema, peer: Schema) -> Schema:
    ports, peers = _list(port), _list(peer)
    rules = {
        "egressRules": _list(_closed(ports=ports, to=peers)),
        "ingressRules": _list(_closed(ports=ports, **{"from": peers})),
    }
    return _closed(
        head=_closed(**rules),
        mode=_one("DenyAll", "DenyAllIngress", "DenyAllEgress"),
        worker=_closed(**rules),
        workerGroups=_list(_closed(("groupName",), groupName=_TEXT, **rules)),
    )


def _deletion_strategy() -> Schema:
    """Rules, or what to do on success and on failure: one of the two forms, as the definition's rules say."""
    policy = _one("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
    condition = _closed(
        jobDeploymentStatus=_one("Failed"), jobStatus=_one("SUCCEEDED", "FAILED"), ttlSeconds=_int32(0)
    )
    condition["oneOf"] = [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}]
    rule = _closed(("condition", "policy"), condition=condition, policy=policy)
    strategy = _closed(
        deletionRules=_list(rule, minItems=1),
        onFailure=_closed(policy=policy),
        onSuccess=_closed(policy=policy),
    )
    legacy = {"anyOf": [{"required": ["onSuccess"]}, {"required": ["onFailure"]}]}
    strategy["oneOf"] = [
        {"required": ["onSuccess", "onFailure"], "not": {"required": ["deletionRules"]}},
        {"required": ["deletionRules"], "not": legacy},
    ]
    return strategy
