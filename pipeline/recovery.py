"""What to do about a unit in trouble: retry, find the guilty items, or give up. Pure; the driver obeys.

Three kinds of trouble. *An item fails* (a block that cannot be decoded): the others' fragment is kept, the item
alone is tried again, and in the end the fragment is committed without it. *A unit fails as a whole* (its input
cannot be opened): it is tried again as a whole. *A worker is lost* (crash, hang, out of memory): two units were
there, so each is tried again alone, and only a unit that loses a worker of its own is guilty; its halves, quarters,
… are probed until the guilty items are known, and the unit is run once more without them. Probes write nothing,
so a unit has one fragment and one commit, with the same bytes whatever was lost on the way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from panoptile.pipeline.attempt import Attempt, FragmentRef, UnitReport
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure

MOST_RETRY_SECONDS = 60.0
"""Longest pause before a try: the twentieth would else wait for a day."""
MOST_DOUBLINGS = 20
PROBE_SECONDS = 60.0
"""A probe may take its share of the unit's time, and at least this (or the unit's time, if that is less)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When the driver gives up."""

    attempts: int = 3
    """Tries of a unit, and of an item that fails."""
    max_failures: int = 0
    """Units with anything lost, above which the run stops."""
    unit_timeout: float = 1800.0
    """Seconds that a unit may run."""
    lost_timeout: float = 300.0
    """Seconds without any ready worker."""
    losses: int = 16
    """Workers that one unit may cost before it is given up as a whole."""
    retry_seconds: float = 0.25
    """Pause before the second try of what failed; doubled before each further one."""
    drain_seconds: float = 30.0
    """How long running units may go on once the run is to stop."""


@dataclass(frozen=True, slots=True)
class DeadItem:
    """An item, or a unit, that could not be done: a row of the dead letter."""

    unit: Unit
    item: int | None
    """Number of the tile or frame; None: the whole unit."""
    stage: str
    error_type: str
    message: str
    traceback: str
    attempts: int
    """How often it was tried, probes included."""
    first_time: float
    """Of the first failure, seconds since 1970."""
    last_time: float
    worker: str


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Run this attempt."""

    attempt: Attempt
    after: float
    """Seconds to wait before."""


@dataclass(frozen=True, slots=True)
class CommitParked:
    """Commit what an earlier attempt has put, without the items that keep failing."""

    fragment: FragmentRef
    report: UnitReport
    """Of the attempt that put it."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The unit is quarantined as a whole."""


Decision = TryAgain | CommitParked | GiveUp


