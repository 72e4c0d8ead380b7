"""The raster source against plain rasterio reads, and against broken and hostile files."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image
from tests.pipeline.rasters import (
    TRANSFORM,
    big_endian_tiff,
    canary,
    data_folder,
    noise,
    plain_read,
    sparse_bomb,
    vrt_of,
    write_raster,
)

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.raster_file import Limits, RasterReadError
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.raster_source import RasterSource, inspect_raster
from panoptile.pipeline.window import Window

# isort: split
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

SIZE = (150, 210)
WINDOWS = [Window(0, 0, 64, 64), Window(31, 47, 70, 100), Window(140, 200, 10, 10), Window(0, 0, *SIZE)]


def read_all(info: RasterInfo) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The whole raster in one read."""
    with RasterSource(info) as source:
        tile = source.read(Window(0, 0, info.height, info.width))
    return tile.pixels, tile.valid


def read_tiled(info: RasterInfo, tile: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The whole raster, put together from tiles."""
    pixels = np.full((len(info.bands), info.height, info.width), 99, np.uint8)
    valid = np.zeros((info.height, info.width), bool)
    with RasterSource(info) as source:
        for row in range(0, info.height, tile):
            for col in range(0, info.width, tile):
                w = Window.span(row, col, min(row + tile, info.height), min(col + tile, info.width))
                part = source.read(w)
                pixels[:, w.row : w.stop_row, w.col : w.stop_col] = part.pixels
                valid[w.row : w.stop_row, w.col : w.stop_col] = part.valid
    return pixels, valid


def notes_of(info: RasterInfo) -> str:
    return " ".join(info.notes)


# --- reads equal plain reads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", [{}, {"tiled": False, "blockxsize": None, "blockysize": None}, {"interleave": "pixel"}]
)
def test_uint8_windows_equal_slices_of_a_plain_read(layout: dict[str, Any], tmp_path: Path) -> None:
    """For tiles and strips, interleaved by band or pixel."""
    path = write_raster(
        tmp_path / "a.tif", noise(3, *SIZE, "uint8"), **{k: v for k, v in layout.items() if v is not None}
    )
    whole = plain_read(path)
    info = inspect_raster(str(path))
    assert info.scale is None
    assert not info.notes
    with RasterSource(info) as source:
        for w in WINDOWS:
            tile = source.read(w)
            assert np.array_equal(tile.pixels, whole[:, w.row : w.stop_row, w.col : w.stop_col])
            assert tile.valid.all()
            assert tile.pixels.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_other_types_are_scaled_by_one_range_for_the_raster(dtype: str, tmp_path: Path) -> None:
    """Equal to a plain read scaled with the percentiles of all values, in any tiling."""
    path = write_raster(tmp_path / "a.tif", noise(3, *SIZE, dtype), photometric="RGB")
    whole = plain_read(path).astype(float)
    info = inspect_raster(str(path))
    low, high = np.percentile(whole, [2, 98])
    assert info.scale == pytest.approx((low, high))
    assert info.scale is not None
    expected = np.clip(np.rint((whole - info.scale[0]) * 255 / (info.scale[1] - info.scale[0])), 0, 255)
    pixels, valid = read_tiled(info, 64)
    assert valid.all()
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(("scale", "expected"), [("0,1000", (0, 1000)), ("p0,p100", (5, 59_000))])
def test_scale_may_be_given_as_values_or_percentiles(
    scale: str, expected: tuple[float, float], tmp_path: Path
) -> None:
    """A uint8 raster can be stretched as well; nodata does not take part in the percentiles."""
    values = np.clip(noise(1, *SIZE, "uint16"), 5, 59_000)
    values[0, :2, :3] = [5, 59_000, 0]
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    assert inspect_raster(str(path), scale=scale).scale == expected


def test_a_large_raster_is_sampled_the_same_with_and_without_overviews(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lattice and the overview come close to the range of all pixels."""
    monkeypatch.setattr("panoptile.pipeline.raster_source.SAMPLE_PIXELS", 1 << 16)
    ramp = np.add.outer(np.arange(900), np.arange(1100)).astype(np.uint16)[None]
    ranges = []
    for name in ("plain.tif", "overviews.tif"):
        path = write_raster(tmp_path / name, ramp)
        if name == "overviews.tif":
            with rasterio.open(path, "r+") as dst:
                dst.build_overviews([2, 4, 8])
        ranges.append(inspect_raster(str(path)).scale)
    for found in ranges:
        assert found == pytest.approx(tuple(np.percentile(ramp, [2, 98])), abs=60)


def test_bands_are_chosen_by_colour_then_by_number(tmp_path: Path) -> None:
    """Declared colours win, alpha is no data, --bands overrules, one band is repeated, else it is told."""
    data = noise(4, *SIZE, "uint8")
    bgr = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    path = str(write_raster(tmp_path / "bgr.tif", data, colorinterp=bgr))
    assert inspect_raster(path).bands == (3, 2, 1)
    assert inspect_raster(path, bands=(4, 2, 1)).bands == (4, 2, 1)
    assert inspect_raster(path, bands=(4,)).bands == (4, 4, 4)
    pixels, _ = read_all(inspect_raster(path, bands=(4, 2, 4)))
    assert np.array_equal(pixels, data[[3, 1, 3]])
    grey = inspect_raster(str(write_raster(tmp_path / "grey.tif", data[:1])))
    assert grey.bands == (1, 1, 1)
    assert "no colours" in notes_of(grey)
    five = str(write_raster(tmp_path / "five.tif", noise(5, *SIZE, "uint8"), photometric="MINISBLACK"))
    assert inspect_raster(five).bands == (1, 2, 3)
    assert "not declared" in notes_of(inspect_raster(five))
    assert inspect_raster(five, channels=5).bands == (1, 2, 3, 4, 5)


# --- what is no input -------------------------------------------------------------------------------------


def test_nodata_is_where_all_selected_bands_have_it(tmp_path: Path) -> None:
    """255 in one band of an RGB image is a colour: GDAL's own dataset mask agrees; the note tells of it."""
    data = noise(3, *SIZE, "uint8")
    data[:, 20:40, 30:60] = 255
    data[0, :10, :10] = 255
    path = write_raster(tmp_path / "a.tif", data, nodata=255)
    info = inspect_raster(str(path))
    pixels, valid = read_tiled(info, 64)
    with rasterio.open(path) as src:
        assert np.array_equal(valid, src.dataset_mask() != 0)
    assert valid[:10, :10].all()
    assert not valid[20:40, 30:60].any()
    assert not pixels[:, ~valid].any()
    assert "declares nodata 255" in notes_of(info)
    assert read_all(inspect_raster(str(path), nodata=-1))[1].all()


def test_nodata_of_the_option_replaces_the_declared_one(tmp_path: Path) -> None:
    """--nodata 7 on a file that declares 0."""
    data = np.full((1, 40, 40), 7, np.int16)
    data[0, :20] = 0
    path = str(write_raster(tmp_path / "a.tif", data, nodata=0))
    assert read_all(inspect_raster(path))[1].mean() == 0.5
    assert not read_all(inspect_raster(path, nodata=7))[1][20:].any()
    assert "no int16 value" in notes_of(inspect_raster(path, nodata=1e6))


def test_alpha_zero_is_no_input_unless_the_band_is_asked_for(tmp_path: Path) -> None:
    """RGBA: alpha masks; named in --bands it is data, and the note says so."""
    data = noise(4, *SIZE, "uint8")
    data[3, :50] = 0
    path = str(write_raster(tmp_path / "a.tif", data, photometric="RGB", alpha="YES"))
    info = inspect_raster(path)
    assert info.bands == (1, 2, 3)
    pixels, valid = read_tiled(info, 64)
    assert np.array_equal(valid, data[3] != 0)
    assert np.array_equal(pixels[:, valid], data[:3, valid])
    asked = inspect_raster(path, bands=(4, 1, 2))
    assert "declared alpha" in notes_of(asked)
    assert read_all(asked)[1].all()


def test_the_files_own_mask_is_honoured(tmp_path: Path) -> None:
    """An internal TIFF mask, as in COGs with JPEG compression."""
    mask = noise(1, *SIZE, "uint8")[0] > 100
    path = write_raster(tmp_path / "a.tif", noise(3, *SIZE, "uint8"), mask=mask)
    assert np.array_equal(read_tiled(inspect_raster(str(path)), 50)[1], mask)


def test_nan_and_infinity_are_no_input_and_do_not_spoil_the_range(tmp_path: Path) -> None:
    """In any band; a declared NaN or a huge negative nodata works the same."""
    data = np.random.default_rng(0).uniform(0, 1, (3, *SIZE)).astype(np.float32)
    data[1, 5, 5], data[2, 6, 6] = np.nan, np.inf
    data[:, 50:60] = -3.4028234663852886e38
    info = inspect_raster(str(write_raster(tmp_path / "a.tif", data, nodata=-3.4028234663852886e38)))
    assert info.scale is not None
    assert 0 <= info.scale[0] < info.scale[1] <= 1
    _, valid = read_tiled(info, 64)
    assert np.array_equal(~valid, ~np.isfinite(data).all(0) | (data[0] < -1))
    declared = inspect_raster(str(write_raster(tmp_path / "b.tif", data, nodata=float("nan"))))
    assert declared.nodata is None
    json.dumps(asdict(declared), allow_nan=False)


def test_a_raster_without_any_input_is_still_a_raster(tmp_path: Path) -> None:
    """All nodata: nothing is valid, and the note asks for a scale."""
    info = inspect_raster(str(write_raster(tmp_path / "a.tif", np.zeros((1, 60, 60), np.uint16), nodata=0)))
    pixels, valid = read_all(info)
    assert not valid.any()
    assert not pixels.any()
    assert "--scale" in notes_of(info)


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_a_palette_is_expanded_to_colours(kind: str, tmp_path: Path) -> None:
    """Indices become RGB; an index that is nodata or transparent is no input."""
    index = noise(1, *SIZE, "uint8") % 3
    colours = np.array([(0, 0, 0), (200, 10, 20), (5, 250, 30)], np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        image = Image.fromarray(index[0], "P")
        image.putpalette(colours.tobytes())
        image.save(path, transparency=bytes([0, 255, 255]))
    else:
        with rasterio.open(write_raster(path, index, nodata=0), "r+") as dst:
            dst.write_colormap(1, {i: (*map(int, c), 255) for i, c in enumerate(colours)})
    info = inspect_raster(str(path))
    pixels, valid = read_tiled(info, 64)
    expected = colours.T[:, index[0]]
    assert "palette" in notes_of(info)
    assert np.array_equal(valid, index[0] != 0)
    assert np.array_equal(pixels[:, valid], expected[:, valid])


# --- place and pixel size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gsd", [0.2, 0.5, 0.7, 1.0, 1.7])
def test_resampled_tiles_equal_the_resampled_whole(
    gsd: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of any size, and of parts when memory is short, give the same bits; pixels get the size asked for."""
    data = noise(3, *SIZE, "uint8")
    data[:, 30:60, 40:90] = 0
    info = inspect_raster(str(write_raster(tmp_path / "a.tif", data, nodata=0)), gsd=gsd)
    assert info.resampled == (gsd != 0.5)
    assert (info.transform[0], info.transform[4]) == pytest.approx((gsd, -gsd))
    assert (info.height, info.width) == (round(75 / gsd), round(105 / gsd))
    pixels, valid = read_all(info)
    assert 0 < valid.mean() < 1
    for tile in (37, 64):
        again = read_tiled(info, tile)
        assert np.array_equal(pixels, again[0])
        assert np.array_equal(valid, again[1])
    monkeypatch.setattr("panoptile.pipeline.raster_source.RESAMPLE_BYTES", 50_000)
    assert np.array_equal(pixels, read_all(info)[0])


def test_resampling_agrees_with_gdals_average(tmp_path: Path) -> None:
    """Against rasterio's own decimation by 2 with averaging: at most the rounding of halves differs."""
    path = write_raster(tmp_path / "a.tif", noise(3, 100, 120, "uint8"))
    with rasterio.open(path) as src:
        expected = src.read(out_shape=(3, 50, 60), resampling=rasterio.enums.Resampling.average)
    pixels, _ = read_all(inspect_raster(str(path), gsd=1.0))
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 1
    assert difference[(plain_read(path).astype(int).reshape(3, 50, 2, 60, 2).sum((2, 4)) % 4) != 2].max() == 0


def test_gsd_means_metres_in_a_geographic_crs(tmp_path: Path) -> None:
    """One metre at 60 degrees north is about twice as many degrees of longitude as of latitude."""
    degrees = Affine(1e-5, 0, 25.0, 0, -1e-5, 60.0)
    path = str(write_raster(tmp_path / "a.tif", noise(3, *SIZE, "uint8"), crs="EPSG:4326", transform=degrees))
    info = inspect_raster(path, gsd=2.0)
    assert info.transform[0] * 55_800 == pytest.approx(2.0, rel=2e-3)
    assert -info.transform[4] * 111_412 == pytest.approx(2.0, rel=2e-3)


def test_gsd_uses_the_units_of_the_crs_and_needs_a_pixel_size(tmp_path: Path) -> None:
    """US survey feet; a raster without CRS counts in its own units; without georeferencing it is told."""
    data = noise(3, *SIZE, "uint8")
    feet = inspect_raster(str(write_raster(tmp_path / "feet.tif", data, crs="EPSG:2263")), gsd=0.3048)
    assert feet.transform[0] == pytest.approx(1.0, rel=1e-5)
    bare = inspect_raster(str(write_raster(tmp_path / "bare.tif", data, crs=None)), gsd=1.0)
    assert bare.transform[0] == 1.0
    path = write_raster(tmp_path / "none.tif", data, crs=None, transform=Affine.identity())
    with pytest.raises(InputError, match="not georeferenced"):
        inspect_raster(str(path), gsd=1.0)


def test_a_raster_without_place_still_works_and_says_what_is_missing(tmp_path: Path) -> None:
    """No CRS, no georeferencing, a rotated transform: read as any other, each with its note."""
    data = noise(3, *SIZE, "uint8")
    bare = inspect_raster(str(write_raster(tmp_path / "a.tif", data, crs=None, transform=Affine.identity())))
    assert not bare.georeferenced
    assert bare.crs_wkt is None
    assert "not georeferenced" in notes_of(bare)
    assert "no CRS" in notes_of(bare)
    turned = inspect_raster(
        str(write_raster(tmp_path / "b.tif", data, transform=TRANSFORM * Affine.rotation(30)))
    )
    assert "rotated" in notes_of(turned)
    for info in (bare, turned):
        assert np.array_equal(read_tiled(info, 64)[0], data)


# --- area of interest -------------------------------------------------------------------------------------


def geojson(path: Path, *shapes: shapely.Geometry, crs: str | None = None) -> Path:
    """A FeatureCollection."""
    document: dict[str, Any] = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(s))}
            for s in shapes
        ],
    }
    if crs:
        document["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(document))
    return path


AREA = shapely.Polygon(
    [(500_010.1, 3_999_990), (500_080, 3_999_999), (500_060, 3_999_940.3), (500_033, 3_999_970)]
)


@pytest.mark.parametrize("gsd", [None, 0.8])
def test_the_area_of_interest_holds_the_pixels_whose_centre_it_covers(
    gsd: float | None, tmp_path: Path
) -> None:
    """Pixel by pixel against shapely, in any tiling; pixels outside keep their values as context."""
    data = noise(3, *SIZE, "uint8")
    path = str(write_raster(tmp_path / "a.tif", data))
    area = geojson(tmp_path / "aoi.geojson", AREA, crs="urn:ogc:def:crs:EPSG::32633")
    info = inspect_raster(path, aoi=area, gsd=gsd)
    pixels, valid = read_tiled(info, 41)
    side = info.transform[0]
    x = 500_000 + (np.arange(info.width) + 0.5) * side
    y = 4_000_000 - (np.arange(info.height) + 0.5) * side
    assert np.array_equal(valid, shapely.intersects_xy(AREA, *np.meshgrid(x, y)))
    assert np.array_equal(pixels, read_all(inspect_raster(path, gsd=gsd))[0])


def test_an_area_in_longitude_and_latitude_is_transformed(tmp_path: Path) -> None:
    """GeoJSON without a crs member is EPSG:4326; the mask differs from the metric one by border pixels only."""
    from rasterio.warp import transform_geom

    path = str(write_raster(tmp_path / "a.tif", noise(3, *SIZE, "uint8")))
    lonlat = shapely.from_geojson(
        json.dumps(transform_geom("EPSG:32633", "EPSG:4326", json.loads(shapely.to_geojson(AREA))))
    )
    near = inspect_raster(path, aoi=geojson(tmp_path / "lonlat.geojson", lonlat))
    exact = inspect_raster(path, aoi=geojson(tmp_path / "utm.geojson", AREA, crs="EPSG:32633"))
    assert np.count_nonzero(read_all(near)[1] != read_all(exact)[1]) <= 3


def test_an_area_over_a_raster_without_crs_is_in_its_own_coordinates(tmp_path: Path) -> None:
    """Pixels, if there is no georeferencing either; the note says so."""
    path = str(
        write_raster(tmp_path / "a.tif", noise(3, *SIZE, "uint8"), crs=None, transform=Affine.identity())
    )
    info = inspect_raster(path, aoi=geojson(tmp_path / "a.geojson", shapely.box(10, 20, 30, 50)))
    expected = np.zeros(SIZE, bool)
    expected[20:50, 10:30] = True
    assert np.array_equal(read_all(info)[1], expected)
    assert "own coordinates" in notes_of(info)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "not GeoJSON"),
        ("[" * 100_000, "not GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "no polygon"),
        ('{"type": "Point", "coordinates": [500010, 3999990]}', "no polygon"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}', "does not meet"),
        ('{"type": "Polygon", "coordinates": "x"}', "cannot be used"),
        (('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]], "crs": {"properties": '
         '{"name": "http://127.0.0.1:1/crs"}}}'), "only EPSG"),
    ],
)  # fmt: skip
def test_an_unusable_area_is_told(text: str, words: str, tmp_path: Path) -> None:
    """One sentence that names the file; a CRS that is no code is never looked up."""
    path = str(write_raster(tmp_path / "a.tif", noise(3, *SIZE, "uint8")))
    (tmp_path / "aoi.geojson").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        inspect_raster(path, aoi=tmp_path / "aoi.geojson")
    assert "aoi.geojson" in str(caught.value)


