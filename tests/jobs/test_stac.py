"""The STAC catalogue of a finished job."""

from __future__ import annotations

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
from tests.jobs.runs import run, write_world
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
