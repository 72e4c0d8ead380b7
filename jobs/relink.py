"""``panoptile relink``: link the segments of a finished job's videos anew, with other options and without the network.

The same run as ``segment``'s, with nothing left to segment: it holds the lease, publishes, and lets ``_SUCCESS.json``
point to the new result last. Rasters of the job stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary, refuse_lost
from panoptile.jobs.exits import invalid
from panoptile.jobs.prepare import Prepared, prepare
from panoptile.jobs.resume import recorded_spec
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import MINVIS_IGNORES, JobSpec
from panoptile.jobs.survey import survey, to_run
from panoptile.pipeline.store import Store


def prepare_relink(store: Store, changes: Mapping[str, Any]) -> Prepared:
    """The job of the folder with other linking options. Raises :class:`JobError`: exit 2 or 5, nothing started."""
    recorded = recorded_spec(store, {})
    spec = _changed(recorded, changes)
    if spec.link == "minvis" and not recorded.keeps_all_queries:
        raise invalid(
            "Linking by minvis needs the states of all queries, which this run did not keep: segment again with "
            "--all-queries, into another folder."
        )
    prepared = prepare(spec)
    if not prepared.videos:
        raise invalid(f"{store.root} holds a job without videos: there is nothing to link.")
    refuse_lost(prepared)
    open_units = to_run(store, survey(store, prepared.plans, prepared.kept), retry_quarantined=False)
    if open_units:
        raise invalid(
            f"{len(open_units)} units of {store.root} are not done: finish it first, panoptile resume {store.root}."
        )
    return prepared


def _changed(recorded: JobSpec, changes: Mapping[str, Any]) -> JobSpec:
    """The recorded job, which stays the same job: what was kept of the queries is kept.

    Options that minvis has no use for go when it is chosen.
    """
    fields = {**changes, "all_queries": recorded.keeps_all_queries, "if_running": "fail"}
    if changes.get("link") == "minvis":
        fields = {n: JobSpec.__dataclass_fields__[n].default for n in MINVIS_IGNORES} | fields
    try:
        return dataclasses.replace(recorded, **fields)
    except ValueError as e:
        raise invalid(str(e)) from e


def relink(prepared: Prepared, console: Console) -> Summary:
    """Link and publish; the folder's job names the new options then, so that ``resume`` finds them."""
    return run_job(prepared, console, retry_quarantined=False, relink=True)
