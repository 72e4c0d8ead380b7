"""From a data specification to sources, classes and a hold-out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from tests.jobs.training_worlds import (
    EPSG,
    NAMES,
    outlines,
    world,
    write_coco,
    write_geoparquet,
    write_raster,
)

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.labelled_scene import WithoutWindows
from panoptile.pipeline.training_data import TrainingData, open_training_data
from panoptile.pipeline.training_spec import DataSpec, read_data_file


def opened(source: dict[str, Any], *, extent: int = 64, **fields: Any) -> TrainingData:
    return open_training_data(DataSpec.model_validate({"sources": (source,), **fields}), extent=extent)


def polygon_source(folder: Path) -> dict[str, Any]:
    scene = world(3, height=256, width=192)
    write_raster(folder / "image.tif", scene.image)
    write_geoparquet(folder / "labels.parquet", list(outlines(scene)))
    return {
        "images": str(folder / "image.tif"),
        "labels": str(folder / "labels.parquet"),
        "class_column": "kind",
    }


def test_classes_come_from_the_labels(tmp_path: Path) -> None:
    """Without a table: the column's values in alphabetical order, all things but the named stuff."""
    data = opened(polygon_source(tmp_path), stuff=("grass", "soil"))
    assert [(c.name, c.is_thing) for c in data.classes] == [
        ("disc", True),
        ("grass", False),
        ("soil", False),
        ("square", True),
    ]
    assert data.gsd_m == pytest.approx(0.5, rel=0.01)
    assert data.report.used == data.report.found


def test_an_area_is_held_out_in_any_spelling(tmp_path: Path) -> None:
    """Bounds in the raster's CRS and a GeoJSON file in degrees hold out the same pixels."""
    source = polygon_source(tmp_path)
    bounds = (350_000.0, 3_049_936.0, 350_032.0, 3_050_000.0)  # columns 0-63, rows 0-127
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(*bounds)], crs=f"EPSG:{EPSG}").to_crs(4326)
    frame.to_file(tmp_path / "area.geojson", driver="GeoJSON", COORDINATE_PRECISION=13)
    for area in (bounds, str(tmp_path / "area.geojson")):
        data = opened(source, validation={"area": area, "guard": 0})
        assert data.held_out
        (part,) = data.sources
        assert isinstance(part, WithoutWindows)
        # A box in degrees is not quite upright on the grid: its bounding box may reach two pixels further.
        assert np.allclose(part.windows, [(0, 0, 128, 64)], atol=2)
        assert (part.crop(0, 0, 128, 64).labels == 65535).all()
        assert (part.crop(0, 66, 256, 126).labels != 65535).all()
    with pytest.raises(InputError, match="does not meet any image"):
        opened(source, validation={"area": (0.0, 0.0, 1.0, 1.0)})


def test_blocks_are_held_out_by_default(tmp_path: Path) -> None:
    """A tenth of the blocks, at least one; with a fraction of 0 the training windows judge and it says so."""
    source = polygon_source(tmp_path)
    data = opened(source)
    assert data.held_out
    assert len(data.validation) == 1  # of 4 x 3 blocks of 64 px
    judge = data.validation[0].scene(64)
    assert (judge.labels < 4).all()
    open_data = opened(source, validation={"fraction": 0.0})
    assert not open_data.held_out
    assert len(open_data.validation) == 12
    assert (open_data.sources[0].crop(0, 0, 256, 192).labels < 4).all()


def test_whole_images_of_coco_are_held_out(tmp_path: Path) -> None:
    """Of ten images one judges and nine train; the two sets are disjoint."""
    file = write_coco(tmp_path, [world(i) for i in range(10)], panoptic=True)
    data = opened({"coco": str(file), "images": str(tmp_path), "masks": str(tmp_path / "panoptic")})
    assert [c.name for c in data.classes] == list(NAMES)
    training, judging = {s.name for s in data.sources}, {w.source.name for w in data.validation}
    assert (len(training), len(judging)) == (9, 1)
    assert not training & judging


