"""What is missing from a result, named: to ``status`` from the store alone, to ``logs`` as events.

Lists are bounded, counts are not: a run may skip ten thousand inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from panoptile.jobs.deadletter import DeadRow, attempts_on_record
from panoptile.jobs.event_log import EventLog
from panoptile.jobs.survey import dead_rows
from panoptile.pipeline.inputs import shown
from panoptile.pipeline.store import Store

if TYPE_CHECKING:
    from panoptile.jobs.prepare import SkippedInput

NAMED = 1000
"""Most that JSON and the log name."""
SHOWN = 5
"""Most that people are shown of each kind."""
LOOKED_UP = 100
"""Most units of a failed run whose last error is looked up, one or more objects each."""
_LONGEST = 220
_FIELDS = ("unit", "tile", "source_uri", "stage", "error_type", "message")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a run did not do."""

    skipped_count: int = 0
    skipped: tuple[dict[str, Any], ...] = ()
    """Inputs that --skip-invalid left out: source_uri, stage, error_type, message."""
    quarantined_count: int = 0
    quarantined: tuple[dict[str, Any], ...] = ()
    """Units and tiles that were given up: the same, and unit and tile (None: the whole unit)."""

    def to_json(self) -> dict[str, Any]:
        return {
            "skipped": {"count": self.skipped_count, "inputs": list(self.skipped)},
            "quarantined": {"count": self.quarantined_count, "items": list(self.quarantined)},
        }


def left_out_of(store: Store) -> LeftOut:
    """Of a finished run: what its dead letter holds. Raises ``OSError`` of the store."""
    rows = dead_rows(store)
    skipped = [row for row in rows if row.get("unit") is None]
    given_up = [row for row in rows if row.get("unit") is not None]
    return LeftOut(
        len(skipped),
        tuple({k: row.get(k) for k in _FIELDS[2:]} for row in skipped[:NAMED]),
        len(given_up),
        tuple({k: row.get(k) for k in _FIELDS} for row in given_up[:NAMED]),
    )


def failing(store: Store, units: Sequence[str]) -> LeftOut:
    """Of a run that failed: its units without a result, the first ones with their last error. Raises ``OSError``."""
    named = [_last_failure(store, unit) for unit in units[:LOOKED_UP]]
    return LeftOut(quarantined_count=len(units), quarantined=tuple(named))


def _last_failure(store: Store, unit: str) -> dict[str, Any]:
    tries = attempts_on_record(store, unit)
    last = tries[-1][1] if tries else {}
    return {"unit": unit, "tile": last.get("item"), "source_uri": None} | {
        name: str(last.get(name, "")) for name in _FIELDS[3:]
    }


def left_out_lines(left: LeftOut) -> list[str]:
    """The lines that ``status`` adds: the first of each kind, the rest counted."""
    lines = _listed("skipped", left.skipped_count, [str(row["message"]) for row in left.skipped])
    places = [_place(row) for row in left.quarantined]
    return lines + _listed("given up", left.quarantined_count, places)


def _listed(label: str, count: int, texts: Sequence[str]) -> list[str]:
    if not count:
        return []
    lines = [f"  {label:<10} {_one_line(text)}" for text in texts[:1]]
    lines += [f"  {'':<10} {_one_line(text)}" for text in texts[1:SHOWN]]
    more = count - min(len(texts), SHOWN)
    return lines + ([f"  {'':<10} … and {more:,} more: see --json or deadletter.parquet"] if more else [])


def _place(row: dict[str, Any]) -> str:
    tile = "" if row["tile"] is None else f" tile {row['tile']}"
    error = ": ".join(str(row[name]) for name in ("error_type", "message") if row[name])
    return f"{row['unit']}{tile} ({row['stage'] or 'unknown'}) {error}"


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return shown(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


# --- the log -------------------------------------------------------------------------------------------


def log_skipped(events: EventLog, skipped: Sequence[SkippedInput]) -> None:
    """One event for each input that is left out."""
    for one in skipped[:NAMED]:
        events.add("skip", input=one.uri, stage=one.stage, message=one.message)
    if len(skipped) > NAMED:
        events.add("skip", more=len(skipped) - NAMED)


def log_given_up(events: EventLog, rows: Iterable[DeadRow]) -> None:
    """One event for each unit and tile that was given up; skipped inputs are told at the start."""
    given_up = [row for row in rows if row.unit is not None]
    for row in given_up[:NAMED]:
        events.add(
            "quarantine",
            unit=row.unit,
            tile=row.tile,
            worker=row.worker,
            input=row.source_uri,
            stage=row.stage,
            message=f"{row.error_type}: {row.message}",
        )
    if len(given_up) > NAMED:
        events.add("quarantine", more=len(given_up) - NAMED)
