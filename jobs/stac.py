"""The outputs as a static STAC catalogue in ``OUT/catalog/``: a collection, one item per input, one for the model.

Items carry the projection, raster, classification, processing and file extensions, the model's item the machine
learning model extension (MLM). Links are relative: the folder can be moved or served as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pystac
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import (
    InputStructure,
    MLMExtension,
    ModelInput,
    ModelOutput,
    ResultStructure,
    TaskType,
)
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, RasterBand, RasterExtension

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.finished_run import damaged, published_classes
from panoptile.jobs.job_record import read_job
from panoptile.jobs.state import parquet_rows, read_json, store_errors
from panoptile.model.classes import ClassTable
from panoptile.pipeline import (
    gdal_env,  # noqa: F401  (GDAL's environment, before rasterio)
    layout,
)
from panoptile.pipeline.footprint import Box, Footprint, around, footprint
from panoptile.pipeline.plan import WRITTEN
from panoptile.pipeline.redaction import redacted
from panoptile.pipeline.store import Store, open_store

import rasterio.crs  # isort: skip  (after gdal_env)

FOLDER = "catalog"
MAX_WRITES = 5
"""How often the catalogue is written because another result was published meanwhile."""
MODEL_SHA256 = "panoptile:model_sha256"
"""Of all of the model's files together: the file extension knows checksums of assets and links alone."""
LISTED = "panoptile:manifest_sha256"
"""Field of the collection, which is written after the items: the manifest that the catalogue was written from."""
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
PARQUET = "application/vnd.apache.parquet"
FILE_TIME = "The time is that of the source file; it may not be the acquisition's."
NO_TIME = "When the source was taken or written is not known."
ANY_TIME = {"start_datetime": "1970-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
"""STAC wants an interval where there is no time."""
WORLD = [-180.0, -90.0, 180.0, 90.0]


def is_catalogued(store: Store) -> bool:
    """Whether ``catalog/`` lists the finished job as it is now: all of it is there. Raises ``OSError`` of the store."""
    success = read_json(store, layout.SUCCESS) or {}
    collection = read_json(store, f"{FOLDER}/collection.json") or {}
    if collection.get(LISTED) is None or collection[LISTED] != success.get("manifest_sha256"):
        return False
    try:
        linked = {f"{FOLDER}/{link['href'][2:]}" for link in collection["links"] if link["rel"] == "item"}
    except (KeyError, TypeError):
        return False
    return linked == {*store.keys(f"{FOLDER}/items"), f"{FOLDER}/model.json"}


def write_catalog(out: str) -> str:
    """Write ``catalog/`` anew from a finished job; returns where it begins.

    Raises :class:`JobError`: exit 2 where there is none, 5 where each try meets a newer result.
    """
    try:
        store = open_store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
    with store_errors(out):
        if not store.exists(layout.SUCCESS):
            raise invalid(
                f"{out} holds no finished run: there is no {layout.SUCCESS}. See panoptile status {out}."
            )
        for _ in range(MAX_WRITES):
            listed = _manifest(store)
            stale = _write(store, listed)
            if (
                _manifest(store) == listed
            ):  # else what looks stale may be an item that another run has just written
                for key in stale:
                    store.delete(key)
                return store.uri(f"{FOLDER}/collection.json")
    raise JobError(
        Exit.OTHER_JOB,
        f"{out} was published anew {MAX_WRITES} times meanwhile: write its catalogue when no run does.",
    )


def _write(store: Store, listed: bytes) -> list[str]:
    """Write what a manifest lists; the keys of items that were there and that it does not list."""
    job = read_job(store) or {}
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        classes = published_classes(store, Path(folder))
    assets = _assets(store, listed)
    written = store.read_all(f"{FOLDER}/items")
    links, boxes, times = [], list[Box](), []
    for item in _items(store, job, classes, assets):
        name = f"items/{item.id}.json"
        data = _json(item.to_dict(include_self_link=False, transform_hrefs=False))
        if written.pop(f"{FOLDER}/{name}", None) != data:
            store.put_bytes(f"{FOLDER}/{name}", data)
        links.append({"rel": "item", "href": f"./{name}", "type": "application/geo+json"})
        boxes += [(item.bbox[0], item.bbox[1], item.bbox[2], item.bbox[3])] if item.bbox else []
        times += [item.datetime] if item.datetime else []
    model = _model_item(job, classes)
    store.put_bytes(
        f"{FOLDER}/model.json", _json(model.to_dict(include_self_link=False, transform_hrefs=False))
    )
    links.append({"rel": "item", "href": "./model.json", "type": "application/geo+json"})
    collection = _collection(store, job, boxes, times)
    fields = collection.to_dict(include_self_link=False, transform_hrefs=False)
    fields[LISTED] = hashlib.sha256(listed).hexdigest()
    fields["links"] = [{"rel": "root", "href": "./collection.json", "type": "application/json"}, *links]
    store.put_bytes(f"{FOLDER}/collection.json", _json(fields))
    return list(written)


def _manifest(store: Store) -> bytes:
    try:
        return store.read_bytes(layout.MANIFEST)
    except FileNotFoundError as e:
        raise damaged(store, layout.MANIFEST) from e


def _assets(store: Store, listed: bytes) -> dict[str, list[dict[str, Any]]]:
    """Published files by the key of their input."""
    found: dict[str, list[dict[str, Any]]] = {}
    rows = parquet_rows(listed)
    if rows is None:
        raise damaged(store, layout.MANIFEST)
    for row in rows:
        if row["kind"] == "asset":
            found.setdefault(row["input"], []).append(row)
    return found


def _items(
    store: Store, job: dict[str, Any], classes: ClassTable, assets: dict[str, list[dict[str, Any]]]
) -> Iterator[pystac.Item]:
    for name in sorted(assets):
        plan = read_json(store, layout.plan_key(name))
        if not plan:
            raise damaged(store, layout.plan_key(name))
        yield _item(store, name, plan, job, classes, assets[name])


def _item(
    store: Store,
    key: str,
    plan: dict[str, Any],
    job: dict[str, Any],
    classes: ClassTable,
    assets: list[dict[str, Any]],
) -> pystac.Item:
    about = plan.get("info") or plan.get("index") or plan
    place = _place(about)
    source = redacted(str(about.get("uri") or plan.get("uri") or key))
    taken = _written(about)
    item = pystac.Item(
        key,
        place.geometry if place else None,
        list(place.box) if place else None,
        taken,
        {
            "title": source.rsplit("/", 1)[-1],
            "description": f"Panoptic segmentation. {FILE_TIME if taken else NO_TIME}",
            **({} if taken else ANY_TIME),
            "processing:software": {"panoptile": version("panoptile")},
            "processing:facility": "panoptile",
            "processing:lineage": f"Segmented from {source} by job {str(job.get('fingerprint', ''))[:16]}.",
        },
        stac_extensions=[PROCESSING],
    )
    for link in ("root", "collection", "parent"):
        item.add_link(pystac.Link(link, "../collection.json", "application/json"))
    for sheet in about.get("sheets") or ():
        item.add_link(pystac.Link("derived_from", _address(redacted(sheet["info"]["uri"]))))
    if not about.get("sheets"):
        item.add_link(pystac.Link("derived_from", _address(source)))
    item.add_link(
        pystac.Link("processing-expression", "../model.json", "application/geo+json", title="The model")
    )
    item.collection_id = FOLDER
    for row in assets:
        _add_asset(item, row, about, classes)
    preview = f"previews/{key}.png"
    if store.exists(preview):
        item.add_asset(
            "preview", pystac.Asset(f"../../{preview}", media_type="image/png", roles=["overview"])
        )
    return item


def _address(source: str) -> str:
    """The URI of a local path, or of an object, whose key may hold what means something in a URI."""
    if source.startswith("/"):
        return Path(source).as_uri()
    scheme, separator, rest = source.partition("://")
    return scheme + separator + quote(rest, safe="/!$&'()*+,;=:@")


def _written(about: dict[str, Any]) -> datetime | None:
    """When the source file or object was written; None where its store does not say, or the run did not note it."""
    nanoseconds = max(int(about.get("mtime_ns") or 0), int(about.get(WRITTEN) or 0))
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC) if nanoseconds else None