class Case:
    """One unit in trouble."""

    def __init__(self, unit: Unit, policy: Policy) -> None:
        self.unit, self._policy = unit, policy
        self._tries = 0
        """Attempts that failed by this unit's own doing, as far as is known."""
        self._shared = 0
        """Attempts that were lost together with another unit, which may be the guilty one."""
        self._losses = 0
        self._began = self._ended = time.time()
        self._alone = False
        self._last: Failure | None = None
        self._probes: list[tuple[int, ...]] = []
        self._is_isolating = False
        self._parked: UnitReport | None = None
        self._lost_items: dict[int, DeadItem] = {}

    # --- what came back ---

    def failed(self, attempt: Attempt, failure: Failure) -> Decision:
        """An attempt failed as a whole."""
        self._last, self._ended = failure, time.time()
        if failure.lost and not attempt.alone:
            self._shared += 1
        else:
            self._tries += 1
        if failure.lost:
            return self._after_loss(attempt)
        if self._is_isolating and attempt.only is not None:
            return self._next_probe()  # it fails, but it does not kill: the last attempt names it
        if attempt.only is not None:
            return self._after_item_probe(attempt, set(attempt.only))
        if self._tries >= self._policy.attempts:
            return GiveUp()
        return self._later(self._whole())

    def incomplete(self, attempt: Attempt, report: UnitReport) -> Decision:
        """An attempt came back without a commit: a probe, or items failed that it was not to tolerate."""
        if self._is_isolating and attempt.only is not None:
            return self._next_probe()
        self._tries += 1
        self._ended = time.time()
        failing = {f.item for f in report.failures}
        if attempt.only is not None:
            return self._after_item_probe(attempt, failing)
        self._parked = report
        return self._later(self._probe(tuple(sorted(failing))))

    def dead_items(self, report: UnitReport | None) -> list[DeadItem]:
        """What was lost of a unit that is settled; ``report`` is of the attempt that was committed, if any."""
        if report is None:
            return [self._dead(None, self._last, self._tries)] if self._last is not None else []
        found = dict(self._lost_items)
        is_parked = report.fragment is not None  # then the probes have counted; else this attempt counts too
        for f in report.failures:
            failure = Failure(f.stage, f.error_type, f.message, f.traceback, report.worker)
            found[f.item] = self._dead(f.item, failure, self._tries + (not is_parked))
        return [found[item] for item in sorted(found)]

    # --- items that fail ---

    def _after_item_probe(self, attempt: Attempt, still: set[int]) -> Decision:
        """The items that failed were tried again on their own."""
        parked = self._parked
        if parked is None or parked.fragment is None or still != set(attempt.items):
            self._parked = None  # some are healed, or the fragment is gone: all of it once more
            return self._later(self._whole())
        if self._tries >= self._policy.attempts:
            return CommitParked(parked.fragment, parked)
        return self._later(attempt)

    # --- workers that are lost ---

    def _after_loss(self, attempt: Attempt) -> Decision:
        self._losses += 1
        if self._losses > self._policy.losses:
            return GiveUp()
        if not attempt.alone:
            self._alone = True
            return TryAgain(replace(attempt, alone=True), 0.0)
        self._parked = None
        items = attempt.items
        if len(items) > 1:
            self._is_isolating = True
            middle = len(items) // 2
            self._probes += [items[middle:], items[:middle]]
            return self._next_probe()
        if self._tries + self._shared < self._policy.attempts:
            return TryAgain(attempt, 0.0)
        assert self._last is not None
        self._lost_items[items[0]] = self._dead(items[0], self._last, self._tries)
        return self._next_probe()

    def _next_probe(self) -> Decision:
        if self._probes:
            return TryAgain(self._probe(self._probes.pop()), 0.0)
        self._is_isolating = False
        if len(self._lost_items) == self.unit.count:
            return GiveUp()
        return TryAgain(replace(self._whole(), tolerant=True), 0.0)

    # --- attempts ---

    def _whole(self) -> Attempt:
        return Attempt(
            self.unit,
            skip=tuple(sorted(self._lost_items)),
            tolerant=self._tries + 1 >= self._policy.attempts,
            alone=self._alone,
            seconds=self._policy.unit_timeout,
        )

    def _probe(self, items: tuple[int, ...]) -> Attempt:
        share = self._policy.unit_timeout * len(items) / self.unit.count
        seconds = max(share, min(PROBE_SECONDS, self._policy.unit_timeout))
        return Attempt(self.unit, only=items, alone=self._alone, seconds=seconds)

    def _later(self, attempt: Attempt) -> TryAgain:
        doubled = self._policy.retry_seconds * 2 ** min(max(0, self._tries - 1), MOST_DOUBLINGS)
        return TryAgain(attempt, min(doubled, MOST_RETRY_SECONDS))

    def _dead(self, item: int | None, failure: Failure, tries: int) -> DeadItem:
        return DeadItem(
            self.unit,
            item,
            failure.stage,
            failure.error_type,
            failure.message,
            failure.traceback,
            tries + self._shared,
            self._began,
            self._ended,
            failure.worker,
        )


def first_attempt(unit: Unit, policy: Policy) -> Attempt:
    """How a unit is tried first."""
    return Attempt(unit, tolerant=policy.attempts == 1, seconds=policy.unit_timeout)
