"""The whole sweep: rasters and table say the same, and bytes depend on nothing but the labels."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from numpy.typing import NDArray
from pycocotools import mask as coco
from rasterio.features import rasterize
from tests.pipeline.label_arrays import (
    CLASSES,
    GROUND,
    LabelArray,
    dense,
    label_rasters,
    publish,
    raster_info,
    segment_table,
    voronoi,
)

from panoptile.pipeline import publish as publishing
from panoptile.pipeline import vectorize
from panoptile.pipeline.publish import Published, publish_raster
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.segments import blocks
from panoptile.pipeline.vectorize import Vectorizer
from panoptile.pipeline.window import Window


def town(seed: int = 11, side: int = 1500, cells: int = 300) -> NDArray[np.uint32]:
    """Cells over several 512-px blocks; all of class ground are one segment, as stuff is, and one thing is long."""
    labels = voronoi(seed, side, side, cells)
    classes = np.concatenate([[0], segment_table(labels).class_ids])
    seen = labels != NODATA_ID
    stuff = seen & (classes[np.where(seen, labels, 0)] == GROUND)
    labels[stuff] = 3
    labels[side // 2 : side // 2 + 4, 5 : side - 5] = cells + 1
    return dense(labels)


def digests(published: Published) -> list[str]:
    paths = (published.segments_tif, published.classes_tif, published.segments_parquet)
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p is not None]


def assert_raster_is_table(published: Published, labels: NDArray[np.uint32]) -> None:
    """The table's polygons and codes draw the segment raster, pixel by pixel, and no two overlap."""
    with rasterio.open(published.segments_tif) as dataset:
        assert np.array_equal(dataset.read(1), labels)
        transform = dataset.transform
    assert published.segments_parquet is not None
    rows = pq.read_table(published.segments_parquet).to_pylist()
    assert len(rows) == published.rows
    drawn = np.zeros(labels.shape, np.uint32)
    decoded = np.zeros(labels.shape, np.uint32)
    for row in rows:
        (x, y), (h, w) = row["rle_offset"], row["rle"]["size"]
        mask = coco.decode({"size": [h, w], "counts": row["rle"]["counts"].encode()}).astype(np.uint32)
        decoded[y : y + h, x : x + w] += mask * row["segment_id"]  # an overlap would give a sum, another id
        assert mask.sum() == row["area_px"]
    geometries = shapely.from_wkb([row["geometry"] for row in rows])
    assert shapely.is_valid(geometries).all()
    if rows:
        shapes = zip(geometries, [row["segment_id"] for row in rows], strict=True)
        drawn = rasterize(shapes, labels.shape, transform=transform, dtype="uint32")
    expected = np.where(labels == NODATA_ID, 0, labels)
    assert np.array_equal(drawn, expected)
    assert np.array_equal(decoded, expected)
    assert {row["segment_id"] for row in rows} == set(np.unique(expected)) - {0}


@settings(max_examples=15)
@given(label_rasters())
def test_raster_and_table_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, labels: NDArray[np.uint32]
) -> None:
    """On random worlds with holes, contacts at corners, many parts, void and nodata."""
    assert_raster_is_table(publish(labels, tmp_path_factory.mktemp("world")), labels)


def test_raster_and_table_are_the_same_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With objects over many blocks and stuff parted by 1,024-px blocks; each pixel is read once."""
    for module in (publishing, vectorize):
        monkeypatch.setattr(module, "STUFF_BLOCK", 1024)
    labels = town()
    reader = LabelArray.of(labels)
    published = publish_raster(
        reader, raster_info(*labels.shape), segment_table(labels), CLASSES, tmp_path, tags={}, block=512
    )
    assert (reader.reads == 1).all()
    assert_raster_is_table(published, labels)
    assert published.void_pixels == (labels == 0).sum()
    assert published.nodata_pixels == (labels == NODATA_ID).sum()
    assert published.segments_parquet is not None
    rows = pq.read_table(published.segments_parquet).to_pylist()
    ids, counts = np.unique([row["segment_id"] for row in rows], return_counts=True)
    table = segment_table(labels)
    assert (counts[table.class_ids[ids - 1] != GROUND] == 1).all()
    assert all(row["part"] == 0 for row in rows if row["is_thing"])
    split = sorted((row["part"], row["bbox_px"]) for row in rows if row["segment_id"] == 3)
    assert [part for part, _ in split] == [0, 1, 2, 3]
    assert [(y // 1024, x // 1024) for _, (x, y, _, _) in split] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    areas = np.bincount([r["segment_id"] for r in rows], [r["area_px"] for r in rows])[1:]
    assert np.array_equal(areas, table.areas)


def test_classes_are_those_of_the_segments(tmp_path: Path) -> None:
    """Every pixel of the class raster is its segment's class; void and nodata correspond."""
    labels = town(side=700)
    published = publish(labels, tmp_path)
    table = segment_table(labels)
    with rasterio.open(published.classes_tif) as dataset:
        values = dataset.read(1)
    lookup = np.concatenate([[0], table.class_ids])
    expected = np.where(labels == NODATA_ID, 255, lookup[np.where(labels == NODATA_ID, 0, labels)])
    assert np.array_equal(values, expected)