def _place(about: dict[str, Any]) -> Footprint | None:
    """None where the input has no place on Earth."""
    if not about.get("crs_wkt") or not about.get("georeferenced"):
        return None
    crs = rasterio.crs.CRS.from_wkt(about["crs_wkt"])
    return footprint(crs, about["transform"][:6], (about["height"], about["width"]))


def _add_asset(item: pystac.Item, row: dict[str, Any], about: dict[str, Any], classes: ClassTable) -> None:
    path = str(row["name"])
    name = path.rsplit("/", 1)[-1]
    tiff, parquet = path.endswith(".tif"), path.endswith(".parquet")
    kind = (
        name.split(".")[-2]
        if tiff
        else name.removesuffix(".parquet")
        if path.startswith("video/")
        else "segments"
    )
    media = pystac.MediaType.COG if tiff else PARQUET if parquet else "video/mp4"
    asset = pystac.Asset(f"../../{path}", media_type=str(media), roles=["data"], title=name)
    item.add_asset(f"{kind}_raster" if tiff else f"{kind}_table" if parquet else kind, asset)
    FileExtension.ext(asset, add_if_missing=True).apply(
        size=row["bytes"], checksum="1220" + str(row["sha256"])
    )
    if not tiff:
        return
    crs = rasterio.crs.CRS.from_wkt(about["crs_wkt"]) if about.get("crs_wkt") else None
    epsg = crs.to_epsg() if crs is not None else None
    projection = ProjectionExtension.ext(asset, add_if_missing=True)
    projection.apply(
        code=f"EPSG:{epsg}" if epsg else None,
        wkt2=None if crs is None or epsg else crs.to_wkt(version="WKT2_2019"),
        shape=[about["height"], about["width"]],
        transform=[float(v) for v in about["transform"][:6]],
    )
    large = len(classes) > 254
    types = {"segments": ("uint32", 0xFFFF_FFFF), "classes": ("uint16", 65_535) if large else ("uint8", 255)}
    dtype, nodata = types[kind]
    band = RasterBand.create(nodata=nodata, data_type=dtype)  # type: ignore[arg-type]
    RasterExtension.ext(asset, add_if_missing=True).apply([band])
    if kind == "classes":
        ClassificationExtension.ext(asset, add_if_missing=True).apply(classes=_classifications(classes))


