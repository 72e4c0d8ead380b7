"""Cutting a result into images: where they lie, what they hold, and that nothing half-written is left."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import rasterio
from PIL import Image
from tests.jobs.exported import SHAPE, SIDE, finished, place_of, truth
from tests.jobs.runs import threads
from typer.testing import CliRunner

from panoptile.jobs import export_images
from panoptile.jobs.cli import app
from panoptile.jobs.console import Console
from panoptile.jobs.exits import JobError
from panoptile.jobs.export import IMAGE_FORMATS, export_to
from panoptile.jobs.finished_run import open_run
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.store import open_store

__all__ = ["finished"]  # a fixture


def test_images_show_the_raster_once_where_there_is_input(finished: Path, tmp_path: Path) -> None:
    """Every pixel with input is in one image, with the photograph's value; images without input are left out."""
    export_to(str(finished), "coco-panoptic", str(tmp_path / "x"), (), SIDE)
    with rasterio.open(finished.parent / "image.tif") as photo:
        rgb, valid = np.moveaxis(photo.read([1, 2, 3]), 0, -1), photo.read(4) > 0
    shown = np.zeros(SHAPE, int)
    for path in (tmp_path / "x" / "images").iterdir():
        pixels = np.asarray(Image.open(path))
        row, col = place_of(path.name)
        inside = np.s_[row : row + pixels.shape[0], col : col + pixels.shape[1]]
        shown[inside] += 1
        assert valid[inside].any()
        assert max(pixels.shape) <= SIDE
        np.testing.assert_array_equal(pixels[valid[inside]], rgb[inside][valid[inside]])
    assert shown.max() == 1
    assert shown[valid].all()
    assert not shown[:SIDE, :SIDE].any()


def test_each_image_says_where_it_lies(finished: Path, tmp_path: Path) -> None:
    """Its offset in the raster, and GDAL's geotransform of its upper left corner, in the raster's CRS."""
    export_to(str(finished), "coco", str(tmp_path / "x"), (), SIDE)
    document = json.loads((tmp_path / "x/annotations/instances_default.json").read_text())
    [raster] = document["rasters"]
    assert (raster["height"], raster["width"]) == SHAPE
    assert rasterio.crs.CRS.from_wkt(raster["crs_wkt"]).to_epsg() == 32633
    for image in document["images"]:
        row, col = place_of(image["file_name"])
        assert (image["row_off"], image["col_off"]) == (row, col)
        assert image["geotransform"] == [500_000 + 0.5 * col, 0.5, 0, 4_000_000 - 0.5 * row, 0, -0.5]


@pytest.mark.parametrize("to", sorted(IMAGE_FORMATS))
def test_what_fails_leaves_nothing(finished: Path, tmp_path: Path, to: str) -> None:
    """An error after some images: neither the target nor a scratch folder is there."""
    writer = IMAGE_FORMATS[to]
    with (
        mock.patch.object(writer, "finish", side_effect=OSError(28, "No space left on device")),
        pytest.raises(JobError, match="No space left") as e,
    ):
        export_to(str(finished), to, str(tmp_path / "x"), (), SIDE)
    assert int(e.value.code) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_there_is_kept(finished: Path, tmp_path: Path) -> None:
    """An existing folder is refused and not touched."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    with pytest.raises(JobError, match="is there already"):
        export_to(str(finished), "coco", str(tmp_path / "x"), (), SIDE)
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "mine"]


def test_a_zip_holds_the_same_files(finished: Path, tmp_path: Path) -> None:
    """-o NAME.zip packs what a folder would hold."""
    export_to(str(finished), "cvat", str(tmp_path / "x"), (), SIDE)
    export_to(str(finished), "cvat", str(tmp_path / "x.zip"), (), SIDE)
    files = {str(p.relative_to(tmp_path / "x")): p.read_bytes() for p in (tmp_path / "x").rglob("*.*")}
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.zip"]


def test_a_result_in_an_object_store_gives_the_same(finished: Path, tmp_path: Path) -> None:
    """OUT may be in any store: the export of a copy has the same bytes."""
    store = open_store(f"memory://{tmp_path.name}")
    for path in finished.rglob("*"):
        if path.is_file():
            store.put_bytes(str(path.relative_to(finished)), path.read_bytes())
    export_to(str(finished), "coco-panoptic", str(tmp_path / "a"), (), SIDE)
    export_to(store.root, "coco-panoptic", str(tmp_path / "b"), (), SIDE)
    a, b = (
        {str(p.relative_to(tmp_path / n)): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in "ab"
    )
    assert a == b


def test_a_photograph_that_is_gone_or_another_is_one_sentence(finished: Path, tmp_path: Path) -> None:
    """Exit 2, and what to do."""
    photo, kept = finished.parent / "image.tif", tmp_path / "kept.tif"
    shutil.move(photo, kept)
    try:
        same_size = kept.read_bytes()[:-1] + b"x"
        for replace, words in (
            (None, "gpkg"),
            (b"II*\0", "has changed since"),
            (same_size, "has changed since"),
        ):
            if replace is not None:
                photo.write_bytes(replace)
            with pytest.raises(JobError, match=words) as e:
                export_to(str(finished), "coco", str(tmp_path / "x"), (), SIDE)
            assert int(e.value.code) == 2
            assert "\n" not in str(e.value)
    finally:
        shutil.move(kept, photo)
    assert not (tmp_path / "x").exists()


def test_runs_without_what_is_needed_are_one_sentence(finished: Path, tmp_path: Path) -> None:
    """Videos alone, a wrong --tile, --tile where there are no images, COCO's things where no class is one."""
    real = open_run(str(finished), tmp_path)
    videos = dataclasses.replace(real, rasters=(), videos=("clip-0000000000",))
    with (
        mock.patch.object(export_images, "open_run", return_value=videos),
        pytest.raises(JobError, match="only videos"),
    ):
        export_to(str(finished), "coco", str(tmp_path / "x"), ())
    for to, classes, tile, words in (
        ("coco", (), 8, "--tile is 32 to 4096"),
        ("gpkg", (), 512, "--tile does not go with"),
        ("coco", ("grass",), None, "no class is one"),
        ("coco", ("castle",), None, "No class is called"),
    ):
        with pytest.raises(JobError, match=words) as e:
            export_to(str(finished), to, str(tmp_path / "x"), classes, tile)
        assert int(e.value.code) == 2
    assert list(tmp_path.iterdir()) == []


