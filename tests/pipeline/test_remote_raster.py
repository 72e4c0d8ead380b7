"""Rasters in object stores: found by name, folder and glob, read by ranges, and equal to the same files on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tests.faults.fault_proxy import FaultProxy, Faults
from tests.object_stores import Server, reach

from panoptile.pipeline import gdal_env, raster_file
from panoptile.pipeline.inputs import InputError, find_inputs
from panoptile.pipeline.raster_source import RasterSource, inspect_raster
from panoptile.pipeline.remote_object import version_of
from panoptile.pipeline.store import StoreUnreachable, open_store
from panoptile.pipeline.store_retry import Backoff
from panoptile.pipeline.window import Window

gdal_env.configure()  # before rasterio

import rasterio

SIDE = 1536
WINDOWS = [Window(0, 0, 300, 200), Window(700, 900, 260, 400), Window(1400, 1400, 136, 136)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiled raster of noise, 7 MB: what is read of it is a small part."""
    path = tmp_path_factory.mktemp("scene") / "scene one.tif"
    pixels = np.random.default_rng(3).integers(0, 255, (3, SIDE, SIDE)).astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE, height=SIDE, count=3, dtype="uint8", tiled=True, blockxsize=256,
        blockysize=256, photometric="RGB", crs="EPSG:32633", transform=rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 4e6),
    ) as dst:  # fmt: skip
        dst.write(pixels)
    return path


def upload(root: str, scene: Path, *names: str) -> list[str]:
    store = open_store(root)
    for name in names:
        store.put_bytes(name, scene.read_bytes())
    return [store.uri(name) for name in names]


