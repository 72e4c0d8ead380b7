"""What became of a run, in sums: nothing here grows with the number of units that went well."""

from __future__ import annotations

from dataclasses import dataclass, field

from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.recovery import DeadItem


@dataclass(slots=True)
class Busy:
    """How one replica spent its time."""

    infer_seconds: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    """First and last forward pass, seconds since 1970."""

    def add(self, report: UnitReport) -> None:
        if report.infer_seconds <= 0:
            return
        is_first = self.infer_seconds == 0.0
        self.started = report.infer_started if is_first else min(self.started, report.infer_started)
        self.ended = max(self.ended, report.infer_ended)
        self.infer_seconds += report.infer_seconds

    @property
    def share(self) -> float:
        """Share of the time between its first and last forward pass in which it computed."""
        return self.infer_seconds / (self.ended - self.started) if self.ended > self.started else 0.0


@dataclass(slots=True)
class Totals:
    """Sums over the reports of all committed units."""

    units: int = 0
    already_done: int = 0
    tiles: int = 0
    empty_tiles: int = 0
    pixels: int = 0
    segments: int = 0
    queries_used_max: int = 0
    queries_used_sum: int = 0
    read_seconds: float = 0.0
    infer_seconds: float = 0.0
    encode_seconds: float = 0.0
    smallest_batch: int = 0
    """Images per forward pass where memory was shortest; 0 where nothing ran."""
    busy: dict[str, Busy] = field(default_factory=dict)
    """By worker; the time in which it was restarted counts as idle."""

    def add(self, report: UnitReport) -> None:
        self.units += 1
        self.already_done += report.already_done
        for name in ("tiles", "empty_tiles", "pixels", "segments", "queries_used_sum"):
            setattr(self, name, getattr(self, name) + getattr(report, name))
        for name in ("read_seconds", "infer_seconds", "encode_seconds"):
            setattr(self, name, getattr(self, name) + getattr(report, name))
        self.queries_used_max = max(self.queries_used_max, report.queries_used_max)
        if report.batch:
            self.smallest_batch = min(self.smallest_batch or report.batch, report.batch)
        self.busy.setdefault(report.worker, Busy()).add(report)


@dataclass(slots=True)
class RunResult:
    """What became of all units."""

    totals: Totals = field(default_factory=Totals)
    reports: list[UnitReport] = field(default_factory=list)
    """Of each committed unit, where they were asked for."""
    dead: dict[Unit, DeadItem] = field(default_factory=dict)
    """Units of which anything was lost, with the first loss."""
    dead_items: list[DeadItem] = field(default_factory=list)
    """All that was lost: rows of the dead letter."""
    retries: int = 0
    lost_workers: int = 0
