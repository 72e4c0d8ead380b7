"""What of a job is not done yet, and why: read from the store alone, in a few listings.

A unit is done where its commit can be read, its fragment lies there in the committed size, and its input is what it
was when it was planned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from panoptile.jobs.input_content import content_key, is_same_content
from panoptile.jobs.state import parquet_rows
from panoptile.pipeline import layout
from panoptile.pipeline.commit import Commit, parse_commit
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.plan import WRITTEN, InputPlan, Unit, without
from panoptile.pipeline.store import Store

Reason = Literal[
    "missing", "failed", "changed input", "changed model", "changed parameter", "damaged fragment"
]


@dataclass(frozen=True, slots=True)
class OpenUnit:
    """A unit that is not done."""

    unit: Unit
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is done and what is not."""

    commits: dict[str, Commit]
    """Of every unit that is committed in full, by unit id; those with failed tiles too."""
    open: tuple[OpenUnit, ...]
    """In the order of the plans."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Inputs that the sources do not name any more, and that stay in the result: none of their units is run."""

    keys: frozenset[str] = frozenset()
    recorded: Mapping[str, Mapping[str, Commit]] = field(default_factory=dict)
    """Of those whose published result is whole and whose fragments are not: input key -> unit id -> what was
    committed when it was published. It counts in place of what is committed now."""


NONE_KEPT = Kept()


def survey(store: Store, plans: Sequence[InputPlan], kept: Kept = NONE_KEPT) -> Survey:
    """Look at every unit of the plans. Raises ``OSError`` of the store."""
    stored_plans = store.read_all("_state/plan")
    commits = read_commits(store)
    fragments = {f.key: f.size for f in store.walk("_state/data")}
    found: list[OpenUnit] = []
    whole: dict[str, Commit] = {}
    for plan in plans:
        if plan.key in kept.recorded:
            whole.update(kept.recorded[plan.key])
            continue
        stored = stored_plans.get(layout.plan_key(plan.key))
        changed = None if plan.key in kept.keys else input_change(store, plan, stored)
        for unit in plan.units():
            opened = _look(unit, commits, fragments, changed)
            commit = commits.get(layout.commit_key(unit))
            if commit is not None and (opened is None or opened.reason == "failed"):
                whole[unit.id] = commit
            if opened is not None and plan.key not in kept.keys:
                found.append(opened)
    return Survey(whole, tuple(found))


def _look(
    unit: Unit, commits: dict[str, Commit | None], fragments: dict[str, int], changed: str | None
) -> OpenUnit | None:
    key = layout.commit_key(unit)
    if key not in commits:
        return OpenUnit(unit, "missing")
    if changed is not None:
        return OpenUnit(unit, "changed input", changed)
    commit = commits[key]
    if commit is None:
        return OpenUnit(unit, "damaged fragment", "its commit cannot be read")
    size = fragments.get(commit.fragment)
    if size != commit.size:
        what = "is gone" if size is None else f"has {size} bytes, {commit.size} were committed"
        return OpenUnit(unit, "damaged fragment", f"{commit.fragment} {what}")
    if commit.failed_tiles:
        return OpenUnit(unit, "failed", f"{len(commit.failed_tiles)} of its items failed for good")
    return None


def read_commits(store: Store) -> dict[str, Commit | None]:
    """Every commit by its key; None for one that cannot be read."""
    found: dict[str, Commit | None] = {}
    for key, data in store.read_all("_state/commits").items():
        try:
            found[key] = parse_commit(data)
        except ValueError:
            found[key] = None
    return found


def is_complete(plan: InputPlan, commits: Mapping[str, Commit], set_aside: Collection[str]) -> bool:
    """Whether an input can be published from its fragments: each unit is committed in full or was given up for good.

    Args:
        commits: :attr:`Survey.commits`.
        set_aside: :func:`quarantined_units`.
    """
    return all(u.id in commits or u.id in set_aside for u in plan.units())


def to_run(store: Store, found: Survey, *, retry_quarantined: bool) -> list[OpenUnit]:
    """The open units that this run will do.

    ``retry_quarantined=False`` leaves out what an earlier run set aside for good: whole units of its dead letter, and
    units that are committed with failed items.
    """
    if retry_quarantined:
        return list(found.open)
    set_aside = quarantined_units(store)
    return [
        o
        for o in found.open
        if o.reason != "failed" and not (o.reason == "missing" and o.unit.id in set_aside)
    ]


