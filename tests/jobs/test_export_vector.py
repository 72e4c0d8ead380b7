"""Exports for maps, read back by GDAL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from tests.jobs.runs import run, write_world
from tests.pipeline.worlds import make_world

from panoptile.jobs.exits import JobError
from panoptile.jobs.export import export_to

from rasterio.crs import CRS  # isort: skip  (after panoptile has set GDAL's environment)

LOCAL = 'LOCAL_CS["mine",UNIT["metre",1]]'
pyogrio = pytest.importorskip("pyogrio", reason="pyogrio is not installed (pip install panoptile[export])")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    run(write_world(make_world(seed=5, height=180, width=240), folder), folder / "out", tile=128, overlap=32)
    return folder / "out"


def published(out: Path) -> geopandas.GeoDataFrame:
    [path] = (out / "segments").glob("*.parquet")
    return geopandas.read_parquet(path)


@pytest.mark.parametrize(
    ("to", "name"), [("gpkg", "x.gpkg"), ("flatgeobuf", "x.fgb"), ("geojson", "x.geojson")]
)
def test_every_segment_arrives_as_it_is(out: Path, tmp_path: Path, to: str, name: str) -> None:
    """The same segments, attributes and areas, in the raster's CRS or, for GeoJSON, in longitude and latitude."""
    assert export_to(str(out), to, str(tmp_path / name), ()) == [str(tmp_path / name)]
    was, now = published(out), geopandas.read_file(tmp_path / name)
    now = now.to_crs(was.crs) if to == "geojson" else now
    assert now.crs == was.crs
    order = ["segment_id", "part"]
    was, now = was.sort_values(order), now.sort_values(order)
    assert now["segment_id"].tolist() == was["segment_id"].tolist()
    assert now["class_name"].tolist() == was["class_name"].tolist()
    assert now["area_px"].tolist() == was["area_px"].tolist()
    np.testing.assert_allclose(now.area, was.area, rtol=1e-3 if to == "geojson" else 1e-9)


def test_pmtiles_open_and_lie_in_place(out: Path, tmp_path: Path) -> None:
    """Vector tiles in web Mercator over the raster, deep enough to show single pixels."""
    export_to(str(out), "pmtiles", str(tmp_path / "x.pmtiles"), ())
    info = pyogrio.read_info(tmp_path / "x.pmtiles")
    assert info["crs"] == "EPSG:3857"
    assert info["features"] >= published(out)["segment_id"].nunique()
    expected = published(out).to_crs(3857).total_bounds
    np.testing.assert_allclose(info["total_bounds"], expected, atol=20)


def test_chosen_classes_alone(out: Path, tmp_path: Path) -> None:
    """--classes keeps what it names; an unknown name is refused."""
    name = published(out)["class_name"].iloc[0]
    export_to(str(out), "gpkg", str(tmp_path / "x.gpkg"), (name,))
    assert set(geopandas.read_file(tmp_path / "x.gpkg")["class_name"]) == {name}
    with pytest.raises(JobError, match="--classes"):
        export_to(str(out), "gpkg", str(tmp_path / "y.gpkg"), ("castle",))
    assert not (tmp_path / "y.gpkg").exists()


def test_a_folder_takes_a_file_per_raster(out: Path, tmp_path: Path) -> None:
    """Without a suffix -o is a folder, and the files have their inputs' names."""
    [path] = export_to(str(out), "gpkg", str(tmp_path / "layers"), ())
    assert Path(path).parent == tmp_path / "layers"
    assert Path(path).stem == next((out / "segments").iterdir()).stem


def test_every_usual_ending_is_a_file(out: Path, tmp_path: Path) -> None:
    """One raster in .json or .GPKG is that file; two do not fit in; another format's ending is refused."""
    for to, name in (
        ("geojson", "a.json"),
        ("geojson", "a.GeoJSON"),
        ("gpkg", "a.GPKG"),
        ("flatgeobuf", "a.FGB"),
    ):
        assert export_to(str(out), to, str(tmp_path / "x" / name), ()) == [str(tmp_path / "x" / name)]
        assert len(geopandas.read_file(tmp_path / "x" / name)) == len(published(out))
    two = emptied(out, tmp_path / "out")
    with pytest.raises(
        JobError, match=r"2 rasters do not fit into .*b\.json: name a folder with -o, without \.json"
    ):
        export_to(str(two), "geojson", str(tmp_path / "b.json"), ())
    for to, name in (("geojson", "c.gpkg"), ("gpkg", "c.json"), ("flatgeobuf", "c.zip")):
        with pytest.raises(JobError, match=r"end it in \.(geojson|gpkg|fgb), or name a folder") as e:
            export_to(str(out), to, str(tmp_path / name), ())
        assert int(e.value.code) == 2
    assert not list(tmp_path.glob("[bc].*"))


