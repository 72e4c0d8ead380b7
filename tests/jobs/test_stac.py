"""The STAC catalogue of a finished job."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pystac
import pytest
import rasterio
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.transform import Affine
from tests.jobs.runs import WorldFiles, run, write_world
from tests.pipeline.worlds import make_world

from panoptile.jobs.exits import JobError
from panoptile.jobs.stac import write_catalog


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job over one small world, with its catalogue."""
    folder = tmp_path_factory.mktemp("stac")
    files = write_world(make_world(seed=3, height=200, width=260), folder)
    target = folder / "out"
    run(files, target, tile=128, overlap=32)
    write_catalog(str(target))
    return target


def documents(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((out / "catalog").rglob("*.json")):
        yield path, json.loads(path.read_text())


def test_every_document_is_valid_stac(out: Path) -> None:
    """Collection, items and the model's item fulfil the core schemas, which come with pystac: no network."""
    validator = JsonSchemaSTACValidator()
    kinds = set()
    for path, document in documents(out):
        kind = (
            pystac.STACObjectType.ITEM if document["type"] == "Feature" else pystac.STACObjectType.COLLECTION
        )
        validator.validate_core(document, kind, document["stac_version"], str(path))
        kinds.add(kind)
    assert len(kinds) == 2


def test_links_and_assets_lead_somewhere(out: Path) -> None:
    """Every relative address is a file; pystac walks from the collection to each item and back."""
    for path, document in documents(out):
        hrefs = [link["href"] for link in document["links"] if link["rel"] != "derived_from"]
        hrefs += [asset["href"] for asset in document.get("assets", {}).values()]
        for href in hrefs:
            assert (path.parent / href).resolve().is_file(), (path, href)
    collection = pystac.Collection.from_file(str(out / "catalog" / "collection.json"))
    items = list(collection.get_items())
    assert len(items) == 2
    assert all(item.get_collection() is not None for item in items)


def test_the_extensions_say_what_the_files_are(out: Path) -> None:
    """Projection, data type, nodata, classes, size and hash of the assets are those of the files."""
    collection = pystac.Collection.from_file(str(out / "catalog" / "collection.json"))
    item = next(i for i in collection.get_items() if i.id != "model")
    asset = item.assets["classes_raster"]
    with rasterio.open(asset.get_absolute_href()) as raster:
        projection = ProjectionExtension.ext(asset)
        assert projection.shape == [raster.height, raster.width]
        assert np.allclose(projection.transform or [], list(raster.transform)[:6])
        [band] = RasterExtension.ext(asset).bands or []
        assert (band.data_type, band.nodata) == (raster.dtypes[0], raster.nodata)
    names = {c.value: c.title for c in ClassificationExtension.ext(asset).classes or []}
    rows = json.loads((out / "classes.json").read_text())
    assert {r["class_id"]: r["name"] for r in rows}.items() <= names.items()
    path = Path(str(asset.get_absolute_href()))
    assert FileExtension.ext(asset).size == path.stat().st_size
    import hashlib

    assert FileExtension.ext(asset).checksum == "1220" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert item.properties["processing:software"]["panoptile"]


def test_every_prefix_is_declared(out: Path) -> None:
    """A field with a prefix belongs to an extension that the document names, or is our own."""
    longer = {"proj": "projection"}
    for path, document in documents(out):
        declared = {uri.split("/")[-3] for uri in document.get("stac_extensions", [])}
        places = [document.get("properties", {}), *document.get("assets", {}).values()]
        prefixes = {name.split(":")[0] for fields in places for name in fields if ":" in name} - {"panoptile"}
        assert {longer.get(p, p) for p in prefixes} <= declared, path
    model = json.loads((out / "catalog" / "model.json").read_text())
    recorded = json.loads((out / "job.json").read_text())["model"]
    assert model["properties"]["panoptile:model_sha256"] == recorded["sha256"]


def test_any_name_makes_a_valid_document(out: Path, tmp_path: Path) -> None:
    """Class names in any script, and a source with characters that mean something in an address.

    The pattern is that of the classification extension's schema, whose text pystac does not bring along.
    """
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    rows = json.loads((copy / "classes.json").read_text())
    names = ["Bäume", "道路", "a/b c", "grass"]
    for row, name in zip(rows, names, strict=False):
        row["name"] = name
    (copy / "classes.json").write_text(json.dumps(rows))
    [plan] = (copy / "_state" / "plan").glob("*.json")
    fields = json.loads(plan.read_text())
    fields["info"]["uri"] = "/data/100% #1?.tif"
    plan.write_text(json.dumps(fields))
    write_catalog(str(copy))
    [item] = [d for p, d in documents(copy) if p.parent.name == "items"]
    classes = item["assets"]["classes_raster"]["classification:classes"]
    assert all(re.fullmatch("[0-9A-Za-z-_]+", c["name"]) for c in classes)
    assert set(names) <= {c.get("title") for c in classes}
    [source] = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert unquote(urlsplit(source).path) == "/data/100% #1?.tif"


@pytest.mark.parametrize(
    ("uri", "href"),
    [
        ("s3://bucket/in/a b #1%41 ü.tif", "s3://bucket/in/a%20b%20%231%2541%20%C3%BC.tif"),
        (
            "abfss://box@account.dfs.core.windows.net/a(1)_~.tif",
            "abfss://box@account.dfs.core.windows.net/a(1)_~.tif",
        ),
        ("/data/a b.tif", "file:///data/a%20b.tif"),
    ],
)
def test_the_source_is_an_address(out: Path, tmp_path: Path, uri: str, href: str) -> None:
    """A key of an object is percent-encoded where it must be; an ordinary one stays as it is."""
    assert sources(with_info(out, tmp_path / "out", uri=uri)) == [href]


def test_a_mosaic_comes_from_each_of_its_sheets(out: Path, tmp_path: Path) -> None:
    """One address a sheet, and none of the mosaic, which is no file."""
    sheets = [{"row": 0, "col": 0, "info": {"uri": uri}} for uri in ("/data/a #1.tif", "s3://bucket/b.tif")]
    copy = with_info(out, tmp_path / "out", uri="mosaic of 2 sheets from /data/a #1.tif", sheets=sheets)
    assert sources(copy) == ["file:///data/a%20%231.tif", "s3://bucket/b.tif"]


def with_info(out: Path, copy: Path, **changes: object) -> Path:
    """The same job with other facts of its input on record, and its catalogue."""
    shutil.copytree(out, copy)
    [plan] = (copy / "_state" / "plan").glob("*.json")
    fields = json.loads(plan.read_text())
    fields["info"].update(changes)
    plan.write_text(json.dumps(fields))
    write_catalog(str(copy))
    return copy


def sources(out: Path) -> list[str]:
    """Where the only item comes from."""
    [item] = [d for p, d in documents(out) if p.parent.name == "items"]
    return [link["href"] for link in item["links"] if link["rel"] == "derived_from"]


def placed(files: WorldFiles, folder: Path, places: dict[str, tuple[str, Affine]]) -> Path:
    """A finished job over copies of a world's image that lie elsewhere, by name, with its catalogue."""
    (folder / "in").mkdir(parents=True)
    for name, (crs, transform) in places.items():
        path = folder / "in" / f"{name}.tif"
        shutil.copy(files.image, path)
        with rasterio.open(path, "r+") as raster:
            raster.crs, raster.transform = rasterio.CRS.from_user_input(crs), transform
    run(dataclasses.replace(files, image=folder / "in"), folder / "out", tile=128, overlap=32)
    write_catalog(str(folder / "out"))
    return folder / "out"


def test_places_on_earth_and_off_it(tmp_path: Path) -> None:
    """A site's own grid and the Moon have no geometry and stop nothing; over the antimeridian west is above east."""
    files = write_world(make_world(seed=3, height=200, width=260), tmp_path)
    local, degrees = Affine(0.5, 0, 500, 0, -0.5, 520), Affine(1e-4, 0, 179.99, 0, -1e-4, 10)
    out = placed(
        files,
        tmp_path,
        {
            "mine": ('LOCAL_CS["mine",UNIT["metre",1]]', local),
            "moon": ("IAU_2015:30130", local),
            "fiji": ("EPSG:4326", degrees),
            "far": ("EPSG:32660", Affine(10, 0, 827_500, 0, -10, 1_107_640)),
        },
    )
    validator = JsonSchemaSTACValidator()
    items = {d["id"].rsplit("-", 1)[0]: d for p, d in documents(out) if p.parent.name == "items"}
    for item in items.values():
        validator.validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
    for name in ("mine", "moon"):
        assert items[name]["geometry"] is None
        assert "bbox" not in items[name]
    for name in ("fiji", "far"):
        west, _, east, _ = items[name]["bbox"]
        assert west > 179
        assert east < -179
        assert items[name]["geometry"]["type"] == "MultiPolygon"
    collection = json.loads((out / "catalog" / "collection.json").read_text())
    validator.validate_core(collection, pystac.STACObjectType.COLLECTION, collection["stac_version"])
    [[west, south, east, north]] = collection["extent"]["spatial"]["bbox"]
    assert west == min(items["fiji"]["bbox"][0], items["far"]["bbox"][0])
    assert east == max(items["fiji"]["bbox"][2], items["far"]["bbox"][2])
    assert 9 < south < north < 11


def test_the_model_is_described(out: Path) -> None:
    """Its item carries MLM's required fields, and the classes that it tells apart."""
    model = pystac.Item.from_file(str(out / "catalog" / "model.json"))
    described = MLMExtension.ext(model)
    assert described.architecture == "Mask2Former"
    assert described.input[0].input.shape[-1] == 128
    assert described.output[0].classes


def test_a_folder_without_a_job(tmp_path: Path) -> None:
    """Exit 2."""
    with pytest.raises(JobError, match="no finished run"):
        write_catalog(str(tmp_path))