def open_units(
    store: Store,
    plans: Sequence[InputPlan],
    check_held: Callable[[], None],
    *,
    kept: Kept = NONE_KEPT,
    retry_quarantined: bool = True,
) -> list[Unit]:
    """Write the plans and return the units to run; what is stale is withdrawn first.

    Only the holder of the lease may call it; ``check_held`` raises where the lease is lost. A folder whose units are
    about to be redone loses ``_SUCCESS.json`` before anything else, so that nobody takes the old result for the new one.
    """
    todo = to_run(store, survey(store, plans, kept), retry_quarantined=retry_quarantined)
    check_held()
    if todo:
        store.delete(layout.SUCCESS)
    for opened in todo:
        if opened.reason != "missing":
            check_held()
            store.delete(layout.commit_key(opened.unit))
    reach("state.withdrawn")
    stored = store.read_all("_state/plan")
    for plan in plans:
        key, data = layout.plan_key(plan.key), plan.to_json()
        if input_change(store, plan, stored.get(key)) is not None:
            store.delete(content_key(plan.key))  # or a file put back later would pass for what was segmented
        if stored.get(key) != data:
            store.put_bytes(key, data)
    reach("state.planned")
    return [o.unit for o in todo]


def withdraw_damaged(store: Store, plans: Sequence[InputPlan], check_held: Callable[[], None]) -> None:
    """Remove the commits without a whole fragment of inputs that the job no longer has: nothing else would ever do so.

    Only the holder of the lease may call it; ``check_held`` raises where the lease is lost. ``_SUCCESS.json`` goes first:
    the result that it speaks of may hold one of them.
    """
    check_held()
    store.delete(layout.SUCCESS)
    keys = {layout.commit_key(unit) for plan in plans for unit in plan.units()}
    fragments = {f.key: f.size for f in store.walk("_state/data")}
    for key, commit in read_commits(store).items():
        if key not in keys and (commit is None or fragments.get(commit.fragment) != commit.size):
            check_held()
            store.delete(key)


def explain(store: Store, plans: Sequence[InputPlan], kept: Kept = NONE_KEPT) -> Survey:
    """Like :func:`survey`, and units that were tried and failed are told from those that are missing."""
    found = survey(store, plans, kept)
    failures = {row["unit"]: row for row in dead_rows(store) if row["unit"]}
    tried = _tried_units(store)
    told = []
    for o in found.open:
        if o.reason == "missing" and o.unit.id in failures:
            row = failures[o.unit.id]
            told.append(OpenUnit(o.unit, "failed", f"quarantined in stage {row['stage']}: {row['message']}"))
        elif o.reason == "missing" and o.unit.id in tried:
            told.append(OpenUnit(o.unit, "failed", f"{tried[o.unit.id]} failed attempts"))
        else:
            told.append(o)
    return replace(found, open=tuple(told))


def _tried_units(store: Store) -> dict[str, int]:
    """Failed attempts on record, by unit id."""
    counts: dict[str, int] = {}
    for record in store.walk("_state/dead"):
        unit = record.key.split("/")[2]
        counts[unit] = counts.get(unit, 0) + 1
    return counts


def quarantined_units(store: Store) -> set[str]:
    """Ids of the units that the last finished run set aside as a whole."""
    return {row["unit"] for row in dead_rows(store) if row["unit"] and row.get("tile") is None}


def dead_rows(store: Store) -> list[dict[str, Any]]:
    """The rows of the dead letter; none where there is none or it cannot be read."""
    try:
        return parquet_rows(store.read_bytes(layout.DEADLETTER)) or []
    except FileNotFoundError:
        return []


def input_change(store: Store, plan: InputPlan, stored: bytes | None) -> str | None:
    """What of an input is not as it was planned, such as "size_bytes"; None where nothing is, or nothing is stored."""
    now = plan.to_json()
    if stored is None or _is_same_input(stored, now):
        return None
    differing = sorted(_differing(stored, now))
    if differing == ["mtime_ns"] and is_same_content(store, plan):
        return None
    named = ("content" if name in ("mtime_ns", "etag") else name for name in differing)
    return ", ".join(dict.fromkeys(named)) or "its plan"


def _is_same_input(stored: bytes, now: bytes) -> bool:
    """Whether two plans are equal but for the time at which an object was written, which plans did not always hold."""
    if stored == now:
        return True
    try:
        return bool(without(json.loads(stored), WRITTEN) == without(json.loads(now), WRITTEN))
    except ValueError:
        return False


def _differing(stored: bytes, now: bytes) -> Iterable[str]:
    """Names of the fields, at the lowest level, in which two plans differ."""
    try:
        before, after = (_flat(without(json.loads(plan), WRITTEN)) for plan in (stored, now))
    except ValueError:
        return ["its plan"]
    return {k.rsplit(".", 1)[-1] for k in before.keys() | after.keys() if before.get(k) != after.get(k)}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{name}.{key}" if name else str(key)))
    return flat
