"""A pool without threads or pixels: each item does what the test says, as a worker would."""

from __future__ import annotations

import itertools
import time
from collections import Counter

from panoptile.pipeline.attempt import Attempt, FragmentRef, ItemFailure, UnitError, UnitReport
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, Outcome, Seat, describe, seats_with_room, total_room


def report(unit: Unit, **fields: object) -> UnitReport:
    """A report of nothing in particular."""
    values = {"tiles": unit.count, "worker": "w"} | fields
    return UnitReport(
        unit=unit, empty_tiles=0, pixels=0, segments=0, queries_used_max=0, queries_used_sum=0,
        read_seconds=0.0, infer_seconds=0.0, encode_seconds=0.0, infer_started=0.0, infer_ended=0.0,
        **values,  # type: ignore[arg-type]
    )  # fmt: skip


class ScriptedPool:
    """Workers that answer last in, first out: the order of completion is not that of submission."""

    def __init__(
        self,
        *,
        workers: int = 2,
        failing_units: dict[Unit, int] | None = None,
        failing_items: dict[tuple[Unit, int], int] | None = None,
        killers: set[tuple[Unit, int]] | None = None,
        hanging: set[tuple[Unit, int]] | None = None,
        keep: bool = True,
    ) -> None:
        """``keep`` False: the pool forgets what it did, so that it does not grow."""
        self._keep = keep
        self.seats = [Seat(f"w{i}") for i in range(workers)]
        self.failing_units = Counter(failing_units or {})
        """How often the unit fails as a whole."""
        self.failing_items = Counter(failing_items or {})
        """How often the item fails."""
        self.killers, self.hanging = killers or set(), hanging or set()
        self.attempts: list[Attempt] = []
        self.deaths = 0
        self.most_running = 0
        self.committed: dict[Unit, tuple[int, ...]] = {}
        """Failed items of each unit that a worker has committed."""
        self._tickets = itertools.count()
        self._lost: list[Outcome] = []

    def start(self) -> None: ...

    def room(self, *, alone: bool = False, spare: bool = False) -> int:
        return total_room(self.seats, alone=alone, spare=spare)

    def size(self) -> int:
        return len(self.seats)

    def submit(self, attempt: Attempt, *, spare: bool = False) -> None:
        seat = seats_with_room(self.seats, alone=attempt.alone, spare=spare)[0]
        seat.running[next(self._tickets)] = (attempt, time.monotonic())
        if self._keep:
            self.attempts.append(attempt)
        self.most_running = max(self.most_running, sum(len(s.running) for s in self.seats))

    def wait(self, timeout: float) -> list[Outcome]:
        if self._lost:
            lost, self._lost = self._lost, []
            return lost
        busy = [
            (ticket, seat) for seat in self.seats for ticket in seat.running if not self._hangs(seat, ticket)
        ]
        if not busy:
            time.sleep(min(timeout, 0.01))
            return []
        ticket, seat = max(busy, key=lambda pair: int(pair[0]))
        attempt, _ = seat.running[ticket]
        if any((attempt.unit, item) in self.killers for item in attempt.items):
            self._die(seat)
            return self.wait(timeout)
        del seat.running[ticket]
        return [self._run(seat, attempt)]

    def kill_overdue(self) -> list[Attempt]:
        late = []
        for seat in self.seats:
            hung = [attempt for ticket, (attempt, _) in seat.running.items() if self._hangs(seat, ticket)]
            if hung:
                late.append(hung[0])
                self._die(seat)
        return late

    def close(self) -> None: ...

    def _hangs(self, seat: Seat, ticket: int) -> bool:
        attempt, _ = seat.running[ticket]
        return any((attempt.unit, item) in self.hanging for item in attempt.items)

    def _die(self, seat: Seat) -> None:
        self.deaths += 1
        for attempt, _ in seat.running.values():
            self._lost.append(
                Outcome(attempt, None, Failure("worker", "WorkerLost", "died", "", seat.name, lost=True))
            )
        seat.running.clear()

    def _run(self, seat: Seat, attempt: Attempt) -> Outcome:
        unit = attempt.unit
        if self.failing_units[unit] > 0:
            self.failing_units[unit] -= 1
            return Outcome(attempt, None, describe(UnitError("open", "out of luck"), seat.name))
        failures = tuple(self._fail(unit, i) for i in attempt.items if self.failing_items[unit, i] > 0)
        if len(failures) == len(attempt.items):
            return Outcome(attempt, None, describe(UnitError("read", "all failed"), seat.name))
        committed = attempt.only is None and (attempt.tolerant or not failures)
        if committed and self._keep:
            assert unit not in self.committed, "a unit was committed twice"
            self.committed[unit] = tuple(sorted({*attempt.skip, *(f.item for f in failures)}))
        parked = None if committed or attempt.only is not None else FragmentRef("parked", "0" * 64, 1)
        done = report(
            unit,
            tiles=len(attempt.items) - len(failures),
            worker=seat.name,
            committed=committed,
            failures=failures,
            fragment=parked,
        )
        return Outcome(attempt, done, None)

    def _fail(self, unit: Unit, item: int) -> ItemFailure:
        self.failing_items[unit, item] -= 1
        return ItemFailure(item, "read", "OSError", "broken block", "")
