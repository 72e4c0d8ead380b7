"""Exports for maps: GeoJSON, FlatGeobuf, GeoPackage and PMTiles, written by GDAL through pyogrio.

Row group by row group from the published GeoParquet, so that no whole layer is in memory (GDAL's writers of PMTiles
and FlatGeobuf spool by themselves).
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.new_folder import new_files, refuse_existing
from panoptile.pipeline.footprint import lies_on_earth
from panoptile.pipeline.parquet_read import open_parquet
from panoptile.pipeline.store import Store

import rasterio.warp  # isort: skip  (after footprint, which sets GDAL's environment)
from rasterio.crs import CRS  # isort: skip

COLUMNS = {
    "segment_id": pa.int64(),
    "part": pa.int32(),
    "class_id": pa.int32(),
    "class_name": pa.string(),
    "is_thing": pa.bool_(),
    "score": pa.float32(),
    "area_px": pa.int64(),
    "area_m2": pa.float64(),
    "at_edge": pa.bool_(),
    "merged_from": pa.int32(),
    "source_uri": pa.string(),
}
"""What a map needs of a segment; the run-length codes stay in the GeoParquet."""
SCHEMA = pa.schema([*COLUMNS.items(), ("geometry", pa.binary())])
_LAYER_OPTIONS = {"GeoJSON": {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}}
TILE_EXTENT = 4096
"""Steps along a vector tile's side."""
WORLD_M = 40_075_016.69
WEB_MAP_LATITUDE = 85.051129
"""Degrees: where the square map of Web Mercator ends."""
LARGEST_ZOOM = 18


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """One format of GDAL."""

    driver: str
    suffixes: tuple[str, ...]
    """Of a file of this format, in lower case; the first is that of the files in a folder."""
    geographic: bool = False
    """Needs coordinates that GDAL can bring to longitude and latitude, or web Mercator."""
    empty: bool = True
    """Can hold no features at all."""


VECTOR_FORMATS = {
    "geojson": VectorFormat("GeoJSON", (".geojson", ".json"), geographic=True),
    "flatgeobuf": VectorFormat("FlatGeobuf", (".fgb",)),
    "gpkg": VectorFormat("GPKG", (".gpkg",)),
    "pmtiles": VectorFormat("PMTiles", (".pmtiles",), geographic=True, empty=False),
}
OTHER_SUFFIXES = {s for f in VECTOR_FORMATS.values() for s in f.suffixes} | {".zip"}
"""Endings of files: nobody means a new folder by them."""


def export_vector(
    store: Store, to: str, output: Path, classes: tuple[str, ...], say: Callable[[str], None]
) -> list[str]:
    """Write the segments of every raster; returns the files. Raises :class:`JobError`: exit 2, or 4 where GDAL fails.

    ``output`` is a file, of the only raster, where it has the format's suffix, else a folder with one file per raster.
    ``say`` is told of rasters that are left out, and of those whose coordinates are pixels.
    """
    chosen = VECTOR_FORMATS[to]
    keys = [k for k in store.keys("segments") if k.endswith(".parquet")]
    if not keys:
        raise invalid(
            f"{store.root} holds no segments/*.parquet: run without --no-vector, or export another format."
        )
    targets = _targets(keys, output, chosen)
    for target in targets.values():
        refuse_existing(target)
    written = []
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        copies = {key: store.local_copy(key, Path(folder)) for key in keys}
        layers = {t: _Layer(copies[key], Path(key).stem, chosen, classes) for key, t in targets.items()}
        for layer in layers.values():
            layer.check_crs()
        with new_files(next(iter(layers)).parent) as scratch:
            for target, layer in layers.items():
                if not chosen.empty and layer.is_empty():
                    say(
                        f"{layer.name} has no such segments: left out, because {chosen.driver} holds no empty layer"
                    )
                    continue
                layer.write(scratch / target.name, say)
                written.append(str(target))
            if not written:
                raise invalid(f"No raster of {store.root} has such segments: there is nothing to export.")
    return written


def _targets(keys: list[str], output: Path, chosen: VectorFormat) -> dict[str, Path]:
    """The file of each raster: ``output`` where it ends like one, else files inside the folder ``output``."""
    suffix, usual = output.suffix.lower(), chosen.suffixes[0]
    if suffix in chosen.suffixes:
        if len(keys) > 1:
            raise invalid(
                f"{len(keys)} rasters do not fit into {output}: name a folder with -o, without {output.suffix}."
            )
        return {keys[0]: output}
    if suffix in OTHER_SUFFIXES and not output.is_dir():
        raise invalid(
            f"-o {output} would be no {chosen.driver} file: end it in {usual}, or name a folder, without {output.suffix}."
        )
    return {key: output / (Path(key).stem + usual) for key in keys}


