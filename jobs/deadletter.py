"""deadletter.parquet: what is missing from the result, and why. One row per unit, tile or input that was given up."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.jobs.survey import dead_rows
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.redaction import redacted
from panoptile.pipeline.run_result import RunResult
from panoptile.pipeline.store import Store

if TYPE_CHECKING:
    from panoptile.jobs.prepare import Prepared

SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("tile", pa.int64()),
        ("source_uri", pa.string()),
        ("stage", pa.string()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("traceback", pa.string()),
        ("attempts", pa.int32()),
        ("first_at", pa.string()),
        ("last_at", pa.string()),
        ("worker", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class DeadRow:
    """One thing that was given up."""

    unit: str | None
    """None for an input that was refused before it was planned."""
    tile: int | None
    """Tile or frame; None where the whole unit, or the whole input, was given up."""
    source_uri: str
    stage: str
    error_type: str
    message: str
    traceback: str
    attempts: int
    first_at: str
    """UTC, ISO 8601; of the first failed attempt."""
    last_at: str
    worker: str


def dead_letter(rows: Iterable[DeadRow]) -> bytes:
    """The bytes of deadletter.parquet, without secrets, in a fixed order."""
    table = [
        {name: redacted(value) if isinstance(value, str) else value for name, value in asdict(row).items()}
        for row in sorted(rows, key=lambda r: (r.source_uri, r.unit or "", -1 if r.tile is None else r.tile))
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def rows_of_run(
    store: Store,
    prepared: Prepared,
    result: RunResult,
    missing: Sequence[Unit],
    failed: Mapping[Unit, tuple[int, ...]],
) -> list[DeadRow]:
    """Why each missing unit, failed item and skipped input is missing.

    Args:
        result: of this run; what an earlier run gave up, and this one did not try, is known from its dead letter.
        missing: units that are not committed.
        failed: units that are committed without some items.
    """
    uris = {plan.key: plan.uri for plan in prepared.plans}
    known = {(r.unit, r.tile): r for r in _earlier_rows(store)}
    known.update({(r.unit, r.tile): r for r in _rows_of_result(result, uris)})
    wanted = [(u, None) for u in missing] + [(u, item) for u, items in failed.items() for item in items]
    rows = []
    for unit, tile in wanted:
        rows.append(known.get((unit.id, tile)) or _on_record(store, unit, tile, uris[unit.key]))
    now = _at(time.time())
    rows += [
        DeadRow(None, None, s.uri, s.stage, s.error_type, s.message, "", 1, now, now, "driver")
        for s in prepared.skipped
    ]
    return rows


def _rows_of_result(result: RunResult, uris: Mapping[str, str]) -> Iterable[DeadRow]:
    """What this run gave up."""
    for item in result.dead_items:
        yield DeadRow(
            item.unit.id,
            item.item,
            uris[item.unit.key],
            item.stage,
            item.error_type,
            item.message,
            item.traceback,
            item.attempts,
            _at(item.first_time),
            _at(item.last_time),
            item.worker,
        )


def _earlier_rows(store: Store) -> Iterable[DeadRow]:
    """The rows of the last finished run."""
    names = {f.name for f in dataclasses.fields(DeadRow)}
    for row in dead_rows(store):
        if names <= row.keys():
            yield DeadRow(**{name: row[name] for name in names})


def _on_record(store: Store, unit: Unit, tile: int | None, uri: str) -> DeadRow:
    """What the records of failed attempts say; the run that wrote them did not get to its end."""
    tries = [
        (at, f)
        for at, f in attempts_on_record(store, unit.id)
        if tile is None or f.get("item") in (tile, None)
    ]
    last = tries[-1][1] if tries else {}
    text = {name: str(last.get(name, "")) for name in ("error_type", "message", "traceback", "worker")}
    return DeadRow(
        unit=unit.id,
        tile=tile,
        source_uri=uri,
        stage=str(last.get("stage", "unknown")),
        attempts=len(tries),
        first_at=_at(tries[0][0]) if tries else "",
        last_at=_at(tries[-1][0]) if tries else "",
        **text,
    )


def attempts_on_record(store: Store, unit: str) -> list[tuple[float, dict[str, Any]]]:
    """(seconds since 1970, failure) of every failed attempt of a unit, the oldest first. Raises ``OSError``."""
    found = []
    for data in store.read_all(f"_state/dead/{unit}").values():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(data)
            found += [(float(record["time"]), dict(failure)) for failure in record["failures"]]
    return sorted(found, key=lambda pair: pair[0])


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
