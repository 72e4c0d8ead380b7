"""Runs on the cluster before a job: does every node hold this panoptile, and see the job's local files?

``python -m panoptile.jobs.cluster_probe REQUEST`` prints one line of JSON. What is local to one machine would
otherwise be found out unit by unit, and a local OUT would be scattered over the nodes.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

ANSWER = "panoptile-probe: "
NODE_SECONDS = 120.0


def look(paths: list[str], tokens: list[str]) -> dict[str, Any]:
    """What one node sees: the version it would run, the paths it misses, the tokens it can read."""
    try:
        found = version("panoptile")
    except PackageNotFoundError:
        found = ""
    return {
        "version": found,
        "missing": [p for p in paths if not os.path.exists(p)],
        "unseen": [t for t in tokens if not os.path.exists(t)],
    }


def main(text: str) -> None:
    """Ask every living node, and print what each says."""
    request = json.loads(text)
    import ray
    from ray.exceptions import NodeDiedError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(log_to_driver=False)
    nodes = [n for n in ray.nodes() if n["Alive"]]
    task = ray.remote(num_cpus=0)(look)
    refs = {
        node["NodeID"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(request["paths"], request["tokens"])
        for node in nodes
    }
    done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=NODE_SECONDS)
    answers = []
    for node in nodes:
        ref = refs[node["NodeID"]]
        try:
            seen = ray.get(ref, timeout=10) if ref in done else None
        except (NodeDiedError, TaskUnschedulableError):
            continue  # it died a moment ago, and Ray still named it: a job does without it too
        resources = {k: v for k, v in node["Resources"].items() if k in ("CPU", "GPU") or "accelerator" in k}
        answers.append({"node": node["NodeManagerHostname"], "resources": resources, "seen": seen})
    print(ANSWER + json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