# --- threads, lifetime ------------------------------------------------------------------------------------


def test_four_threads_read_the_same_as_one(tmp_path: Path) -> None:
    """One handle a thread, all closed at the end."""
    data = noise(3, 600, 600, "uint8")
    info = inspect_raster(str(write_raster(tmp_path / "a.tif", data, compress="deflate")))
    rng = np.random.default_rng(1)
    windows = [Window(int(r), int(c), 90, 90) for r, c in rng.integers(0, 510, (80, 2))]
    barrier = threading.Barrier(4)
    with RasterSource(info) as source, ThreadPoolExecutor(4, initializer=barrier.wait) as pool:
        for w, tile in zip(windows, pool.map(source.read, windows), strict=True):
            assert np.array_equal(tile.pixels, data[:, w.row : w.stop_row, w.col : w.stop_col])
        handles = list(source._handles)
    assert 1 <= len(handles) <= 4
    assert all(h.closed for h in handles)
    with pytest.raises(ValueError, match="closed"):
        source.read(windows[0])


def test_the_info_is_plain_values(tmp_path: Path) -> None:
    """It survives JSON and pickle, whatever it was made from."""
    info = inspect_raster(str(write_raster(tmp_path / "a.tif", noise(3, *SIZE, "int16"), nodata=-999)), gsd=1)
    assert pickle.loads(pickle.dumps(info)) == info
    assert json.loads(json.dumps(asdict(info)))["height"] == 75