def test_bad_input_is_one_sentence(out: Path, tmp_path: Path) -> None:
    """Unknown formats, missing targets, files that are there, folders without a job."""
    (tmp_path / "x.gpkg").write_text("mine")
    for folder, to, target, words in (
        (out, "gpgk", "x", "did you mean gpkg"),
        (out, "gpkg", None, "-o"),
        (out, "gpkg", str(tmp_path / "x.gpkg"), "is there already"),
        (tmp_path, "gpkg", str(tmp_path / "y.gpkg"), "no finished run"),
        (out, "stac", str(tmp_path / "y"), "-o does not go"),
    ):
        with pytest.raises(JobError, match=words) as e:
            export_to(str(folder), to, target, ())
        assert int(e.value.code) == 2
    assert (tmp_path / "x.gpkg").read_text() == "mine"


def emptied(out: Path, copy: Path) -> Path:
    """The same run, with a second raster in which nothing was found."""
    shutil.copytree(out, copy)
    [path] = (copy / "segments").glob("*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), path.with_name("bare-0123456789.parquet"))
    return copy


@pytest.mark.parametrize("to", ["gpkg", "flatgeobuf", "geojson", "pmtiles"])
def test_nothing_found_is_no_error(out: Path, tmp_path: Path, to: str) -> None:
    """An empty layer that GDAL reads; PMTiles knows none: the raster is left out, which is said, the others are not."""
    told: list[str] = []
    files = export_to(str(emptied(out, tmp_path / "out")), to, str(tmp_path / "layers"), (), say=told.append)
    counts = {Path(f).stem: pyogrio.read_info(f, force_feature_count=True)["features"] for f in files}
    assert max(counts.values()) > 0
    if to == "pmtiles":
        assert len(counts) == 1
        assert "bare-0123456789" in told[0]
    else:
        assert counts["bare-0123456789"] == 0
    assert not list((tmp_path / "layers").glob(".*"))


def test_nothing_at_all_to_write_is_refused(out: Path, tmp_path: Path) -> None:
    """Where every raster would be left out: exit 2, and no folder that stays empty."""
    copy = emptied(out, tmp_path / "out")
    for path in (copy / "segments").glob("image-*.parquet"):
        path.unlink()
    with pytest.raises(JobError, match="nothing to export") as e:
        export_to(str(copy), "pmtiles", str(tmp_path / "new" / "x.pmtiles"), ())
    assert int(e.value.code) == 2
    assert not (tmp_path / "new").exists()


def test_what_gdal_cannot_write_is_one_sentence(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or whatever else GDAL says: exit 4, no traceback, no half a file."""

    def full(*_: object, **__: object) -> None:
        raise pyogrio.errors.DataSourceError("No space left on device")

    monkeypatch.setattr(pyogrio, "write_arrow", full)
    with pytest.raises(JobError, match="No space left") as e:
        export_to(str(out), "gpkg", str(tmp_path / "x.gpkg"), ())
    assert int(e.value.code) == 4
    assert list(tmp_path.iterdir()) == []


def with_another(out: Path, copy: Path, crs: dict[str, Any] | None) -> Path:
    """The same run, with the segments once more as those of the raster "mine" in another CRS (PROJJSON)."""
    shutil.copytree(out, copy)
    [path] = (copy / "segments").glob("*.parquet")
    table = pq.read_table(path)
    geo = json.loads(table.schema.metadata[b"geo"])
    geo["columns"]["geometry"]["crs"] = crs
    table = table.replace_schema_metadata({b"geo": json.dumps(geo).encode()})
    pq.write_table(table, path.with_name("mine.parquet"))
    return copy


@pytest.mark.filterwarnings("error")
def test_a_raster_without_a_crs_keeps_its_pixels(out: Path, tmp_path: Path) -> None:
    """GeoPackage takes it, which is said; GeoJSON and PMTiles are refused, because they mean places on Earth."""
    copy = with_another(out, tmp_path / "out", None)
    told: list[str] = []
    export_to(str(copy), "gpkg", str(tmp_path / "layers"), (), say=told.append)
    assert told == ["mine has no CRS: its coordinates are pixels"]
    assert len(geopandas.read_file(tmp_path / "layers" / "mine.gpkg")) == len(published(out))
    with pytest.raises(JobError, match="mine has no CRS"):
        export_to(str(copy), "pmtiles", str(tmp_path / "x"), ())
    assert not (tmp_path / "x").exists()


def test_a_crs_that_is_not_of_the_earth(out: Path, tmp_path: Path) -> None:
    """GeoJSON and PMTiles refuse it before any raster is written; GeoPackage and FlatGeobuf keep its coordinates."""
    copy = with_another(out, tmp_path / "out", CRS.from_wkt(LOCAL).to_dict(projjson=True))
    for to in ("geojson", "pmtiles"):
        with pytest.raises(
            JobError, match=r"The CRS of mine cannot be brought to longitude and latitude"
        ) as e:
            export_to(str(copy), to, str(tmp_path / "new" / "layers"), ())
        assert int(e.value.code) == 2
        assert not (tmp_path / "new").exists()
    for to in ("gpkg", "flatgeobuf"):
        export_to(str(copy), to, str(tmp_path / to), ())
        [path] = (tmp_path / to).glob("mine.*")
        assert len(geopandas.read_file(path)) == len(published(out))


def test_a_raster_at_the_pole_is_on_no_web_map(out: Path, tmp_path: Path) -> None:
    """PMTiles end at 85° of latitude: what lies beyond is refused, for GDAL would write a file that nothing opens."""
    copy = with_another(out, tmp_path / "out", CRS.from_epsg(3995).to_dict(projjson=True))
    x, y, *_ = published(out).total_bounds
    for origin, refused in (((0.0, 0.0), True), ((3e6, 0.0), False)):
        moved(copy / "segments" / "mine.parquet", origin[0] - x, origin[1] - y)
        x, y = origin
        if refused:
            with pytest.raises(JobError, match=r"mine lies beyond 85\.05° of latitude"):
                export_to(str(copy), "pmtiles", str(tmp_path / "new"), ())
            assert not (tmp_path / "new").exists()
            export_to(str(copy), "geojson", str(tmp_path / "json"), ())
        else:
            export_to(str(copy), "pmtiles", str(tmp_path / "new"), ())
            assert len(geopandas.read_file(tmp_path / "new" / "mine.pmtiles"))


def moved(path: Path, x: float, y: float) -> None:
    """Move the segments of a GeoParquet, and the box that it states."""
    table = pq.read_table(path)
    geo = json.loads(table.schema.metadata[b"geo"])
    west, south, east, north = geo["columns"]["geometry"]["bbox"]
    geo["columns"]["geometry"]["bbox"] = [west + x, south + y, east + x, north + y]
    shapes = shapely.transform(shapely.from_wkb(table["geometry"].to_numpy()), lambda p: p + np.array([x, y]))
    at = table.column_names.index("geometry")
    table = table.set_column(
        at, table.schema.field("geometry"), pa.array(shapely.to_wkb(shapes), pa.binary())
    )
    pq.write_table(table.replace_schema_metadata({b"geo": json.dumps(geo).encode()}), path)


@pytest.mark.parametrize("there", [True, False])
def test_what_fails_midway_leaves_nothing(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The second of two rasters fails: exit 4, the first is not there either, others' files are, and a second try works."""
    copy = emptied(out, tmp_path / "out")
    layers = tmp_path / "new" / "layers"
    if there:
        layers.mkdir(parents=True)
        (layers / "notes.txt").write_text("mine")
    write, calls = pyogrio.write_arrow, []

    def fails(*args: object, **options: object) -> None:
        write(*args, **options)
        calls.append(args)
        if len(calls) == 2:
            raise pyogrio.errors.DataLayerError("NULL pointer error")

    monkeypatch.setattr(pyogrio, "write_arrow", fails)
    with pytest.raises(JobError, match=r"GDAL cannot write the segments of \S+ as GeoJSON") as e:
        export_to(str(copy), "geojson", str(layers), ())
    assert int(e.value.code) == 4
    assert (tmp_path / "new").exists() == there
    if there:
        assert [p.name for p in layers.iterdir()] == ["notes.txt"]
    assert len(export_to(str(copy), "geojson", str(layers), ())) == 2
    assert not list(layers.glob(".*"))
