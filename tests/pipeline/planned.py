"""Inputs that are planned in a store, ready for workers: what ``prepare`` does, without a command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tests.pipeline.rasters import write_raster

from panoptile.pipeline.finish import FinishedInput, Products, finish_input
from panoptile.pipeline.layout import commit_key, plan_key
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store_local import LocalStore

TILE = 64


def plan_tiles(
    folder: Path,
    store: LocalStore,
    rows: int,
    cols: int,
    triggers: Mapping[int, int] | None = None,
    name: str = "in",
) -> RasterPlan:
    """A raster of ``rows`` x ``cols`` tiles without overlap, planned; ``triggers``: grey level by tile number."""
    bands = np.full((3, rows * TILE, cols * TILE), 100, np.uint8)
    for tile, grey in (triggers or {}).items():
        row, col = divmod(tile, cols)
        bands[:, row * TILE, col * TILE] = grey
    path = write_raster(folder / f"{name}.tif", bands)
    plan = RasterPlan(inspect_raster(str(path)), TILE, 0)
    store.put_bytes(plan_key(plan.key), plan.to_json())
    return plan


def commit_of(store: LocalStore, unit: Unit) -> dict[str, object]:
    """The fields of a unit's commit."""
    fields = json.loads(store.read_bytes(commit_key(unit)))
    assert isinstance(fields, dict)
    return fields


def finish(store: LocalStore, plan: RasterPlan, classes: object) -> FinishedInput:
    """Publish one input."""
    return finish_input(store, plan, classes, NodeFilter(), Products(), {})  # type: ignore[arg-type]