def test_label_rasters_find_their_images_by_name(tmp_path: Path) -> None:
    """A folder of label rasters serves a folder of images; a missing one is named."""
    for folder in ("images", "ids", "classes"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        scene = world(i)
        write_raster(tmp_path / "images" / f"{i}.tif", scene.image)
        write_raster(tmp_path / "ids" / f"{i}.tif", scene.ids.astype(np.uint32))
        write_raster(tmp_path / "classes" / f"{i}.tif", (scene.labels + 1).astype(np.uint8))
    source = {
        "images": str(tmp_path / "images"),
        "labels": str(tmp_path / "ids"),
        "label_classes": str(tmp_path / "classes"),
    }
    data = opened(source, stuff=("class 3", "class 4"), validation={"fraction": 0.0})
    assert [c.name for c in data.classes] == ["class 1", "class 2", "class 3", "class 4"]
    for source_image, seed in zip(data.sources, range(3), strict=True):
        assert np.array_equal(source_image.crop(0, 0, 64, 64).labels, world(seed).labels)
    (tmp_path / "ids" / "1.tif").unlink()
    with pytest.raises(InputError, match="holds 0 label rasters called '1'"):
        opened(source)


def test_objects_without_a_class_get_the_one_that_is_named(tmp_path: Path) -> None:
    """Polygons without a column and a raster of ids alone are of ``class_name``, a thing; of a table, of that class."""
    scene = world(0)
    write_raster(tmp_path / "image.tif", scene.image)
    write_raster(tmp_path / "ids.tif", scene.ids.astype(np.uint32))
    things = [(kind, shape) for kind, shape in outlines(scene) if kind in NAMES[:2]]
    write_geoparquet(tmp_path / "labels.parquet", list(things))
    table = ({"name": "tree"}, {"name": "roof"})
    for labels in ("ids.tif", "labels.parquet"):
        source = {
            "images": str(tmp_path / "image.tif"),
            "labels": str(tmp_path / labels),
            "class_name": "roof",
        }
        data = opened(source)
        assert [(c.name, c.is_thing) for c in data.classes] == [("roof", True)]
        part = opened(source, classes=table).sources[0].crop(0, 0, 64, 64)
        assert (part.labels[scene.ids > 0] == 1).all()
        assert len(np.unique(part.ids)) == 5
        with pytest.raises(InputError, match="'roof' is not among the classes"):
            opened(source, classes=({"name": "tree"},))


def test_data_files_are_strict(tmp_path: Path) -> None:
    """Unknown keys, two forms at once, tags and aliases are refused with their place."""
    path = tmp_path / "data.yaml"
    for text, words in (
        ("sources: [{images: a.tif, labels: b.gpkg, clases: 1}]", "sources.0.clases: extra inputs"),
        ("sources: []", "at least 1 item"),
        ("sources: [{images: a.tif}]", "needs labels, label_classes or coco"),
        ("sources: [{images: a, coco: b.json, labels: c.gpkg}]", "takes images and masks"),
        ("sources: &a [{images: a.tif, labels: b.gpkg}]", "line 1: anchors"),
        ("sources: !!python/name:os.system", "anchors, aliases and tags"),
        ("sources: [", "no YAML data file"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_data_file(str(path))
    path.write_text("sources: [{images: a.tif, labels: b.gpkg}]\nvalidation: {area: [0, 1.5, 2, 3]}")
    spec = read_data_file(str(path))
    assert spec.sources[0].images == str(tmp_path / "a.tif")
    assert spec.validation.area == (0.0, 1.5, 2.0, 3.0)


def test_all_labels_bad_is_an_error_that_says_why(tmp_path: Path) -> None:
    """Where nothing can be used, the reasons are in the sentence."""
    write_raster(tmp_path / "image.tif", world(0).image)
    write_geoparquet(tmp_path / "labels.parquet", [("square", None), ("square", shapely.box(0, 0, 1, 1))])
    with pytest.raises(InputError, match=r"1 labels have no geometry .*; 1 labels lie outside"):
        opened({"images": str(tmp_path / "image.tif"), "labels": str(tmp_path / "labels.parquet")})
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(InputError, match="No label can be used"):
        opened({"images": str(tmp_path), "coco": str(path)})
