"""Seam rules compared on a noisy echo: ours, face merging, box NMS, no merging, and the untiled ceiling.

Run: ``python tests/benchmarks/seam_rules.py [--size 2048] [--seed 0]``. Every tile sees the truth with its own
noise (each object grown or shrunk by a pixel, shifted by a pixel, slivers at the tile's border missed), so two
tiles never agree exactly. Prints PQ of things against the truth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.pipeline.worlds import Labels, World, echo_run

from panoptile.model.classes import ClassTable
from panoptile.pipeline.grid import Tile, TileGrid

TABLE = ClassTable.from_names(["object"], {0})


def terraced_world(seed: int, size: int) -> World:
    """Terraces of touching buildings, large fields, thin objects as long as the raster."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int64)
    count = 0

    def paint(row: int, col: int, height: int, width: int) -> None:
        nonlocal count
        count += 1
        labels[row : row + height, col : col + width] = count

    for _ in range(size * size // 300_000):
        paint(*(int(v) for v in (*rng.integers(0, size, 2), *rng.integers(100, 600, 2))))
    for row in range(20, size - 60, 90):
        col = int(rng.integers(0, 30))
        depth = int(rng.integers(25, 50))
        while col < size - 40:
            breadth = int(rng.integers(12, 40))
            if rng.random() < 0.85:
                paint(row + int(rng.integers(0, 4)), col, depth, breadth)
            else:
                col += int(rng.integers(10, 60))
            col += breadth
    for at in range(70, size - 20, size // 5):
        paint(at, 0, int(rng.integers(5, 9)), size)
    out = np.zeros_like(labels)
    total = 0
    for value, where in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        if where is not None:
            parts, n = ndimage.label(labels[where] == value)
            out[where][parts > 0] = parts[parts > 0] + total
            total += n
    return World(out, (out > 0).astype(np.int64), np.ones((size, size), np.bool_), TABLE)


@dataclass(frozen=True)
class Noise:
    """Independent errors per tile."""

    seed: int
    size: int

    def __call__(self, tile: Tile, truth: Labels, classes: Labels) -> tuple[Labels, Labels]:
        rng = np.random.default_rng([self.seed, tile.row, tile.col])
        seen = np.zeros_like(truth)
        window = tile.window
        compact = np.unique(truth, return_inverse=True)
        boxes = ndimage.find_objects(compact[1].reshape(truth.shape).astype(np.int32))
        for index in rng.permutation(len(boxes)):
            where = boxes[index]
            value = compact[0][index + 1] if compact[0][0] == 0 else compact[0][index]
            if where is None or value == 0:
                continue
            rows = slice(max(where[0].start - 3, 0), where[0].stop + 3)
            cols = slice(max(where[1].start - 3, 0), where[1].stop + 3)
            mask = truth[rows, cols] == value
            cut = self._cut(where, window.row, window.col, truth.shape)
            thin = min(where[0].stop - where[0].start, where[1].stop - where[1].start) < 6
            if cut and (thin or mask.sum() < 80) and rng.random() < 0.7:
                continue  # a sliver at the tile's border is missed
            grow = int(rng.integers(-1, 2))
            if grow > 0:
                mask = ndimage.binary_dilation(mask)
            elif grow < 0:
                mask = ndimage.binary_erosion(mask, border_value=1)
            mask = np.roll(mask, tuple(rng.integers(-1, 2, 2)), (0, 1))
            seen[rows, cols][mask] = value
        return seen, (seen > 0).astype(np.int64)

    def _cut(self, where: tuple[slice, slice], row: int, col: int, shape: tuple[int, ...]) -> bool:
        """Does the tile's border (not the raster's) cut this object?"""
        return (
            (where[0].start == 0 and row > 0)
            or (where[1].start == 0 and col > 0)
            or (where[0].stop == shape[0] and row + shape[0] < self.size)
            or (where[1].stop == shape[1] and col + shape[1] < self.size)
        )


def panoptic_quality(found: NDArray[np.integer], truth: Labels) -> tuple[float, int, int]:
    """PQ of one class, with false positives and false negatives; matches have IoU > 0.5."""
    found_ids, f = np.unique(found, return_inverse=True)
    true_ids, t = np.unique(truth, return_inverse=True)
    table = np.bincount(f.ravel() * len(true_ids) + t.ravel(), minlength=len(found_ids) * len(true_ids))
    table = table.reshape(len(found_ids), len(true_ids))
    union = table.sum(1)[:, None] + table.sum(0)[None] - table
    iou = np.where(union > 0, table / np.maximum(union, 1), 0)
    iou[found_ids == 0] = 0
    iou[:, true_ids == 0] = 0
    matched = iou > 0.5
    tp = int(matched.sum())
    fp = int(np.count_nonzero(found_ids)) - tp
    fn = int(np.count_nonzero(true_ids)) - tp
    return float(iou[matched].sum() / (tp + (fp + fn) / 2)), fp, fn


Views = dict[tuple[int, int], Labels]


def core_cut(grid: TileGrid, views: Views) -> Labels:
    """Every tile keeps its core; an object cut by a core line stays cut."""
    out = np.zeros((grid.height, grid.width), np.int64)
    offset = 0
    for tile in grid:
        local = views[tile.row, tile.col][tile.core.slices(tile.window)]
        ids, compact = np.unique(local, return_inverse=True)
        renamed = np.where(ids > 0, np.arange(len(ids)) + 1 + offset, 0)[compact].reshape(local.shape)
        out[tile.core.row : tile.core.stop_row, tile.core.col : tile.core.stop_col] = renamed
        offset += len(ids) + 1
    return out


def face_merge(grid: TileGrid, views: Views) -> Labels:
    """Cores, and segments that touch across a core line become one (as connected-component tools do)."""
    out = core_cut(grid, views)
    pairs = []
    for tile in grid:
        bottom, right = tile.core.stop_row, tile.core.stop_col
        if bottom < grid.height:
            cols = slice(tile.core.col, right)
            pairs.append(np.stack([out[bottom - 1, cols], out[bottom, cols]], 1))
        if right < grid.width:
            rows = slice(tile.core.row, bottom)
            pairs.append(np.stack([out[rows, right - 1], out[rows, right]], 1))
    edges = np.concatenate(pairs)
    edges = np.unique(edges[(edges > 0).all(1)], axis=0)
    from scipy import sparse
    from scipy.sparse import csgraph

    n = int(out.max()) + 1
    graph = sparse.coo_array((np.ones(len(edges), np.bool_), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, component = csgraph.connected_components(graph, directed=False)
    return np.where(out > 0, component[out] + 1, 0)


def box_nms(grid: TileGrid, views: Views, threshold: float = 0.3) -> Labels:
    """All tiles' objects; of two whose boxes overlap (IoU > .3) across tiles only the larger one is kept."""
    boxes, masks = [], []
    for tile in grid:
        view = views[tile.row, tile.col]
        ids, compact = np.unique(view, return_inverse=True)
        found = ndimage.find_objects(compact.reshape(view.shape).astype(np.int32))
        for index, where in enumerate(found, start=1):
            if where is None or ids[index] == 0:
                continue
            mask = view[where] == ids[index]
            row, col = where[0].start + tile.window.row, where[1].start + tile.window.col
            boxes.append((row, col, row + mask.shape[0], col + mask.shape[1]))
            masks.append(mask)
    box = np.array(boxes, np.float64)
    areas = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    order = list(np.argsort([-m.sum() for m in masks], kind="stable"))
    out = np.zeros((grid.height, grid.width), np.int64)
    dropped = np.zeros(len(masks), np.bool_)
    for number in order:
        if dropped[number]:
            continue
        top = np.maximum(box[:, :2], box[number, :2])
        bottom = np.minimum(box[:, 2:], box[number, 2:])
        inter = np.prod(np.clip(bottom - top, 0, None), axis=1)
        dropped |= inter / (areas + areas[number] - inter) > threshold
        r0, c0, r1, c1 = boxes[number]
        target = out[r0:r1, c0:c1]
        target[masks[number] & (target == 0)] = number + 1
    return out


def compare(seed: int, size: int, tile: int, overlap: int) -> dict[str, tuple[float, int, int]]:
    """PQ, false positives and false negatives of each rule on one noisy world."""
    world = terraced_world(seed, size)
    noise = Noise(seed + 1, size)
    grid = TileGrid(size, size, tile, overlap)
    views = {
        (t.row, t.col): noise(
            t, world.labels[t.window.row : t.window.stop_row, t.window.col : t.window.stop_col], world.classes
        )[0]
        for t in grid
    }
    rules: dict[str, Callable[[], NDArray[np.integer]]] = {
        "core cut, no merge": lambda: core_cut(grid, views),
        "face merge": lambda: face_merge(grid, views),
        "box NMS .3": lambda: box_nms(grid, views),
        "overlap-band IoU + union-find (ours)": lambda: _ours(world, tile, overlap, noise),
        "untiled, same noise (ceiling)": lambda: _ours(world, size, 0, noise),
    }
    return {name: panoptic_quality(rule(), world.labels) for name, rule in rules.items()}


def _ours(world: World, tile: int, overlap: int, noise: Noise) -> NDArray[np.uint32]:
    with tempfile.TemporaryDirectory() as folder:
        return echo_run(world, tile, overlap, Path(folder), noise)[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    a = parser.parse_args()
    print(f"{'rule':<40} {'PQ':>7} {'FP':>5} {'FN':>5}")
    for name, (pq, fp, fn) in compare(a.seed, a.size, a.tile, a.overlap).items():
        print(f"{name:<40} {pq:>7.4f} {fp:>5} {fn:>5}")


if __name__ == "__main__":
    main()
