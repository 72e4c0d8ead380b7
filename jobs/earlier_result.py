"""What an earlier run of the very same job left in OUT: the whole result, or inputs that are published already."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.input_record import RecordedInputs, load_result
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.results import commits_of, published_sizes, result_key
from panoptile.jobs.state import Finished, finished_before, read_json
from panoptile.jobs.survey import Survey, survey, to_run
from panoptile.pipeline import layout
from panoptile.pipeline.commit import Commit
from panoptile.pipeline.finish import FinishedInput
from panoptile.pipeline.inputs import shown
from panoptile.pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job ended."""

    exit: Exit
    out: str
    prepared: Prepared
    """What was planned in the end: another run may have changed what there was to do."""
    inputs: Sequence[FinishedInput]
    metrics: dict[str, Any]
    already_done: bool = False
    """Nothing was run: the result was there, or another run made it."""
    skipped: bool = False
    """Another run of this job is at work, and --if-running skip asked to leave it alone."""


def earlier_result(store: Store, prepared: Prepared, retry_quarantined: bool) -> Summary | None:
    """The result of an earlier run, where there is nothing left to do; a missing catalogue is."""
    done = published_result(store, prepared, retry_quarantined)
    return done if done is None or has_catalogue(store, prepared) else None


def published_result(store: Store, prepared: Prepared, retry_quarantined: bool) -> Summary | None:
    """The result of an earlier run, where nothing is left to segment or to publish."""
    found = survey(store, prepared.plans, prepared.kept)
    if to_run(store, found, retry_quarantined=retry_quarantined):
        return None
    done = finished_as(store, prepared, found)
    return None if done is None else summary_of(store, prepared, found, done)


def has_catalogue(store: Store, prepared: Prepared) -> bool:
    """Whether the catalogue lists the finished job; True for a job that keeps none. Raises ``OSError`` of the store."""
    if not prepared.spec.incremental:
        return True
    from panoptile.jobs.stac import is_catalogued

    return is_catalogued(store)


def finished_as(store: Store, prepared: Prepared, found: Survey) -> Finished | None:
    """The complete record of this very job over the units that are committed now; None where there is none."""
    units = {
        u.id: found.commits[u.id].sha256 if u.id in found.commits else None
        for plan in prepared.plans
        for u in plan.units()
    }
    done = finished_before(store, prepared.fingerprint, units)
    if done is None or done.link != prepared.link_fields or done.skipped_sha256 != prepared.skipped_sha256:
        return None
    return done


def summary_of(store: Store, prepared: Prepared, found: Survey, done: Finished) -> Summary | None:
    """What that record, and those of its inputs, say; None where one of them does not hold any more."""
    known = known_records(store, prepared, found.commits)
    if len(known) < len(prepared.plans):
        return None
    inputs = RecordedInputs()
    for plan in prepared.plans:
        inputs.add(plan, known[plan.key])
    return Summary(done.exit, store.root, prepared, inputs, done.metrics, already_done=True)


def known_records(store: Store, prepared: Prepared, commits: Mapping[str, Commit]) -> dict[str, bytes]:
    """The records of what is published already and still right, by the inputs' keys."""
    records = store.read_all("_state/results")
    sizes = published_sizes(store)
    known = {}
    for plan in prepared.plans:
        data = records.get(result_key(plan.key), b"")
        own = None if plan.key in prepared.kept.recorded else commits_of(plan, commits)
        if load_result(data, plan, prepared.accepted_names(plan), own, sizes):
            known[plan.key] = data
    return known


def refuse_lost(prepared: Prepared) -> None:
    """Linking anew must not end in leaving out an input whose units cannot be linked: exit 2."""
    for lost in prepared.lost:
        raise invalid(
            f"{shown(lost.uri)} cannot be linked anew: fragments of it are gone, and so is the file. Put it back and run "
            f"panoptile resume {shlex.quote(prepared.spec.out)} first."
        )


def refuse_other_links(store: Store, prepared: Prepared) -> None:
    """A finished result is not replaced because other linking options were given in passing: exit 5."""
    success = read_json(store, layout.SUCCESS) or {}
    wanted, there = prepared.link_fields, success.get("link", {})
    differing = [name for name in wanted if name in there and wanted[name] != there[name]]
    if differing and success.get("fingerprint") == prepared.fingerprint:
        was = ", ".join(f"--{name.replace('_', '-')} {there[name]}" for name in differing)
        raise JobError(
            Exit.OTHER_JOB,
            f"{store.root} holds this job linked with {was}. Use the same options, or `panoptile relink` to link it anew.",
        )
