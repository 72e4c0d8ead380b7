"""``panoptile resume``: the job that a folder holds, from what it recorded of itself."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from panoptile.jobs.console import counted
from panoptile.jobs.earlier_result import known_records
from panoptile.jobs.exits import Exit, invalid
from panoptile.jobs.job_record import job_of, read_job
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.spec import JobSpec
from panoptile.jobs.survey import OpenUnit, Reason, Survey, explain, quarantined_units
from panoptile.pipeline.inputs import shown
from panoptile.pipeline.store import Store

SHOWN = 50
"""Units that the text lists; --json lists all."""
NAMED = 20
"""Most inputs of a kind that the text names."""


def recorded_spec(store: Store, changes: Mapping[str, Any]) -> JobSpec:
    """The job in the folder with some options changed. Raises :class:`JobError` (exit 2) where there is none."""
    job = job_of(store)
    try:
        # A job that grows looks again at what its sources name now; any other has the inputs that it began with.
        sources = job["spec"]["sources"] if job["spec"].get("incremental") else job["inputs"]
        spec = JobSpec.from_json({**job["spec"], "sources": sources, "out": store.root})
        return dataclasses.replace(spec, **changes)
    except (KeyError, TypeError, ValueError) as e:
        raise invalid(f"The job in {store.root} cannot be resumed: {e}") from e


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why units would be run, if the job were resumed."""

    units: int
    """Of the whole job."""
    open: tuple[OpenUnit, ...]
    left: frozenset[str]
    """Ids of open units that ``resume`` leaves alone without --retry-quarantined."""
    refused: str
    """Why the job would be refused (exit 5); empty where it would not."""
    unpublished: tuple[str, ...] = ()
    """URIs of inputs that would be published, though none of their units is open: a file of the result is gone, say."""

    def to_json(self) -> dict[str, Any]:
        return {
            "units": self.units,
            "open": len(self.open),
            "reasons": self.reasons(),
            "refused": self.refused,
            "unpublished": list(self.unpublished),
            "explained": [
                {"unit": o.unit.id, "reason": o.reason, "detail": o.detail, "runs": self.runs(o)}
                for o in self.open
            ],
        }

    def reasons(self) -> dict[Reason, int]:
        return dict(Counter(o.reason for o in self.open).most_common())

    def runs(self, opened: OpenUnit) -> bool:
        return not self.refused and opened.unit.id not in self.left


def explain_job(store: Store, prepared: Prepared, *, retry_quarantined: bool) -> Explanation:
    """Why each unit that is not done is not done, or would not count. Raises ``OSError`` of the store."""
    job = read_job(store) or {}
    differing = _differing(job.get("fields", {}), prepared)
    if differing:
        return _another_job(prepared, differing)
    found = explain(store, prepared.plans, prepared.kept)
    left: set[str] = set()
    if not retry_quarantined:
        whole = quarantined_units(store)
        committed = {key.rsplit("/", 1)[-1].removesuffix(".json") for key in store.keys("_state/commits")}
        left = {o.unit.id for o in found.open if o.reason == "failed" and o.unit.id in whole | committed}
    return Explanation(prepared.units, found.open, frozenset(left), "", _unpublished(store, prepared, found))


def _unpublished(store: Store, prepared: Prepared, found: Survey) -> tuple[str, ...]:
    """See :attr:`Explanation.unpublished`."""
    known = known_records(store, prepared, found.commits)
    others = known.keys() | {o.unit.key for o in found.open}
    return tuple(plan.uri for plan in prepared.plans if plan.key not in others)


def _differing(recorded: Mapping[str, Any], prepared: Prepared) -> dict[str, str]:
    """Fingerprint fields that are not as recorded, each with "old -> new"."""
    now = prepared.spec.fingerprint_fields(prepared.model.sha256)
    return {
        name: f"{name}: {_short(recorded.get(name))} -> {_short(now.get(name))}"
        for name in sorted(recorded.keys() | now.keys())
        if recorded.get(name) != now.get(name)
    }


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _another_job(prepared: Prepared, differing: Mapping[str, str]) -> Explanation:
    model = differing.get("model_sha256")
    reason: Reason = "changed parameter" if model is None else "changed model"
    detail = ", ".join(differing.values())
    units = tuple(OpenUnit(u, reason, detail) for plan in prepared.plans for u in plan.units())
    refused = (
        f"{prepared.spec.out} holds the job with other {', '.join(differing)}: segment and resume refuse it (exit "
        f"{int(Exit.OTHER_JOB)}); give another folder with -o."
    )
    return Explanation(prepared.units, units, frozenset(), refused)


def explanation_text(explanation: Explanation) -> str:
    """What ``resume --explain`` prints."""
    reasons = " · ".join(f"{reason} {count:,}" for reason, count in explanation.reasons().items())
    lines = [
        f"{len(explanation.open):,} of {explanation.units:,} units are to do"
        + (f": {reasons}" if reasons else "")
    ]
    lines += unpublished_lines(explanation)
    for o in explanation.open[:SHOWN]:
        left = (
            "" if explanation.runs(o) or explanation.refused else "  (left alone without --retry-quarantined)"
        )
        lines.append(f"  {o.unit.id}  {o.reason}{': ' if o.detail else ''}{o.detail}{left}")
    if len(explanation.open) > SHOWN:
        lines.append(f"  … and {len(explanation.open) - SHOWN:,} more (--json lists all)")
    if explanation.refused:
        lines.append(explanation.refused)
    return "\n".join(lines)


def unpublished_lines(explanation: Explanation) -> list[str]:
    """What ``plan`` and ``resume --explain`` say of inputs that are done and would be published; none where none is."""
    uris = explanation.unpublished
    if not uris:
        return []
    return [
        f"to publish: {counted(len(uris), 'input')} whose units are done, and of whose result files are missing"
    ] + [
        f"  {shown(uri)}" if i < NAMED else f"  … and {len(uris) - NAMED:,} more (--json lists all)"
        for i, uri in enumerate(uris[: NAMED + 1])
    ]