@dataclass(frozen=True, slots=True)
class _Layer:
    """The segments of one raster, as one format is to hold them."""

    path: Path
    """Of the GeoParquet, or of a copy of it."""
    name: str
    """The raster's key."""
    chosen: VectorFormat
    classes: tuple[str, ...]

    def check_crs(self) -> None:
        """Raise :class:`JobError` (exit 2) where the format needs places on Earth and the raster has none."""
        if not self.chosen.geographic:
            return
        with open_parquet(self.path) as file:
            crs, box = _crs(file), _geo(file).get("bbox")
        if crs is None:
            raise invalid(
                f"{self.name} has no CRS, which {self.chosen.driver} needs: export gpkg or flatgeobuf, which keep pixels."
            )
        if not lies_on_earth(CRS.from_string(crs)):
            raise invalid(
                f"The CRS of {self.name} cannot be brought to longitude and latitude, which {self.chosen.driver} needs: "
                "export gpkg or flatgeobuf, which keep its own coordinates."
            )
        if self.chosen.driver == "PMTiles" and box and _is_beyond_web_maps(crs, box):
            raise invalid(
                f"{self.name} lies beyond {WEB_MAP_LATITUDE:.2f}° of latitude, where PMTiles end: export another format."
            )

    def is_empty(self) -> bool:
        with open_parquet(self.path) as file:
            return not any(batch.num_rows for batch in _batches(file, self.classes))

    def write(self, target: Path, say: Callable[[str], None]) -> None:
        pyogrio = _pyogrio()
        with open_parquet(self.path) as file, warnings.catch_warnings():
            crs = _crs(file)
            if crs is None:
                say(f"{self.name} has no CRS: its coordinates are pixels")
                warnings.simplefilter("ignore", UserWarning)  # pyogrio's own word for the same
            try:
                pyogrio.write_arrow(
                    pa.RecordBatchReader.from_batches(SCHEMA, _batches(file, self.classes)),
                    str(target),
                    layer="segments",
                    driver=self.chosen.driver,
                    geometry_name="geometry",
                    geometry_type="Unknown",
                    crs=crs,
                    dataset_options=_zooms(file) if self.chosen.driver == "PMTiles" else None,
                    layer_options=_LAYER_OPTIONS.get(self.chosen.driver),
                )
            except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as e:
                raise JobError(
                    Exit.FAILED,
                    f"GDAL cannot write the segments of {self.name} as {self.chosen.driver}: {e}.",
                ) from e


def _pyogrio() -> Any:
    try:
        import pyogrio
    except ImportError as e:
        raise invalid("Exports for maps need pyogrio: pip install 'panoptile[export]'.") from e
    return pyogrio


def _batches(file: pq.ParquetFile, classes: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    wanted = pa.array(classes, pa.string())
    for batch in file.iter_batches(20_000, columns=[*COLUMNS, "geometry"], use_threads=False):
        if classes:
            batch = batch.filter(pc.is_in(batch.column("class_name"), wanted))
        yield pa.RecordBatch.from_arrays([batch.column(f.name).cast(f.type) for f in SCHEMA], schema=SCHEMA)


def _geo(file: pq.ParquetFile) -> dict[str, Any]:
    column: dict[str, Any] = json.loads(file.schema_arrow.metadata[b"geo"])["columns"]["geometry"]
    return column


def _crs(file: pq.ParquetFile) -> str | None:
    """The layer's CRS as PROJ reads it; None where it has none."""
    crs = _geo(file).get("crs")
    return json.dumps(crs) if crs else None


def _is_beyond_web_maps(crs: str, box: Sequence[float]) -> bool:
    """Whether the box (x and y of two corners, in ``crs``) has no point that a web map shows."""
    xs, ys = ([low, (low + high) / 2, high] for low, high in ((box[0], box[2]), (box[1], box[3])))
    points = [(x, y) for x in xs for y in ys]
    _, latitudes = rasterio.warp.transform(
        CRS.from_string(crs), "EPSG:4326", *map(list, zip(*points, strict=True))
    )
    return bool(min(map(abs, latitudes)) > WEB_MAP_LATITUDE)


def _zooms(file: pq.ParquetFile) -> dict[str, str]:
    """Zoom levels: the deepest shows a source pixel as about one step of a tile."""
    areas = next(file.iter_batches(1, columns=["area_px", "area_m2"], use_threads=False), None)
    pixel = 0.5
    if areas is not None and areas.num_rows and areas.column("area_m2")[0].as_py():
        pixel = math.sqrt(areas.column("area_m2")[0].as_py() / areas.column("area_px")[0].as_py())
    deepest = min(LARGEST_ZOOM, max(5, math.ceil(math.log2(WORLD_M / TILE_EXTENT / pixel))))
    return {"MINZOOM": str(max(0, deepest - 6)), "MAXZOOM": str(deepest)}
