"""The files that say that a result is whole: the manifest, the generation, and ``_SUCCESS.json``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.jobs.exits import Exit
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.commit import Commit
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.finish import FinishedInput
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.store import Store

PUBLISHED_FOLDERS = ("rasters", "segments", "video")
BESIDE_FOLDERS = ("tiles", "previews", "_state/results")
"""With one file for each input."""

_MANIFEST = pa.schema(
    [(n, pa.string()) for n in ("kind", "name", "input", "source_uri", "sha256")]
    + [("bytes", pa.int64()), ("status", pa.string())]
)
_ROW_GROUP = 1024
"""Rows that are held at once, however many inputs a job has."""


def result_key(key: str) -> str:
    """What was published of one input, and what was found in it."""
    return f"_state/results/{key}.json"


def published_sizes(store: Store) -> dict[str, int]:
    """Bytes of every published file, table of tiles and picture, by its key. Raises ``OSError`` of the store."""
    return {s.key: s.size for folder in (*PUBLISHED_FOLDERS, "tiles", "previews") for s in store.walk(folder)}


def published_keys(store: Store) -> list[str]:
    """Keys of the inputs that are published, sorted. Raises ``OSError`` of the store."""
    return [key.rsplit("/", 1)[-1].removesuffix(".json") for key in store.keys("_state/results")]


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


def manifest(inputs: Iterable[FinishedInput], partial: set[str]) -> bytes:
    """manifest.parquet: a row per unit and per published file; the same bytes for the same results.

    ``partial`` are the ids of the units that are committed with failed items.
    """
    sink = io.BytesIO()
    rows = chain.from_iterable(_manifest_rows(f, partial) for f in inputs)
    with pq.ParquetWriter(sink, _MANIFEST, compression="zstd") as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, _MANIFEST))
    return sink.getvalue()


def _manifest_rows(f: FinishedInput, partial: set[str]) -> Iterator[dict[str, object]]:
    """The units of one input, then its files."""
    about: dict[str, object] = {"input": f.plan.key, "source_uri": f.plan.uri}
    for unit in f.plan.units():
        digest = f.commits.get(unit)
        status = "quarantined" if digest is None else "partial" if unit.id in partial else "done"
        yield {**about, "kind": "unit", "name": unit.id, "sha256": digest, "status": status}
    for asset in f.assets:
        file = {"name": asset.key, "sha256": asset.sha256, "bytes": asset.size}
        yield {**about, "kind": "asset", **file, "status": "done"}


def withdraw_unlisted(store: Store, inputs: Iterable[FinishedInput], check_held: Callable[[], None]) -> None:
    """Remove what the job no longer has: of an input that is skipped since, say. Its fragments stay for its return.

    ``check_held`` raises where the lease is lost: another run may have listed what this one does not know.
    """
    wanted: set[str] = set()
    for f in inputs:
        wanted.update(asset.key for asset in f.assets)
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
