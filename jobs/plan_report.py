"""What ``panoptile plan`` prints: what would run, what would not and why, and what it would cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from panoptile.jobs.console import counted
from panoptile.jobs.estimate import Estimate, estimate_text
from panoptile.jobs.job_record import read_job
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.report_text import plan_fields, plan_text
from panoptile.jobs.resume import NAMED, Explanation, explain_job, unpublished_lines
from panoptile.jobs.state import read_errors
from panoptile.pipeline.inputs import shown
from panoptile.pipeline.nodata_share import nodata_share
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.store import open_store

LOOKED_AT = 200
"""Most rasters whose share of nodata is looked at, spread evenly."""
READERS = 8
_WHY = {
    "unchanged": "skipped: size and time (or content) are those with which every unit was done",
    "gone": "not named by the sources any more: the result is kept",
}
"""States of inputs of which nothing would be run."""


def pending(prepared: Prepared) -> Explanation | None:
    """What of the job is not done yet; None where OUT holds no job. Raises :class:`JobError`."""
    store = open_store(prepared.spec.out)
    with read_errors(prepared.spec.out):
        if read_job(store) is None:
            return None
        return explain_job(store, prepared, retry_quarantined=True)


def to_do(prepared: Prepared, left: Explanation | None) -> list[Unit]:
    """The units that the run would do."""
    if left is None:
        return [unit for plan in prepared.plans for unit in plan.units()]
    return [opened.unit for opened in left.open]


def nodata_shares(prepared: Prepared) -> dict[str, float]:
    """Share of pixels without input by the raster's key, for at most 200 rasters."""
    rasters = [p for p in prepared.plans if isinstance(p, RasterPlan)]
    chosen = rasters[:: max(1, -(-len(rasters) // LOOKED_AT))]

    def look(plan: RasterPlan) -> tuple[str, float | None]:
        try:
            return plan.key, nodata_share(plan.info)
        except OSError:
            return plan.key, None  # the run itself will say what is wrong with it

    with ThreadPoolExecutor(READERS) as threads:
        return {key: share for key, share in threads.map(look, chosen) if share is not None}


def full_plan_text(
    prepared: Prepared, shares: dict[str, float], left: Explanation | None, found: Estimate | None
) -> str:
    """The plan for people."""
    lines = [plan_text(prepared)]
    if shares:
        pixels = {p.key: p.pixels for p in prepared.plans}
        mean = sum(s * pixels[k] for k, s in shares.items()) / max(1, sum(pixels[k] for k in shares))
        lines.append(f"no input: about {mean:.0%} of the pixels ({counted(len(shares), 'raster')} looked at)")
    if left is not None:
        lines += [_pending_line(prepared, left), *unpublished_lines(left), *_unchanged_lines(prepared, left)]
    lines += _left_out_lines(prepared)
    if found is not None:
        lines.append(estimate_text(found))
    return "\n".join(lines)


def _left_out_lines(prepared: Prepared) -> list[str]:
    """How many inputs are left out; the notes name them."""
    lost = len(prepared.lost)
    skipped = len(prepared.skipped) - lost
    lines = []
    if skipped:
        lines.append(f"skipped: {counted(skipped, 'input')} that cannot be segmented (--skip-invalid)")
    if lost:
        lines.append(
            f"lost: {counted(lost, 'input')} whose result can neither be kept nor made again: the run ends with exit 3"
        )
    return lines


def _pending_line(prepared: Prepared, left: Explanation) -> str:
    if left.refused:
        return left.refused
    done = left.units - len(left.open)
    why = ", ".join(f"{count:,} {reason}" for reason, count in left.reasons().items())
    nothing = "" if left.unpublished or prepared.lost else "; nothing is left to do"
    return f"done already: {done:,} of {left.units:,} units" + (f"; to do: {why}" if why else nothing)


def input_states(prepared: Prepared, left: Explanation) -> dict[str, dict[str, Any]]:
    """By input key: its state, and how many of its units would be run, by reason."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for opened in left.open:
        reasons[opened.unit.key][opened.reason] += 1
    found, unpublished = {}, set(left.unpublished)
    for plan in prepared.plans:
        why = reasons[plan.key]
        if why:
            state = "to do"
        elif plan.uri in unpublished:
            state = "to publish"
        else:
            state = "gone" if plan.key in prepared.kept.keys else "unchanged"
        found[plan.key] = {"state": state, "open_units": why.total(), "reasons": dict(why)}
    return found


def _unchanged_lines(prepared: Prepared, left: Explanation) -> list[str]:
    """Inputs of which nothing would be run, and why."""
    states = input_states(prepared, left)
    lines = []
    for state, why in _WHY.items():
        uris = [shown(plan.uri) for plan in prepared.plans if states[plan.key]["state"] == state]
        if uris:
            lines.append(f"{state}: {len(uris):,} input{'s' if len(uris) != 1 else ''} {why}")
            lines += [f"  {uri}" for uri in uris[:NAMED]]
            lines += [f"  … and {len(uris) - NAMED:,} more (--json lists all)"] if len(uris) > NAMED else []
    return lines


def full_plan_fields(
    prepared: Prepared, shares: dict[str, float], left: Explanation | None, found: Estimate | None
) -> dict[str, Any]:
    """The plan as JSON."""
    fields = plan_fields(prepared)
    states = {} if left is None else input_states(prepared, left)
    for one in fields["inputs"]:
        one |= states.get(one["key"], {})
        if one["key"] in shares:
            one["nodata_share"] = shares[one["key"]]
    fields["skipped"] = [{"uri": s.uri, "stage": s.stage, "message": s.message} for s in prepared.skipped]
    if left is not None:
        fields["pending"] = {k: v for k, v in left.to_json().items() if k != "explained"}
    if found is not None:
        fields["estimate"] = {**asdict(found), "replica_hours": found.replica_hours}
    return fields