def test_several_rasters_make_one_dataset_and_videos_are_named(finished: Path, tmp_path: Path) -> None:
    """Images of all rasters, named by their keys, numbered through; what is left out is said."""
    first = finished.parent / "image.tif"
    second = tmp_path / "other.tif"
    shutil.copy(first, second)
    truth_files = ",".join(str(finished.parent / n) for n in ("labels.tif", "classes.tif"))
    spec = JobSpec(
        (str(first), str(second)), str(tmp_path / "out"), model=f"echo:{truth_files}",
        labels=str(finished.parent / "table.json"), local=True, workers=1, tile=128, overlap=32,
    )  # fmt: skip
    with threads():
        run_job(prepare(spec), Console(quiet=True))
    real = open_run(str(tmp_path / "out"), tmp_path / "scratch")
    said: list[str] = []
    mixed = dataclasses.replace(real, videos=("clip-0000000000",))
    with mock.patch.object(export_images, "open_run", return_value=mixed):
        export_to(str(tmp_path / "out"), "coco", str(tmp_path / "x"), (), 128, said.append)
    document = json.loads((tmp_path / "x/annotations/instances_default.json").read_text())
    assert [i["id"] for i in document["images"]] == list(range(1, 9))
    assert {i["raster"] for i in document["images"]} == {p.key for p in real.rasters}
    assert len({i["file_name"] for i in document["images"]}) == 8
    assert all(i["file_name"].startswith(i["raster"]) for i in document["images"])
    assert said == ["1 videos are left out: export them as coco-panoptic-video or ytvis."]


def test_an_unreadable_place_where_the_run_had_no_input_is_said(finished: Path, tmp_path: Path) -> None:
    """An image that cannot be read is left out only if the run has failed there too; else nothing is written."""
    from panoptile.pipeline.raster_file import RasterReadError
    from panoptile.pipeline.raster_source import RasterSource

    real = RasterSource.read
    segments, _ = truth(finished)

    def damaged(at: tuple[int, int]):  # type: ignore[no-untyped-def]
        def read(self, window):  # type: ignore[no-untyped-def]
            if (window.row, window.col) == at:
                raise RasterReadError("image.tif: rows 64 to 128 cannot be read.")
            return real(self, window)

        return mock.patch.object(RasterSource, "read", read)

    said: list[str] = []
    with damaged((0, SIDE)):  # the corner without input reaches into it
        export_to(str(finished), "coco", str(tmp_path / "x"), (), SIDE, said.append)
    assert said == ["1 images of image are left out: the photograph cannot be read there, nor could the run."]
    with damaged((128, 128)), pytest.raises(JobError, match="cannot be read"):
        export_to(str(finished), "coco", str(tmp_path / "y"), (), SIDE)
    assert segments[128:, 128:].any()
    assert not (tmp_path / "y").exists()


def test_the_command_says_what_it_wrote(finished: Path, tmp_path: Path) -> None:
    """One path on stdout, or a JSON object."""
    result = CliRunner().invoke(
        app, ["export", str(finished), "--to", "coco", "-o", str(tmp_path / "x"), "--tile", "128", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["written"] == [str(tmp_path / "x")]
