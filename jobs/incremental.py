"""``--incremental``: an OUT that grows. New and changed inputs are done; what was done stays, whatever the sources list.

Of an input that the sources do not name any more (archived, moved) nothing is read or run again; its plan is taken from
OUT. What is published of it is kept as long as it is whole, or else made again from the fragments while all of them
are there. Where neither is so, it is lost: left out, and told of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from panoptile.jobs.input_record import load_result
from panoptile.jobs.job_record import read_job, replace_job
from panoptile.jobs.results import published_keys, published_sizes, result_key
from panoptile.jobs.survey import (
    NONE_KEPT,
    Kept,
    dead_rows,
    is_complete,
    quarantined_units,
    read_commits,
    survey,
)
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan, plan_from_json
from panoptile.pipeline.commit import Commit
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.finish import FinishedInput
from panoptile.pipeline.inputs import output_key
from panoptile.pipeline.redaction import redacted_json
from panoptile.pipeline.store import Store, open_store


@dataclass(frozen=True, slots=True)
class KeptInputs:
    """What becomes of the inputs of OUT that the sources do not name any more."""

    plans: tuple[AnyPlan, ...] = ()
    """Of those that stay in the result."""
    kept: Kept = NONE_KEPT
    lost: tuple[str, ...] = ()
    """URIs of those that were published and can neither be kept nor made again; the key where the URI is not known."""
    unfinished: int = 0
    """How many others were never published, or were lost before."""


def holds_job(out: str) -> bool:
    """Whether OUT has a job that can grow. Raises ``OSError`` of the store."""
    try:
        return read_job(open_store(out)) is not None
    except ValueError:
        return False  # what is wrong with OUT is said when it is checked


def kept_inputs(
    store: Store, fingerprint: str, named: Collection[str], names: Callable[[AnyPlan], Collection[str]]
) -> KeptInputs:
    """Judge the inputs that the sources do not name any more. Raises ``OSError`` of the store.

    Args:
        fingerprint: of the job; in the folder of another one nothing is kept.
        named: keys of the inputs that the sources name now.
        names: what the record of an input may say to be trusted.
    """
    job = read_job(store)
    if job is None or job.get("fingerprint") != fingerprint:
        return KeptInputs()
    plans, unreadable = _unnamed_plans(store, named)
    unnamed = Kept(frozenset(plan.key for plan in plans))
    commits, set_aside = survey(store, plans, unnamed).commits, quarantined_units(store)
    complete = [plan for plan in plans if is_complete(plan, commits, set_aside)]
    keys = frozenset(plan.key for plan in complete)
    rest = [plan for plan in plans if plan.key not in keys]
    if not rest and not unreadable:
        return KeptInputs(tuple(plans), Kept(keys))
    records, sizes = store.read_all("_state/results"), published_sizes(store)
    whole = {}
    for plan in rest:
        found = load_result(records.get(result_key(plan.key)), plan, names(plan), None, sizes)
        if found is not None:
            whole[plan.key] = found
    gone = [plan.key for plan in rest if plan.key not in whole] + unreadable
    published = {_input_of(key) for key in (*records, *sizes)}
    lost = [key for key in gone if key in published]
    uris = {plan.key: plan.uri for plan in rest} | {output_key(uri)[0]: uri for uri in job.get("inputs", ())}
    return KeptInputs(
        tuple(plan for plan in plans if plan.key in keys or plan.key in whole),
        Kept(keys | whole.keys(), _recorded_commits(store, whole)),
        tuple(uris.get(key, key) for key in lost),
        len(gone) - len(lost),
    )


def _unnamed_plans(store: Store, named: Collection[str]) -> tuple[list[AnyPlan], list[str]]:
    """(plans of the inputs in OUT that are not named, keys of those whose plan is gone or cannot be read)."""
    stored = {_input_of(key): data for key, data in store.read_all("_state/plan").items()}
    plans, unreadable = [], []
    for key in sorted((stored.keys() | published_keys(store)) - set(named)):
        try:
            plans.append(plan_from_json(stored[key]))
        except (ValueError, KeyError, TypeError):
            unreadable.append(key)
    return plans, unreadable


def _input_of(key: str) -> str:
    """The key of the input that a file of OUT belongs to: it names the file, or the folder of those below "rasters" or
    "video"."""
    top, name, *_ = key.split("/")
    if top == "_state":
        name = key.rsplit("/", 1)[-1]
    return name if top in ("rasters", "video") else name.rsplit(".", 1)[0]


def _recorded_commits(store: Store, whole: Mapping[str, FinishedInput]) -> dict[str, dict[str, Commit]]:
    """See :attr:`Kept.recorded`. Of a commit that is gone, the dead letter knows the items that failed."""
    if not whole:
        return {}
    failed = defaultdict(list)
    for row in dead_rows(store):
        if row["unit"] and row.get("tile") is not None:
            failed[row["unit"]].append(int(row["tile"]))
    committed = read_commits(store)
    found: dict[str, dict[str, Commit]] = {}
    for key, finished in whole.items():
        found[key] = {}
        for unit, sha256 in finished.commits.items():
            commit = committed.get(layout.commit_key(unit))
            if commit is None or commit.sha256 != sha256:
                fragment = layout.fragment_key(unit, sha256)
                commit = Commit(unit.id, fragment, sha256, 0, tuple(sorted(failed[unit.id])))
            found[key][unit.id] = commit
    return found


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
