"""Label COGs against rio-cogeo's strict validator and against the pixels that went in."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from tests.pipeline.label_arrays import CLASSES, LabelArray, raster_info, segment_table, voronoi

from panoptile.model.classes import ClassTable
from panoptile.pipeline.label_cog import ClassLookup, CogWriter, class_raster, segment_raster
from panoptile.pipeline.raster_info import NODATA_ID, RasterInfo
from panoptile.pipeline.segments import blocks
from panoptile.pipeline.window import Window

rio_cogeo = pytest.importorskip("rio_cogeo")


def write(writer: CogWriter, values: NDArray[np.unsignedinteger], *, backwards: bool = False) -> Path:
    """Fill ``writer`` block by block and finish it."""
    windows = list(blocks(values.shape[0], values.shape[1], 512))
    with writer:
        for window in reversed(windows) if backwards else windows:
            writer.write(window, values[window.slices(Window(0, 0, *values.shape))])
        return writer.finish()


def pixels(path: Path) -> NDArray[np.unsignedinteger]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            values: NDArray[np.unsignedinteger] = dataset.read(1)
            return values


@pytest.mark.parametrize("shape", [(1, 1), (200, 511), (512, 512), (1300, 1100)])
@pytest.mark.parametrize("compression", ["zstd", "deflate"])
def test_label_rasters_are_valid_cogs(tmp_path: Path, shape: tuple[int, int], compression: str) -> None:
    """Any size passes the strict check, holds its pixels, and overviews hold no id that the raster lacks."""
    labels = voronoi(2, *shape, 60)
    path = tmp_path / "a.segments.tif"
    write(segment_raster(path, raster_info(*shape), tags={}, compression=compression), labels)  # type: ignore[arg-type]
    valid, errors, notes = rio_cogeo.cog_validate(path, strict=True)
    assert (valid, errors, notes) == (True, [], [])
    assert [p.name for p in tmp_path.iterdir()] == ["a.segments.tif"]
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(1), labels)
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.compression.value.lower() == compression
        assert dataset.nodata == NODATA_ID
        assert bool(dataset.overviews(1)) == (max(shape) > 512)
        levels = len(dataset.overviews(1))
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as overview:
            assert np.isin(overview.read(1), labels).all()


def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    """Blocks written forwards and backwards give one and the same file."""
    labels = voronoi(4, 1100, 1300, 200)
    digests = set()
    for backwards in (False, True):
        writer = segment_raster(tmp_path / "a.tif", raster_info(1100, 1300), tags={"LAYOUT": "1"})
        digests.add(hashlib.sha256(write(writer, labels, backwards=backwards).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_class_rasters_say_what_their_values_mean(tmp_path: Path) -> None:
    """Palette, names, counts, role, tags, description, nodata and place are all in the file."""
    info = raster_info(40, 50)
    writer = class_raster(tmp_path / "c.tif", info, CLASSES, {1: 7, 3: 1}, tags={"LAYOUT": "1"})
    write(writer, np.full((40, 50), 3, np.uint8))
    with rasterio.open(tmp_path / "c.tif") as dataset:
        assert dataset.dtypes == ("uint8",)
        assert dataset.nodata == 255
        assert dataset.crs.to_epsg() == 32645
        assert tuple(dataset.transform)[:6] == info.transform
        assert dataset.descriptions == ("class id (0 void)",)
        assert [dataset.colormap(1)[c.class_id][:3] for c in CLASSES] == [c.color for c in CLASSES]
        assert dataset.tags()["LAYOUT"] == "1"
        assert dataset.tags()["ROLE"] == "classes"
        rows = json.loads(dataset.tags()["CLASSES"])
    assert [{k: v for k, v in row.items() if k != "segments"} for row in rows] == CLASSES.to_json()
    assert [row["segments"] for row in rows] == [7, 0, 1]


def test_many_classes_take_sixteen_bits(tmp_path: Path) -> None:
    """With 300 classes the raster is uint16 with nodata 65535 and still has its palette."""
    many = ClassTable.from_names([f"class {i}" for i in range(300)], set())
    write(
        class_raster(tmp_path / "c.tif", raster_info(30, 30), many, {}, tags={}),
        np.full((30, 30), 300, np.uint16),
    )
    with rasterio.open(tmp_path / "c.tif") as dataset:
        assert dataset.dtypes == ("uint16",)
        assert dataset.nodata == 65_535
        assert dataset.colormap(1)[300][:3] == many[299].color
    lookup = ClassLookup(np.array([300], np.uint16), many)
    assert lookup(np.array([[0, 1, NODATA_ID]], np.uint32)).tolist() == [[0, 300, 65_535]]


def test_classes_of_segments() -> None:
    """Void stays 0, no input becomes 255, and an id that the table lacks is an error."""
    labels = voronoi(6, 60, 60, 20)
    table = segment_table(labels)
    values = ClassLookup(table.class_ids, CLASSES)(LabelArray.of(labels).values)
    assert values.dtype == np.uint8
    assert (values[labels == 0] == 0).all()
    assert (values[labels == NODATA_ID] == 255).all()
    seen = (labels > 0) & (labels != NODATA_ID)
    assert np.array_equal(values[seen], table.class_ids[labels[seen] - 1])
    with pytest.raises(ValueError, match="ends at 20"):
        ClassLookup(np.ones(20, np.uint16), CLASSES)(np.array([[21]], np.uint32))


def _infos() -> list[RasterInfo]:
    return [raster_info(20, 30, epsg=None), raster_info(20, 30, epsg=None, georeferenced=False)]


@pytest.mark.parametrize("info", _infos(), ids=["no CRS", "not georeferenced"])
def test_what_is_unknown_is_not_written(tmp_path: Path, info: RasterInfo) -> None:
    """Without CRS none is written; without georeference no transform either; and writing warns of neither."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write(segment_raster(tmp_path / "a.tif", info, tags={}), np.ones((20, 30), np.uint32))
    assert pixels(path).all()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with rasterio.open(path) as dataset:
            assert dataset.crs is None
            assert tuple(dataset.transform)[:6] == info.transform
    assert bool(caught) == (not info.georeferenced)


def test_an_abandoned_raster_leaves_nothing(tmp_path: Path) -> None:
    """An exception before ``finish`` removes the scratch file and publishes nothing."""
    with (
        pytest.raises(RuntimeError, match="stop"),
        segment_raster(tmp_path / "a.tif", raster_info(9, 9), tags={}),
    ):
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    """A compression that is not offered is an error that names those that are."""
    with pytest.raises(ValueError, match="'zstd' or 'deflate', got 'lzw'"):
        CogWriter(tmp_path / "a.tif", raster_info(9, 9), dtype="uint8", nodata=255, compression="lzw")  # type: ignore[arg-type]


def test_the_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    """One thread or four: the same file."""
    labels = voronoi(4, 1600, 1700, 90)
    files = []
    for threads in (1, 4):
        writer = segment_raster(tmp_path / f"{threads}.tif", raster_info(*labels.shape), tags={})
        with writer:
            writer.write(Window(0, 0, *labels.shape), labels)
            files.append(writer.finish(threads).read_bytes())
    assert files[0] == files[1]
