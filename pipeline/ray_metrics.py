"""Counters and histograms that Ray's own metrics endpoint shows while a job runs (``ray_panoptile_…``).

They are bumped once per unit, from its report: that costs microseconds, whatever the size of a tile. What a whole job
came to stands in ``metrics.json``; these figures are for a dashboard meanwhile. A process that ends before Ray has
collected its figures (every few seconds) takes the last of them along.

Seconds are there twice: as counters, whose rate is the share of time spent so, and as histograms per unit, which tell
how units differ. A histogram's sum is of no use: Ray makes it up from the buckets (measured: 3.05 s for 1.61 s).
"""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Outcome

SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Upper bounds of the histograms' buckets; a unit is meant to take some 5-20 s."""
_STAGES = {
    "read": "Reading, summed over threads.",
    "infer": "The replica at work.",
    "encode": "Encoding and storing, summed over threads.",
    "idle": "The replica waiting: inside a unit, and since the one before.",
}


class WorkerMetrics:
    """What one worker does; every figure is tagged with the worker's name."""

    def __init__(self, worker: str) -> None:
        self._tags = {"worker": worker}
        self._units = _counter("units_total", "Units committed by a worker.")
        self._tiles = _counter("tiles_total", "Tiles or frames done.")
        self._empty = _counter("empty_tiles_total", "Tiles without any input.")
        self._failed = _counter("failed_tiles_total", "Tiles or frames that failed, once per attempt.")
        self._pixels = _counter("pixels_total", "Pixels segmented, overlaps counted once.")
        self._failed_attempts = _counter("failed_attempts_total", "Attempts that failed as a whole.")
        self._seconds = {name: _counter(f"{name}_seconds_total", text) for name, text in _STAGES.items()}
        self._spread = {name: _histogram(f"unit_{name}_seconds", text) for name, text in _STAGES.items()}
        self._ended = 0.0
        """When the replica was last done; 0 before its first unit."""

    def add(self, report: UnitReport) -> None:
        """Count what an attempt did."""
        if report.already_done:
            return
        self._count(self._units, int(report.committed))
        self._count(self._tiles, report.tiles)
        self._count(self._empty, report.empty_tiles)
        self._count(self._failed, len(report.failures))
        self._count(self._pixels, report.pixels)
        self._spend("read", report.read_seconds)
        self._spend("encode", report.encode_seconds)
        if report.infer_ended:  # else no tile reached the replica
            self._spend("infer", report.infer_seconds)
            since = self._ended or report.infer_started
            self._spend("idle", report.infer_ended - since - report.infer_seconds)
            self._ended = max(self._ended, report.infer_ended)

    def add_failure(self, error: UnitError) -> None:
        """Count an attempt that came to nothing."""
        self._failed_attempts.inc(1, self._tags)
        self._count(self._failed, int(error.tile_id is not None))

    def _spend(self, stage: str, seconds: float) -> None:
        if seconds > 0:  # two units' reports may come out of order: then the wait between them shows none
            self._seconds[stage].inc(seconds, self._tags)
        self._spread[stage].observe(max(0.0, seconds), self._tags)

    def _count(self, counter: Counter, amount: int) -> None:
        if amount:  # Ray refuses to add nothing
            counter.inc(amount, self._tags)


class DriverMetrics:
    """What the driver alone knows: units that are tried again, and workers that are lost."""

    def __init__(self) -> None:
        self._retries = _counter("retries_total", "Attempts at units that had failed in this run.")
        self._lost = _counter("lost_workers_total", "Attempts that ended with their worker.")
        self._failed: set[Unit] = set()
        """Units whose last attempt failed: those in trouble, and those that were given up."""

    def submitted(self, attempt: Attempt) -> None:
        """Count an attempt at a unit that has failed before."""
        if attempt.unit in self._failed:
            self._retries.inc(1, {"worker": "driver"})

    def ended(self, outcome: Outcome) -> None:
        """Count how an attempt ended."""
        if outcome.report is not None and outcome.report.committed:
            self._failed.discard(outcome.attempt.unit)
            return
        self._failed.add(outcome.attempt.unit)
        if outcome.failure is not None and outcome.failure.lost:
            self._lost.inc(1, {"worker": outcome.failure.worker})


def _counter(name: str, description: str) -> Counter:
    return Counter(f"panoptile_{name}", description, ("worker",))


def _histogram(name: str, description: str) -> Histogram:
    return Histogram(f"panoptile_{name}", description, SECONDS, ("worker",))