def test_bytes_do_not_depend_on_blocks(tmp_path: Path) -> None:
    """Every block side gives the same three files, byte by byte, and nothing else is left in the folder."""
    labels = town()
    runs = [digests(publish(labels, tmp_path / str(side), block=side)) for side in (512, 1024, 2048)]
    assert runs[0] == runs[1] == runs[2]
    assert len(list((tmp_path / "512").iterdir())) == 3


def test_outlines_are_final_whatever_the_order_of_blocks() -> None:
    """A thing comes out once, whole, with the block that brings its last pixel, in any order of blocks."""
    labels = voronoi(3, 300, 300, 40)
    windows = list(blocks(300, 300, 64))
    found = []
    for seed in (0, 1):
        np.random.default_rng(seed).shuffle(windows)
        sweep = Vectorizer(segment_table(labels), np.ones(40, bool))
        areas: dict[int, int] = {}
        for window in windows:
            outlines, parts = sweep.add(labels[window.slices(Window(0, 0, 300, 300))], window)
            assert (parts == 0).all()
            areas.update(zip(outlines.ids.tolist(), outlines.areas().tolist(), strict=True))
        sweep.finish()
        found.append(areas)
    assert found[0] == found[1] == {i + 1: int(a) for i, a in enumerate(segment_table(labels).areas)}


def test_no_table_on_request(tmp_path: Path) -> None:
    """Without the vector product the rasters are the same and no table is written."""
    labels = town(side=600)
    published = publish(labels, tmp_path / "a", vector=False)
    assert published.segments_parquet is None
    assert digests(published) == digests(publish(labels, tmp_path / "b"))[:2]
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_labels_that_differ_from_the_table_are_refused(tmp_path: Path) -> None:
    """Missing pixels, surplus pixels and unknown ids are errors that name the segment; no scratch file stays."""
    labels = voronoi(1, 90, 90, 12)
    table = segment_table(labels)
    missing = labels.copy()
    missing[tuple(np.argwhere(labels == 4)[:5].T)] = 0
    surplus = labels.copy()
    surplus[tuple(np.argwhere(labels == 4)[:5].T)] = 7
    unknown = labels.copy()
    unknown[0, -1] = 99
    broken = {
        "segment 4 lacks 5 of its pixels": missing,
        "more pixels of segment 7": surplus,
        "segment 99": unknown,
    }
    for message, values in broken.items():
        with pytest.raises(ValueError, match=message):
            publish_raster(LabelArray.of(values), raster_info(90, 90), table, CLASSES, tmp_path, tags={})
        assert list(tmp_path.iterdir()) == []


def test_blocks_must_fit_the_files(tmp_path: Path) -> None:
    """A block side that would cut COG blocks or stuff blocks is refused."""
    for side in (100, 1536):
        with pytest.raises(ValueError, match=f"got {side}"):
            publish(np.zeros((9, 9), np.uint32), tmp_path, block=side)


class _Checkered:
    """A huge raster that exists nowhere: squares of 64 px, numbered in scan order, every other one void."""

    def __init__(self, side: int) -> None:
        self.across = side // 64
        self.count = self.across**2 // 2

    def read(self, window: Window) -> NDArray[np.uint32]:
        rows = np.arange(window.row, window.stop_row)[:, None] // 64
        cols = np.arange(window.col, window.stop_col)[None] // 64
        ids = (rows * self.across + cols) // 2 + 1
        return np.where((rows + cols) % 2 == 0, ids, 0).astype(np.uint32)


def test_memory_does_not_follow_the_raster(tmp_path: Path) -> None:
    """From 2k² to 6k² px, Python's peak grows by less than 100 bytes a segment: no stripe of pixels is held."""
    peaks, counts = [], []
    for side in (2048, 6144):
        reader = _Checkered(side)
        n = reader.count
        table = segment_table(np.zeros((1, 1), np.uint32))
        table = type(table)(
            np.ones(n, np.uint16), np.ones(n, np.float32), np.full(n, 4096, np.int64), np.zeros(n, bool),
            np.ones(n, np.int32), np.arange(n + 1), np.zeros(n, np.int32), 0,
        )  # fmt: skip
        tracemalloc.start()
        published = publish_raster(reader, raster_info(side, side), table, CLASSES, tmp_path, tags={})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        counts.append(n)
        assert published.rows == n
    assert peaks[1] - peaks[0] < 100 * (counts[1] - counts[0]) + 0.1 * peaks[0], peaks
