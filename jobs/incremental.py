"""``--incremental``: an OUT that grows. New and changed inputs are done; what was done stays, whatever the sources list.

An input whose file is gone (archived, moved) keeps its published result as long as that result is whole: its plan
is taken from OUT, nothing of it is read or run again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from panoptile.jobs.job_record import read_job, replace_job
from panoptile.jobs.results import result_key
from panoptile.jobs.survey import survey
from panoptile.pipeline.any_plan import AnyPlan, plan_from_json
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.redaction import redacted_json
from panoptile.pipeline.store import Store, open_store


def holds_job(out: str) -> bool:
    """Whether OUT has a job that can grow. Raises ``OSError`` of the store."""
    try:
        return read_job(open_store(out)) is not None
    except ValueError:
        return False  # what is wrong with OUT is said when it is checked


def kept_plans(store: Store, fingerprint: str, named: Collection[str]) -> tuple[list[AnyPlan], int]:
    """(plans of finished inputs that the sources do not name any more, how many others were left unfinished).

    ``named``: keys of the inputs that the sources name now. Raises ``OSError`` of the store.
    """
    job = read_job(store)
    if job is None or job.get("fingerprint") != fingerprint:
        return [], 0
    stored = store.read_all("_state/plan")
    published = set(store.keys("_state/results"))
    plans, unfinished = [], 0
    for key, data in sorted(stored.items()):
        name = key.rsplit("/", 1)[-1].removesuffix(".json")
        if name in named:
            continue
        if result_key(name) not in published:
            unfinished += 1
            continue
        try:
            plans.append(plan_from_json(data))
        except (ValueError, KeyError, TypeError):
            unfinished += 1
    open_keys = {o.unit.key for o in survey(store, plans).open if o.reason != "failed"}
    whole = [plan for plan in plans if plan.key not in open_keys]
    return whole, unfinished + len(plans) - len(whole)


def grow_job(store: Store, uris: Sequence[str]) -> None:
    """Add inputs to the recorded job. Only the holder of the lease may call it. Raises ``OSError`` of the store."""
    job = read_job(store)
    if job is None:
        return
    recorded = list(job.get("inputs", []))
    known = set(recorded)
    new = [uri for uri in redacted_json(list(uris)) if uri not in known]
    if new:
        job["inputs"] = [*recorded, *new]
        replace_job(store, job)
    reach("job.grown")