@pytest.fixture(params=["s3", "gcs", "azure"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return reach(request.getfixturevalue(f"{request.param}_server"), monkeypatch)


def test_windows_equal_those_of_the_local_file(place: str, scene: Path) -> None:
    """Bytes, metadata and version: an object is the same raster as the file; its version is size and etag."""
    (uri,) = upload(place, scene, "in/scene one.tif")
    local, remote = inspect_raster(str(scene)), inspect_raster(uri)
    assert remote.uri == uri
    assert (remote.size_bytes, remote.mtime_ns) == (local.size_bytes, 0)
    assert remote.etag
    assert remote.etag == version_of(uri).etag
    assert (remote.transform, remote.crs_wkt, remote.bands) == (local.transform, local.crs_wkt, local.bands)
    with RasterSource(local) as here, RasterSource(remote) as there:
        for window in WINDOWS:
            np.testing.assert_array_equal(here.read(window).pixels, there.read(window).pixels)


def test_equal_bytes_written_again_are_the_same_raster(place: str, scene: Path) -> None:
    """When an object was written is known, and no part of its version: the etag is."""
    (uri,) = upload(place, scene, "a.tif")
    version, info = version_of(uri), inspect_raster(uri)
    assert abs(info.written_ns / 1e9 - time.time()) < 60
    time.sleep(1.1)  # stores tell whole seconds
    upload(place, scene, "a.tif")
    assert version_of(uri).written_ns > version.written_ns
    assert version_of(uri).etag != version.etag or version_of(uri) == version
    assert inspect_raster(uri).etag != info.etag or inspect_raster(uri) == info


def test_a_changed_object_has_another_version(place: str, scene: Path) -> None:
    """The same size and other bytes give another etag."""
    (uri,) = upload(place, scene, "a.tif")
    before = version_of(uri)
    data = bytearray(scene.read_bytes())
    data[-1] ^= 1
    open_store(place).put_bytes("a.tif", bytes(data))
    assert version_of(uri) != before


def test_objects_are_found_by_name_folder_and_glob(place: str, scene: Path) -> None:
    """As on disk: a folder gives its rasters, sorted, without sub-folders; an object counts once."""
    a, b, _, inner, _ = upload(
        place, scene, "t/b [1].tif", "t/c.TIFF", "t/.d.tif", "t/inner/e.tif", "t/readme.md"
    )
    assert find_inputs([f"{place}/t/"]) == [a, b]
    assert find_inputs([f"{place}/t"]) == [a, b]
    assert find_inputs([b, f"{place}/t/[b-c]*", a]) == [b, a]
    assert find_inputs([f"{place}/**/e.tif"]) == [inner]
    assert find_inputs([a]) == [a]
    for source, words in (
        (f"{place}/none.tif", "neither an object nor a folder"),
        (f"{place}/t/*.jp2", "No object matches"),
    ):
        with pytest.raises(InputError, match=words):
            find_inputs([source])


def test_a_missing_bucket_is_told_in_one_sentence(place: str) -> None:
    """Not retried, and named."""
    scheme = place.split("://")[0]
    with pytest.raises((StoreUnreachable, InputError), match="panoptile-no-such-bucket"):
        find_inputs([f"{scheme}://panoptile-no-such-bucket/a.tif"])


def test_bad_objects_are_refused_like_bad_files(s3_root: str, scene: Path) -> None:
    """A VRT named .tif, a truncated and an empty object, and one beyond the limits: one sentence each."""
    store = open_store(s3_root)
    store.put_bytes("a.tif", b"<VRTDataset rasterXSize='1'/>")
    store.put_bytes("b.tif", scene.read_bytes()[: 3 << 20])
    store.put_bytes("c.tif", b"")
    store.put_bytes("d.tif", scene.read_bytes())
    for name, words in (("a", "XML text"), ("b", "truncated"), ("c", "empty"), ("e", "does not exist")):
        with pytest.raises(InputError, match=words):
            inspect_raster(store.uri(f"{name}.tif"))
    with pytest.raises(InputError, match="--max-pixels"):
        inspect_raster(store.uri("d.tif"), limits=raster_file.Limits(pixels=1000))


@pytest.fixture
def behind_proxy(s3_server: Server, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A place on S3 behind a proxy with faults; GDAL and the client wait a second at most."""
    if s3_server.port is None:
        pytest.skip("PANOPTILE_TEST_S3 names a real store, before which no proxy can stand")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.02")
    monkeypatch.setitem(
        __import__("fsspec").config.conf, "s3", {"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}}
    )
    monkeypatch.setattr(raster_file, "REMOTE_TRIES", Backoff(attempts=20, first=0.02, most=0.2))
    faults = Faults(unavailable=0.1, reset=0.1, silence=0.1, torn=0.1)
    with FaultProxy(s3_server.port, faults, seed=5, hold=1.2) as proxy:
        proxy.enabled = False
        yield proxy, reach(s3_server, monkeypatch, proxy.port)


def test_reading_survives_a_bad_network(behind_proxy: tuple[FaultProxy, str], scene: Path) -> None:
    """503, resets, silence and torn bodies at 10 % each: the same pixels, and no window is called damaged."""
    proxy, root = behind_proxy
    (uri,) = upload(root, scene, "a.tif")
    proxy.enabled = True
    with RasterSource(inspect_raster(str(scene))) as here, RasterSource(inspect_raster(uri)) as there:
        for row in range(0, SIDE, 256):
            for col in range(0, SIDE, 512):
                window = Window(row, col, 256, 512)
                np.testing.assert_array_equal(here.read(window).pixels, there.read(window).pixels)
    print(f"{proxy.requests} requests, faults {json.dumps(dict(sorted(proxy.counts.items())))}")
    assert sum(proxy.counts.values()) >= 5


def test_only_ranges_are_read(behind_proxy: tuple[FaultProxy, str], scene: Path) -> None:
    """Planning and one window of a 7 MB raster fetch less than 2 MB."""
    proxy, root = behind_proxy
    (uri,) = upload(root, scene, "a.tif")
    before = proxy.bytes_out
    with RasterSource(inspect_raster(uri)) as source:
        source.read(Window(512, 512, 256, 256))
    fetched = proxy.bytes_out - before
    print(f"{fetched / 1e6:.2f} MB of {scene.stat().st_size / 1e6:.2f} MB were fetched")
    assert fetched < 2e6