def _classifications(classes: ClassTable) -> list[Classification]:
    void = Classification.create(0, "Seen, and nothing was found", name="void")
    return [
        void,
        *(
            Classification.create(
                c.class_id,
                f"{c.name} ({'thing' if c.is_thing else 'stuff'})",
                name=re.sub("[^0-9A-Za-z_-]", "_", c.name) or f"class_{c.class_id}",
                title=c.name,
                color_hint="{:02X}{:02X}{:02X}".format(*c.color),
            )
            for c in classes
        ),
    ]


def _model_item(job: dict[str, Any], classes: ClassTable) -> pystac.Item:
    """The model as an item of the whole world: STAC has no other place for it."""
    fields, model = job.get("fields", {}), job.get("model", {})
    west, south, east, north = WORLD
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        "model",
        {"type": "Polygon", "coordinates": [ring]},
        WORLD,
        None,
        {
            "description": str(model.get("description", "")),
            **ANY_TIME,
        },
    )
    side, batch = int(fields.get("tile") or 512), int(fields.get("batch") or 1)
    tasks = {"instance": TaskType.INSTANCE_SEGMENTATION, "semantic": TaskType.SEMANTIC_SEGMENTATION}
    task = tasks.get(str(fields.get("task")), TaskType.PANOPTIC_SEGMENTATION)
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=str(model.get("description") or "panoptile model"),
        architecture="Mask2Former",
        tasks=[task],
        input=[
            ModelInput.create(
                "tile",
                ["red", "green", "blue"],
                InputStructure.create(
                    [batch, 3, side, side], ["batch", "band", "height", "width"], DataType.UINT8
                ),
            )
        ],
        output=[
            ModelOutput.create(
                "segment ids",
                [task],
                ResultStructure.create([batch, side, side], ["batch", "height", "width"], DataType.UINT32),
                classes=_classifications(classes),
            )
        ],
        framework="pytorch",
        framework_version=str(job.get("versions", {}).get("torch", "")) or None,
    )
    item.properties[MODEL_SHA256] = str(model.get("sha256", ""))
    for link in ("root", "collection", "parent"):
        item.add_link(pystac.Link(link, "./collection.json", "application/json"))
    item.collection_id = FOLDER
    return item


def _collection(
    store: Store, job: dict[str, Any], boxes: list[Box], times: list[datetime]
) -> pystac.Collection:
    whole = list(around(boxes)) if boxes else WORLD
    span: list[datetime | None] = [min(times), max(times)] if times else [None, None]
    return pystac.Collection(
        FOLDER,
        f"Panoptic segmentation by panoptile, job {str(job.get('fingerprint', ''))[:16]}.",
        pystac.Extent(pystac.SpatialExtent([whole]), pystac.TemporalExtent([span])),
        title=store.root.rsplit("/", 1)[-1],
        license="other",
    )


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, indent=1, ensure_ascii=False).encode()
