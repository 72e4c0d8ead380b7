"""Label worlds for tests: truth rasters whose segments are 4-connected, and the shapes that break stitchers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.echo import echo_map
from panoptile.pipeline.fragment import empty_tile, encode_fragment, pack_tile, tile_fragment
from panoptile.pipeline.grid import Tile
from panoptile.pipeline.joined import Fragments, Joined, JoinedLabels, join
from panoptile.pipeline.layout import commit_key
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.window import Window

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """A truth: segment ids (0 void), a class per pixel, and where there is input."""

    labels: Labels
    classes: Labels
    """Class id of each pixel (label id + 1); constant within a segment."""
    valid: NDArray[np.bool_]
    table: ClassTable


TABLE = ClassTable.from_names(["house", "tree", "grass", "road"], {0, 1})


def make_world(
    seed: int,
    height: int,
    width: int,
    *,
    terraces: int = 3,
    blobs: int = 25,
    wedge: bool = True,
    stuff: bool = True,
) -> World:
    """Terraces of touching houses, objects across corners, a long one, rings with holes, a nodata wedge."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int64)
    rows, cols = np.mgrid[:height, :width]
    next_id = 1
    for _ in range(terraces):
        r, c = int(rng.integers(0, height)), int(rng.integers(0, width))
        depth, breadth, n = int(rng.integers(5, 40)), int(rng.integers(4, 25)), int(rng.integers(3, 20))
        for k in range(n):  # touching neighbours, in a row or a column
            along = slice(c + k * breadth, c + (k + 1) * breadth)
            if rng.random() < 0.5:
                labels[r : r + depth, along] = next_id
            else:
                labels[along, r : r + depth] = next_id
            next_id += 1
    for _ in range(blobs):
        r, c = int(rng.integers(0, height)), int(rng.integers(0, width))
        radius = int(rng.integers(2, max(3, min(height, width) // 6)))
        distance = np.hypot(rows - r, (cols - c) * rng.uniform(0.5, 2))
        ring = rng.random() < 0.3
        labels[(distance < radius) & ((distance > radius * 0.6) | (not ring))] = next_id
        next_id += 1
    band = int(rng.integers(1, 6))
    at = int(rng.integers(0, height))
    labels[at : at + band, :] = next_id  # as long as the raster
    labels[:, int(rng.integers(0, width)) :][:, :band] = next_id + 1
    next_id += 2
    valid = np.ones((height, width), np.bool_)
    if wedge:
        valid = rows + cols * rng.uniform(0.2, 2) > rng.uniform(0, (height + width) / 3)
    classes = np.where(labels > 0, labels % 2 + 1, 0)
    if stuff:
        ground = labels == 0
        grass = ndimage.gaussian_filter(rng.standard_normal((height, width)), 12) > 0
        classes[ground & grass] = 3
        classes[ground & ~grass & (rng.random((height, width)) < 0.98)] = 4
        labels[classes == 3] = next_id
        labels[classes == 4] = next_id + 1
    labels[~valid] = 0
    classes[~valid] = 0
    return World(connected(labels, classes), classes, valid, TABLE)


def connected(labels: Labels, classes: Labels) -> Labels:
    """Split each thing into its 4-connected parts; stuff stays one segment per class."""
    out = np.zeros_like(labels)
    count = 0
    things = np.where(classes <= 2, labels, 0)
    for value, where in enumerate(ndimage.find_objects(things.astype(np.int32)), start=1):
        if where is None:
            continue
        parts, n = ndimage.label(things[where] == value)
        out[where][parts > 0] = parts[parts > 0] + count
        count += n
    for class_id in (3, 4):
        out[classes == class_id] = count + class_id
    return out


def raster_info(height: int, width: int, key: str = "world-0000000000") -> RasterInfo:
    """Metadata of a raster that exists only as arrays."""
    return RasterInfo(
        uri=f"/{key}.tif",
        key=key,
        stem="world",
        height=height,
        width=width,
        bands=(1, 2, 3),
        dtype="uint8",
        transform=(0.5, 0.0, 500_000.0, 0.0, -0.5, 4_000_000.0),
        crs_wkt=None,
        georeferenced=True,
        native_height=height,
        native_width=width,
        block_shape=(256, 256),
        resampled=False,
        nodata=None,
        scale=None,
        size_bytes=0,
        mtime_ns=0,
    )


Perturb = Callable[[Tile, Labels, Labels], tuple[Labels, Labels]]


def echo_run(
    world: World, tile: int, overlap: int, folder: Path, perturb: Perturb | None = None
) -> tuple[NDArray[np.uint32], Joined]:
    """Segment a world tile by tile with an echo, commit the units, stitch, and paint the whole raster."""
    height, width = world.labels.shape
    plan = RasterPlan(raster_info(height, width), tile, overlap)
    store = LocalStore(folder)
    for unit in plan.units():
        packed = []
        for tile_id, t in plan.tiles_of(unit):
            inside = (slice(t.window.row, t.window.stop_row), slice(t.window.col, t.window.stop_col))
            if not world.valid[inside].any():
                packed.append(empty_tile(tile_id))
                continue
            truth, classes = world.labels[inside], world.classes[inside]
            if perturb is not None:
                truth, classes = perturb(t, truth, classes)
            seen: PanopticMap = echo_map(truth, classes, tile, np.random.default_rng([7, tile_id]))
            packed.append(pack_tile(tile_fragment(plan.grid, t, seen, world.valid[inside], world.table)))
        data = encode_fragment(packed)
        key = f"_state/data/{unit.id}.frag"
        store.put_bytes(key, data)
        commit = {
            "unit": unit.id,
            "fragment": key,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "failed_tiles": [],
        }
        store.put_if_absent(commit_key(unit), json.dumps(commit).encode())
    fragments = Fragments(store, plan)
    things = frozenset(c.class_id for c in world.table if c.is_thing)
    joined = join(fragments, things, NodeFilter())
    painted = JoinedLabels(fragments, joined).read(Window(0, 0, height, width))
    fragments.close()
    return painted, joined
