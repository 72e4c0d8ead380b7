"""Label rasters and rasters as training images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.jobs.training_worlds import THINGS, World, world, write_raster

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.labelled_scene import BACKGROUND, FILL, IGNORED
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.training_rasters import (
    LabelledRaster,
    RasterLabels,
    check_label_raster,
    count_values,
    raster_report,
)

VALUES = {1: 0, 2: 1, 3: 2, 4: 3}


def files(folder: Path, scene: World, **changes: np.ndarray) -> tuple[Path, Path, Path]:
    classes = changes.get("classes", (scene.labels + 1).astype(np.uint8))
    ids = changes.get("ids", scene.ids.astype(np.uint32))
    return (
        write_raster(folder / "image.tif", scene.image),
        write_raster(folder / "ids.tif", ids, nodata=2**32 - 1),
        write_raster(folder / "classes.tif", classes, nodata=255),
    )


def labels_of(folder: Path, scene: World, gsd: float | None = None, **changes: np.ndarray) -> LabelledRaster:
    image, ids, classes = files(folder, scene, **changes)
    info = inspect_raster(str(image), gsd=gsd)
    labels = RasterLabels(str(ids), str(classes), VALUES, frozenset(THINGS), "background", info)
    return LabelledRaster(info, labels)


def test_label_rasters_give_their_own_pixels(tmp_path: Path) -> None:
    """Labels, objects and colours of any window equal the arrays that were written, in another process too."""
    scene = world(1)
    raster = labels_of(tmp_path, scene)
    again = pickle.loads(pickle.dumps(raster))
    for source in (raster, again):
        part = source.crop(8, 20, 40, 30)
        window = slice(8, 48), slice(20, 50)
        assert np.array_equal(part.image, scene.image[(slice(None), *window)])
        assert np.array_equal(part.labels, scene.labels[window])
        assert np.array_equal(part.ids, scene.ids[window])


def test_unlabelled_unknown_and_missing_pixels(tmp_path: Path) -> None:
    """0 is background, an unknown class value, nodata and a thing without id are ignored; nodata is no input."""
    scene = world(1)
    classes, ids = (scene.labels + 1).astype(np.uint8), scene.ids.astype(np.uint32)
    classes[:4], classes[4:8], classes[8:12] = 0, 77, 255
    thing = np.argwhere(scene.ids > 0)[-1]
    ids[scene.ids == scene.ids[tuple(thing)]] = 0
    part = labels_of(tmp_path, scene, classes=classes, ids=ids).crop(0, 0, 64, 64)
    assert (part.labels[:4] == BACKGROUND).all()
    assert (part.labels[4:12] == IGNORED).all()
    assert part.labels[tuple(thing)] == IGNORED
    assert (part.ids[:12] == 0).all()


def test_pixels_without_input_are_grey_and_ignored(tmp_path: Path) -> None:
    """Where the image has nodata, nothing is asked for and nothing is shown."""
    scene = world(1)
    scene.image[:, :16] = 0
    write_raster(tmp_path / "image.tif", scene.image, nodata=0)
    _, ids, classes = tmp_path / "image.tif", tmp_path / "ids.tif", tmp_path / "classes.tif"
    write_raster(ids, scene.ids.astype(np.uint32))
    write_raster(classes, (scene.labels + 1).astype(np.uint8))
    info = inspect_raster(str(tmp_path / "image.tif"))
    part = LabelledRaster(
        info, RasterLabels(str(ids), str(classes), VALUES, frozenset(THINGS), "ignore", info)
    ).crop(0, 0, 64, 64)
    assert (part.image[:, :16] == FILL).all()
    assert (part.labels[:16] == IGNORED).all()
    assert (part.labels[16:] != IGNORED).all()


def test_a_coarser_working_grid_reads_labels_in_the_middle_of_its_pixels(tmp_path: Path) -> None:
    """At twice the pixel size, labels are those of every second pixel of the file."""
    scene = world(1)
    raster = labels_of(tmp_path, scene, gsd=1.0)
    assert raster.shape == (32, 32)
    assert np.array_equal(raster.crop(0, 0, 32, 32).labels, scene.labels[1::2, 1::2])
    assert np.array_equal(raster.crop(4, 6, 10, 12).ids, scene.ids[1::2, 1::2][4:14, 6:18])


def test_labels_on_another_grid_are_refused(tmp_path: Path) -> None:
    """Another size, or another place, is one sentence with both."""
    scene = world(1)
    image, ids, _ = files(tmp_path, scene)
    info = inspect_raster(str(image))
    check_label_raster(str(ids), info)
    small = write_raster(tmp_path / "small.tif", scene.ids[:32].astype(np.uint32))
    with pytest.raises(InputError, match=r"has 64x32 pixels, its image .* 64x64"):
        check_label_raster(str(small), info)
    import rasterio
    from rasterio.transform import Affine

    with rasterio.open(ids, "r+") as dataset:
        dataset.transform = Affine(0.5, 0, 350_100, 0, -0.5, 3_050_000)
    with pytest.raises(InputError, match="lies elsewhere"):
        check_label_raster(str(ids), info)


def test_reports_count_values(tmp_path: Path) -> None:
    """Objects and class values are counted without nodata; unknown values are named."""
    scene = world(1)
    classes = (scene.labels + 1).astype(np.uint8)
    classes[0, 0], classes[0, 1] = 9, 255
    raster = labels_of(tmp_path, scene, classes=classes)
    assert isinstance(raster.labels, RasterLabels)
    counts = count_values(str(tmp_path / "classes.tif"))
    assert counts[9] == 1
    assert 255 not in counts
    report = raster_report(raster.labels, class_values=counts, objects=4)
    assert (report.found, report.used) == (4 + 5, 4 + 4)
    assert dict(report.problems) == {"class values are unknown": 1}
    empty = raster_report(raster.labels, class_values={0: 100}, objects=0)
    assert (empty.found, empty.used) == (0, 0)
    assert sum(empty.problems.values()) == 2
    write_raster(tmp_path / "float.tif", scene.image[:1].astype(np.float32))
    with pytest.raises(InputError, match="whole numbers"):
        count_values(str(tmp_path / "float.tif"))
