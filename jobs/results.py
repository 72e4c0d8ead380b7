"""What a run found in each input, kept beside the result, and the files that say that a result is whole.

An input whose units and files are what they were when it was published is not published again: a run that was
killed after 999 of 1,000 inputs publishes one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.jobs.exits import Exit
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.commit import Commit
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.finish import Asset, ClassCount, FinishedInput
from panoptile.pipeline.plan import InputPlan, Unit
from panoptile.pipeline.store import Store

PUBLISHED_FOLDERS = ("rasters", "segments", "video")
BESIDE_FOLDERS = ("tiles", "previews", "_state/results")
"""With one file for each input."""


def result_key(key: str) -> str:
    """What was published of one input, and what was found in it."""
    return f"_state/results/{key}.json"


def published_keys(store: Store) -> list[str]:
    """Keys of the inputs that are published, sorted. Raises ``OSError`` of the store."""
    return [key.rsplit("/", 1)[-1].removesuffix(".json") for key in store.keys("_state/results")]


def save_result(store: Store, finished: FinishedInput, fingerprint: str) -> None:
    """Keep what :func:`load_result` gives back. Raises ``OSError`` of the store."""
    fields: dict[str, Any] = {f.name: getattr(finished, f.name) for f in dataclasses.fields(finished)}
    del fields["plan"]
    fields["assets"] = [dataclasses.asdict(a) for a in finished.assets]
    fields["tile_table"] = None if finished.tile_table is None else dataclasses.asdict(finished.tile_table)
    fields["counts"] = [dataclasses.asdict(c) for c in finished.counts]
    fields["missing_units"] = [u.id for u in finished.missing_units]
    fields["commits"] = {u.id: sha256 for u, sha256 in finished.commits.items()}
    record = {"fingerprint": fingerprint, "plan": plan_digest(finished.plan), "finished": fields}
    store.put_bytes(result_key(finished.plan.key), json.dumps(record).encode())


def load_result(
    data: bytes | None,
    plan: AnyPlan,
    fingerprint: str,
    commits: Mapping[str, str],
    sizes: Mapping[str, int],
) -> FinishedInput | None:
    """What was found in an input that is published already; None where it has to be published again.

    Args:
        data: bytes of its :func:`result_key`.
        commits: unit id -> sha256 of the committed fragment, of the units that are committed now.
        sizes: published file, table of tiles or picture -> bytes, as listed now.
    """
    try:
        record = json.loads(data or b"")
        stored = record["finished"].items()
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored}
        assets = tuple(Asset(**a) for a in fields["assets"])
        if record["fingerprint"] != fingerprint or record["plan"] != plan_digest(plan):
            return None
        tile_table = Asset(**fields["tile_table"]) if fields.get("tile_table") else None
        promised = (*assets, *([tile_table] if tile_table else []))
        if fields["commits"] != commits or any(sizes.get(a.key) != a.size for a in promised):
            return None
        if fields["preview"] is not None and fields["preview"] not in sizes:
            return None
        units = {u.id: u for u in plan.units()}
        fields["assets"], fields["tile_table"] = assets, tile_table
        fields["counts"] = tuple(ClassCount(**c) for c in fields["counts"])
        fields["missing_units"] = tuple(units[i] for i in fields["missing_units"])
        fields["commits"] = {units[i]: sha256 for i, sha256 in fields["commits"].items()}
        return FinishedInput(plan=plan, **fields)
    except (ValueError, KeyError, TypeError):
        return None


def plan_digest(plan: InputPlan) -> str:
    """Of everything in a plan but the time of its file: a touch publishes nothing anew."""
    text = json.dumps(_without_time(json.loads(plan.to_json())), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_time(v) for k, v in value.items() if k != "mtime_ns"}
    return value


def listing(finished: FinishedInput, classes: ClassTable) -> dict[str, Any]:
    """An input as ``segment --json`` lists it."""
    return {
        "uri": finished.plan.uri,
        "key": finished.plan.key,
        "assets": [a.key for a in finished.assets],
        "preview": finished.preview,
        "segments": finished.segments,
        "things_merged_over_seams": finished.things_over_seams,
        "suspects": finished.suspects,
        "missing_units": [u.id for u in finished.missing_units],
        "classes": {classes[c.class_id - 1].name: c.segments for c in finished.counts},
    }


# --- the manifest, the generation, the success ----------------------------------------------------------


def manifest(inputs: Iterable[FinishedInput], partial: set[str]) -> bytes:
    """manifest.parquet: a row per unit and per published file; the same bytes for the same results.

    ``partial`` are the ids of the units that are committed with failed items.
    """
    rows: list[dict[str, object]] = []
    for f in inputs:
        about: dict[str, object] = {"input": f.plan.key, "source_uri": f.plan.uri}
        for unit in f.plan.units():
            digest = f.commits.get(unit)
            status = "quarantined" if digest is None else "partial" if unit.id in partial else "done"
            rows.append({**about, "kind": "unit", "name": unit.id, "sha256": digest, "status": status})
        for asset in f.assets:
            file = {"name": asset.key, "sha256": asset.sha256, "bytes": asset.size}
            rows.append({**about, "kind": "asset", **file, "status": "done"})
    schema = pa.schema(
        [(n, pa.string()) for n in ("kind", "name", "input", "source_uri", "sha256")]
        + [("bytes", pa.int64()), ("status", pa.string())]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue()


def withdraw_unlisted(store: Store, inputs: Iterable[FinishedInput], check_held: Callable[[], None]) -> None:
    """Remove what the job no longer has: of an input that is skipped since, say. Its fragments stay for its return.

    ``check_held`` raises where the lease is lost: another run may have listed what this one does not know.
    """
    inputs = list(inputs)
    wanted = {asset.key for f in inputs for asset in f.assets}
    for f in inputs:
        wanted |= {result_key(f.plan.key), layout.tile_table_key(f.plan.key), layout.preview_key(f.plan.key)}
    for folder in (*PUBLISHED_FOLDERS, *BESIDE_FOLDERS):
        for stored in store.walk(folder):
            if stored.key not in wanted:
                check_held()
                store.delete(stored.key)


def succeed(store: Store, code: Exit, fields: Mapping[str, object]) -> None:
    """Record a new generation and let ``_SUCCESS.json`` point to the highest one, whoever wrote it."""
    number = highest_generation(store)
    while True:
        number += 1
        record = {"exit": int(code), "generation": number, **fields}
        if store.put_if_absent(layout.generation_key(number), json.dumps(record, indent=1).encode()):
            break
    reach("generation.after")
    while True:
        store.put_bytes(layout.SUCCESS, store.read_bytes(layout.generation_key(number)))
        highest = highest_generation(store)
        if highest == number:
            break
        number = highest
    reach("success.after")


def highest_generation(store: Store) -> int:
    """Number of the newest generation; 0 where there is none."""
    stems = (key.rsplit("/", 1)[-1].removesuffix(".json") for key in store.keys("_state/generations"))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def commits_of(plan: AnyPlan, commits: Mapping[str, Commit]) -> dict[str, str]:
    """Unit id -> sha256 of the committed fragment, of one input."""
    return {u.id: commits[u.id].sha256 for u in plan.units() if u.id in commits}


def failed_items(plans: Sequence[AnyPlan], commits: Mapping[str, Commit]) -> dict[Unit, tuple[int, ...]]:
    """Items that failed for good in units that are committed without them."""
    return {
        u: commits[u.id].failed_tiles
        for plan in plans
        for u in plan.units()
        if u.id in commits and commits[u.id].failed_tiles
    }
