"""What a run found in each input, kept beside the result.

An input whose units and files are what they were when it was published is not published again: a run that was
killed after 999 of 1,000 inputs publishes one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, overload

from panoptile.jobs.results import result_key
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.finish import Asset, ClassCount, FinishedInput
from panoptile.pipeline.plan import WRITTEN, InputPlan, without
from panoptile.pipeline.store import Store


class RecordedInputs(Sequence[FinishedInput]):
    """Inputs that are published, each held as its record and read when asked for: a job may have 10,000 of them."""

    def __init__(self) -> None:
        self._records: list[tuple[AnyPlan, bytes]] = []

    def add(self, plan: AnyPlan, record: bytes) -> None:
        """``record``: bytes that :func:`load_result` has taken, or :func:`save_result` written."""
        self._records.append((plan, zlib.compress(record, 1)))

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[FinishedInput]:
        return (self._read(*entry) for entry in self._records)

    @overload
    def __getitem__(self, index: int) -> FinishedInput: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[FinishedInput]: ...

    def __getitem__(self, index: int | slice) -> FinishedInput | Sequence[FinishedInput]:
        if isinstance(index, slice):
            return [self._read(*entry) for entry in self._records[index]]
        return self._read(*self._records[index])

    @staticmethod
    def _read(plan: AnyPlan, packed: bytes) -> FinishedInput:
        return _finished(json.loads(zlib.decompress(packed))["finished"], plan)


def save_result(store: Store, finished: FinishedInput, fingerprint: str) -> bytes:
    """Keep what :func:`load_result` gives back; returns the record. Raises ``OSError`` of the store."""
    fields: dict[str, Any] = {f.name: getattr(finished, f.name) for f in dataclasses.fields(finished)}
    del fields["plan"]
    fields["assets"] = [dataclasses.asdict(a) for a in finished.assets]
    fields["tile_table"] = None if finished.tile_table is None else dataclasses.asdict(finished.tile_table)
    fields["counts"] = [dataclasses.asdict(c) for c in finished.counts]
    fields["missing_units"] = [u.id for u in finished.missing_units]
    fields["commits"] = {u.id: sha256 for u, sha256 in finished.commits.items()}
    record = {"fingerprint": fingerprint, "plan": plan_digest(finished.plan), "finished": fields}
    data = json.dumps(record).encode()
    store.put_bytes(result_key(finished.plan.key), data)
    return data


def load_result(
    data: bytes | None,
    plan: AnyPlan,
    names: Collection[str],
    commits: Mapping[str, str] | None,
    sizes: Mapping[str, int],
) -> FinishedInput | None:
    """What was found in an input that is published already; None where it has to be published again.

    Args:
        data: bytes of its :func:`result_key`.
        names: of the results that hold now, see ``Prepared.accepted_names``.
        commits: unit id -> sha256 of the committed fragment, of the units that are committed now. None for a kept
            input whose fragments are gone: what it was published from then does not count, nor whether its picture is
            there, which can be drawn again.
        sizes: published file, table of tiles or picture -> bytes, as listed now.
    """
    try:
        record = json.loads(data or b"")
        if record["fingerprint"] not in names or record["plan"] != plan_digest(plan):
            return None
        finished = _finished(record["finished"], plan)
        promised = (*finished.assets, *([finished.tile_table] if finished.tile_table else []))
        if any(sizes.get(a.key) != a.size for a in promised):
            return None
        if commits is None:
            return finished
        if {u.id: sha256 for u, sha256 in finished.commits.items()} != commits:
            return None
        return finished if finished.preview is None or finished.preview in sizes else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _finished(stored: Mapping[str, Any], plan: AnyPlan) -> FinishedInput:
    """The input of a record. Raises ``KeyError`` or ``TypeError`` for one of another kind."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    units = {u.id: u for u in plan.units()}
    fields["assets"] = tuple(Asset(**a) for a in fields["assets"])
    fields["tile_table"] = Asset(**fields["tile_table"]) if fields.get("tile_table") else None
    fields["counts"] = tuple(ClassCount(**c) for c in fields["counts"])
    fields["missing_units"] = tuple(units[i] for i in fields["missing_units"])
    fields["commits"] = {units[i]: sha256 for i, sha256 in fields["commits"].items()}
    return FinishedInput(plan=plan, **fields)


def plan_digest(plan: InputPlan) -> str:
    """Of everything in a plan but the time of its file or object: a touch publishes nothing anew."""
    text = json.dumps(_without_time(without(json.loads(plan.to_json()), WRITTEN)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_time(v) for k, v in value.items() if k != "mtime_ns"}
    return value
