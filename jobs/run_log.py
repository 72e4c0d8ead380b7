"""What each run did, kept beside the result: a job that was resumed is measured as a whole.

A run writes its record with the lease's beat and at its end; what a killed run did after its last record is missing
from the sums, never from the result. A record is a few sums, however many units there are.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from panoptile.pipeline import layout
from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.redaction import redacted_json
from panoptile.pipeline.run_result import Totals
from panoptile.pipeline.store import Store


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a job, as far as it was recorded."""

    run: str
    started_at: str
    wall_seconds: float
    segment_seconds: float
    retries: int
    exit: int | None
    """None for a run that was killed, or that still runs."""
    totals: dict[str, Any]
    """Sums over its units: the fields of :class:`Totals`."""


class RunLog:
    """The record of the run that is going on. Any thread may use it."""

    def __init__(self, store: Store, run: str) -> None:
        self.run = run
        self.totals = Totals()
        self.retries = 0
        self.exit: int | None = None
        self._store = store
        self._lock = threading.Lock()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._began = time.monotonic()
        self._segmenting_since: float | None = None
        self._segment_seconds = 0.0

    def segmenting(self, on: bool) -> None:
        """Units begin, or cease, to run."""
        with self._lock:
            now = time.monotonic()
            if self._segmenting_since is not None:
                self._segment_seconds += now - self._segmenting_since
            self._segmenting_since = now if on else None

    def add(self, report: UnitReport) -> None:
        with self._lock:
            self.totals.add(report)

    def record(self) -> RunRecord:
        with self._lock:
            now = time.monotonic()
            running = 0.0 if self._segmenting_since is None else now - self._segmenting_since
            return RunRecord(
                self.run,
                self._started_at,
                now - self._began,
                self._segment_seconds + running,
                self.retries,
                self.exit,
                asdict(self.totals),
            )

    def save(self) -> None:
        """Write the record. Raises ``OSError`` of the store."""
        data = json.dumps(redacted_json(asdict(self.record()))).encode()
        self._store.put_bytes(layout.run_key(self.run), data)


def earlier_runs(store: Store, but: str = "") -> list[RunRecord]:
    """Records of the job's runs in the order of their names, but the one named; what cannot be read is left out."""
    found = []
    for key, data in sorted(store.read_all("_state/runs").items()):
        try:
            fields = json.loads(data)
            record = RunRecord(**fields)
        except (ValueError, TypeError, KeyError):
            continue
        if record.run != but and key == layout.run_key(record.run):
            found.append(record)
    return found
