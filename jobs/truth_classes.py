"""Which classes of a ground truth are which classes of a run: by name, with help for names that nearly agree."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from panoptile.jobs.exits import invalid
from panoptile.pipeline.overlaps import ScoredClass


@dataclass(frozen=True, slots=True)
class NamedClass:
    """A class of one side."""

    name: str
    is_thing: bool | None = None
    """None: the other side decides; a thing where it does not either."""


@dataclass(frozen=True, slots=True)
class MatchedClasses:
    """The scored classes: those of the truth."""

    classes: tuple[ScoredClass, ...]
    truth: Mapping[str, int]
    """Scored class id by the truth's name."""
    found: Mapping[str, int]
    """Scored class id by the run's name; classes that the truth does not have are left out."""
    notes: tuple[str, ...]

    @property
    def things(self) -> frozenset[int]:
        return frozenset(c.class_id for c in self.classes if c.is_thing)


def match_classes(
    truth: Sequence[NamedClass], found: Sequence[NamedClass], renames: Mapping[str, str]
) -> MatchedClasses:
    """Classes are the same where their names are, after ``renames`` (truth's name -> run's name).

    A class of the truth that the run does not know is scored as missed everywhere, and told of; one that looks like
    a misspelt name of the run's, or no match at all, ends with exit 2.
    """
    there = {c.name: c for c in found}
    _check_renames(truth, there, renames)
    targets = {c.name: renames.get(c.name, c.name) for c in truth}
    unknown = [name for name, target in targets.items() if target not in there]
    for name in unknown:
        close = difflib.get_close_matches(
            name.lower(), [n.lower() for n in there if n not in targets.values()], 1, 0.75
        )
        if close:
            meant = next(n for n in there if n.lower() == close[0])
            raise invalid(
                f"The ground truth's class {name!r} is none of the run's: did you mean {meant!r}? "
                f"Then pass --map {name!r}={meant!r}."
            )
    if len(unknown) == len(targets):
        raise invalid(
            f"No class of the ground truth ({_some(targets)}) is one of the run's ({_some(there)}): "
            "name what belongs together with --map TRUTH=RUN."
        )
    ids: dict[str, int] = {}
    for target in targets.values():
        ids.setdefault(target, len(ids) + 1)
    kinds = {targets[c.name]: c.is_thing for c in truth if c.is_thing is not None}
    kinds.update({n: c.is_thing for n, c in there.items() if c.is_thing is not None and n not in kinds})
    classes = tuple(ScoredClass(i, name, kinds.get(name, True)) for name, i in ids.items())
    unscored = [name for name in there if name not in ids]
    notes = [f"the run has no class {name!r}: every {name} counts as missed" for name in unknown]
    notes += (
        [f"not scored, because the ground truth has no such class: {_some(unscored)}"] if unscored else []
    )
    return MatchedClasses(
        classes,
        {name: ids[target] for name, target in targets.items()},
        {name: ids[name] for name in there if name in ids},
        tuple(notes),
    )


def parse_renames(texts: Sequence[str]) -> dict[str, str]:
    """``["houses=building"]`` -> {"houses": "building"}; exit 2 for anything else."""
    pairs = [text.partition("=") for text in texts]
    wrong = [t for t, (a, _, b) in zip(texts, pairs, strict=True) if not (a.strip() and b.strip())]
    if wrong:
        raise invalid(f"--map wants TRUTH=RUN, two class names, got {wrong[0]!r}.")
    return {a.strip(): b.strip() for a, _, b in pairs}


def _check_renames(
    truth: Sequence[NamedClass], there: Mapping[str, object], renames: Mapping[str, str]
) -> None:
    names = [c.name for c in truth]
    for a, b in renames.items():
        for name, known, side in ((a, names, "ground truth"), (b, list(there), "run")):
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {_some(known)}."
                raise invalid(f"--map {a}={b}: the {side} has no class {name!r}; {hint}")


def _some(names: Mapping[str, object] | Sequence[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "") or "none"