def test_a_window_outside_and_a_changed_file_are_refused(tmp_path: Path) -> None:
    """Both are told, not read."""
    info = inspect_raster(str(write_raster(tmp_path / "a.tif", noise(3, *SIZE, "uint8"))))
    with RasterSource(info) as source, pytest.raises(ValueError, match="outside"):
        source.read(Window(0, 200, 10, 20))
    write_raster(tmp_path / "a.tif", noise(3, 50, 50, "uint8"))
    with RasterSource(info) as source, pytest.raises(RasterReadError, match="another size"):
        source.read(Window(0, 0, 10, 10))


def test_a_broken_block_is_an_error_that_names_file_and_window(tmp_path: Path) -> None:
    """Damage in the middle passes the header check; the read that meets it fails, others do not."""
    path = write_raster(tmp_path / "a.tif", noise(3, 300, 300, "uint8"), compress="deflate")
    with rasterio.open(path) as src:
        offset = int(src.get_tag_item("BLOCK_OFFSET_2_2", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    with RasterSource(inspect_raster(str(path))) as source:
        source.read(Window(0, 0, 64, 48))
        with pytest.raises(RasterReadError, match=r"a\.tif: cannot read rows 100-109, columns 130-139"):
            source.read(Window(100, 130, 10, 10))


# --- bad and hostile files --------------------------------------------------------------------------------


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def lossy(path: Path, driver: str) -> Path:
    """A file of another driver; larger than a few blocks."""
    with rasterio.open(path, "w", driver=driver, height=200, width=200, count=3, dtype="uint8") as dst:
        dst.write(noise(3, 200, 200, "uint8"))
    return path


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda t: t / "a.tif", "does not exist"),
    "folder": (lambda t: _folder(t / "a.tif"), "not a regular file"),
    "empty": (lambda t: _write(t / "a.tif", b""), "empty"),
    "text": (lambda t: _write(t / "a.tif", b"hello, this is no raster"), "not a raster"),
    "VRT named .tif": (lambda t: vrt_of(t / "a.tif", "/etc/passwd"), "VRT"),
    "header alone": (lambda t: _write(t / "a.tif", b"II*\0\x08\0\0\0"), "truncated"),
    "no directory": (lambda t: _write(t / "a.tif", b"II*\0\0\0\0\0" + b"\0" * 99), "cannot be opened"),
    "complex": (lambda t: write_raster(t / "a.tif", np.zeros((3, 50, 50), "complex64")), "complex64"),
    "int64": (lambda t: write_raster(t / "a.tif", np.zeros((3, 50, 50), "int64")), "int64"),
    "two bands": (lambda t: write_raster(t / "a.tif", noise(2, 50, 50, "uint8")), "has 2 bands.*--bands"),
    "huge blocks": (lambda t: sparse_bomb(t / "a.tif"), "blocks of 16384x16384"),
    "huge": (lambda t: sparse_bomb(t / "a.tif", 2_000_000, 512), "pixels, more than the limit"),
    "flat transform": (
        lambda t: write_raster(t / "a.tif", noise(3, 50, 50, "uint8"), transform=Affine(1, 1, 0, 1, 1, 0)), "to a line",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    """The message names the file and the cause."""
    make, words = BAD[case]
    with pytest.raises(InputError, match=words) as caught:
        inspect_raster(str(make(tmp_path)))
    assert "a.tif" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["tiles", "strips", "BigTIFF", "COG", "PNG", "JPEG", "JP2OpenJPEG"])
def test_a_truncated_file_is_found_before_anything_starts(kind: str, share: float, tmp_path: Path) -> None:
    """However little is missing, from the file's structure."""
    data, path = noise(3, 300, 300, "uint8"), tmp_path / "a.tif"
    if kind in ("PNG", "JPEG", "JP2OpenJPEG"):
        lossy(path, kind)
    elif kind == "strips":
        write_raster(path, data, tiled=False, blockysize=7)
    elif kind == "COG":
        source = write_raster(tmp_path / "source.tif", data)
        rasterio.shutil.copy(source, path, driver="COG", compress="deflate", blocksize=128)
    else:
        write_raster(path, data, compress="lzw", bigtiff="YES" if kind == "BigTIFF" else "NO")
    inspect_raster(str(path))
    with pytest.raises(InputError, match="truncated"):
        inspect_raster(str(cut(path, share)))


def test_a_big_endian_file_is_read_and_found_whole(tmp_path: Path) -> None:
    """Byte order is the file's, in the completeness check too."""
    pixels = big_endian_tiff(tmp_path / "a.tif")
    info = inspect_raster(str(tmp_path / "a.tif"), scale="0,255")
    assert np.array_equal(read_all(info)[0][0], pixels)


def test_wrong_bands_are_told(tmp_path: Path) -> None:
    """Unknown band, and another number of bands than the network takes."""
    path = str(write_raster(tmp_path / "a.tif", noise(4, 50, 50, "uint8")))
    with pytest.raises(InputError, match=r"a\.tif has no band 9.*1 to 4"):
        inspect_raster(path, bands=(1, 2, 9))
    with pytest.raises(InputError, match="--bands names 2 bands, the network takes 3"):
        inspect_raster(path, bands=(1, 2))
    with pytest.raises(InputError, match="4 bands of data, the network takes 2"):
        inspect_raster(
            str(write_raster(tmp_path / "b.tif", noise(4, 50, 50, "int16"), photometric="MINISBLACK")),
            channels=2,
        )


def test_limits_hold_for_the_resampled_grid_too(tmp_path: Path) -> None:
    """A tiny --gsd cannot make an endless run."""
    path = str(write_raster(tmp_path / "a.tif", noise(3, 50, 50, "uint8")))
    with pytest.raises(InputError, match="at --gsd"):
        inspect_raster(path, gsd=0.01, limits=Limits(pixels=10_000))
    with pytest.raises(InputError, match="1024"):
        inspect_raster(path, gsd=1e-6)


def test_names_that_mean_something_to_gdal_are_only_names(tmp_path: Path) -> None:
    """ "!", "?", "#", ":" and commas in a file name are read as they are."""
    data = noise(3, 50, 50, "uint8")
    for name in ("a.zip!b.tif", "a?x=1.tif", "a#b.tif", "zip:a.tif", "vrt:a.tif,b", "GTIFF_DIR:1:a"):
        write_raster(tmp_path / "plain.tif", data).rename(tmp_path / name)
        assert np.array_equal(read_all(inspect_raster(str(tmp_path / name)))[0], data)


def test_side_files_are_not_read_and_the_note_says_so(tmp_path: Path) -> None:
    """An .aux.xml and a world file beside the raster change nothing."""
    path = write_raster(tmp_path / "a.tif", noise(3, 50, 50, "uint8"), crs=None, transform=Affine.identity())
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n10\n20\n")
    info = inspect_raster(str(path))
    assert info.crs_wkt is None
    assert not info.georeferenced
    assert "a.tif.aux.xml, a.tfw" in notes_of(info)


def test_no_payload_makes_a_request(tmp_path: Path) -> None:
    """VRT, WMS, side files, overview references inside a TIFF, GeoJSON CRS: the canary server hears nothing."""
    with canary(tmp_path) as (address, hits):
        remote = f"/vsicurl/{address}/x.tif"
        vrt_of(tmp_path / "vrt.tif", remote)
        (tmp_path / "wms.tif").write_text(
            f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}/${{z}}</ServerUrl></Service></GDAL_WMS>'
        )
        pam = write_raster(tmp_path / "pam.tif", noise(3, 50, 50, "uint8"))
        Path(f"{pam}.aux.xml").write_text(
            f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{remote}</MDI></Metadata></PAMDataset>'
        )
        inside = write_raster(tmp_path / "inside.tif", noise(3, 50, 50, "uint16"))
        with rasterio.open(inside, "r+") as dst:
            dst.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=remote)
        aoi = geojson(tmp_path / "aoi.geojson", AREA, crs=f"{address}/crs")
        inspect_raster(str(pam), scale="p2,p98")
        with pytest.raises(InputError, match="another file"):
            inspect_raster(str(inside))
        for path in ("vrt.tif", "wms.tif"):
            with pytest.raises(InputError, match="XML"):
                inspect_raster(str(tmp_path / path))
        for uri in (remote, f"{address}/x.tif", f"vrt://{remote}", f"WMS:{address}"):
            with pytest.raises(InputError, match=r"does not exist|cannot be used"):
                inspect_raster(uri)
        with pytest.raises(InputError, match="only EPSG"):
            inspect_raster(str(pam), aoi=aoi)
        assert hits.read_text() == ""


# --- real files -------------------------------------------------------------------------------------------


def test_the_banepa_raster_reads_as_rasterio_reads_it() -> None:
    """A JPEG COG in EPSG:4326; an area of interest from its building outlines."""
    folder = data_folder("banepa")
    path = folder / "banepa_rgb_cog.tif"
    info = inspect_raster(str(path), aoi=folder / "banepa_buildings.geojson")
    assert (info.height, info.width, info.scale) == (4096, 3072, None)
    w = Window(1000, 700, 300, 400)
    with RasterSource(info) as source, rasterio.open(path) as src:
        tile = source.read(w)
        assert np.array_equal(tile.pixels, src.read(window=((1000, 1300), (700, 1100))))
        assert 0.05 < tile.valid.mean() < 0.9


def test_tiles_with_a_collar_open_without_their_side_files() -> None:
    """JPEG files named .tif, their CRS in .aux.xml: readable, and the notes tell what was left out."""
    for path in sorted(data_folder("banepa/tiles_with_collar").glob("*.tif")):
        info = inspect_raster(os.fspath(path))
        assert (info.height, info.width) == (512, 512)
        assert "aux.xml" in notes_of(info)
        assert read_all(info)[1].all()
