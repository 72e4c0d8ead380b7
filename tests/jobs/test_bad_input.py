"""Bad input: one clear sentence, exit 2, and nothing left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.jobs.checkpoints import tiny_checkpoint

from panoptile.jobs.cli import main
from panoptile.pipeline import gdal_env

gdal_env.configure()

import rasterio


def panoptile(*arguments: object) -> int:
    """Run the command line in this process; returns its exit code."""
    before = sys.argv
    sys.argv = ["panoptile", *map(str, arguments)]
    try:
        main()
    except SystemExit as e:
        return int(e.code or 0)
    finally:
        sys.argv = before
    return 0


def scene(path: Path, bands: int = 3, size: int = 96) -> Path:
    """A good raster."""
    data = np.random.default_rng(0).integers(0, 255, (bands, size, size)).astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=bands, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 4e6), tiled=True, blockxsize=16, blockysize=16,
    ) as dst:  # fmt: skip
        dst.write(data)
    return path


def labels(path: Path, size: int = 96) -> str:
    """An echo model over a good raster."""
    with rasterio.open(path, "w", driver="GTiff", height=size, width=size, count=1, dtype="int32") as dst:
        dst.write(np.ones((1, size, size), np.int32))
    return f"echo:{path}"


def _checkpoint(folder: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """A tiny checkpoint whose weights ``change`` spoils."""
    from safetensors.torch import load_file, save_file

    tiny_checkpoint(folder)
    state: dict[str, object] = dict(load_file(folder / "model.safetensors"))
    change(state)
    save_file(state, folder / "model.safetensors")  # type: ignore[arg-type]
    return folder


def _text(tmp: Path) -> list[object]:
    (tmp / "notes.tif").write_text("not a raster")
    return [tmp / "notes.tif"]


def _truncated(tmp: Path) -> list[object]:
    whole = scene(tmp / "whole.tif").read_bytes()
    (tmp / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3])
    return [tmp / "cut.tif"]


def _empty_file(tmp: Path) -> list[object]:
    (tmp / "empty.tif").touch()
    return [tmp / "empty.tif"]


def _no_rasters(tmp: Path) -> list[object]:
    (tmp / "folder").mkdir()
    (tmp / "folder" / "readme.md").touch()
    return [tmp / "folder"]


def _half_mounted(tmp: Path) -> list[object]:
    (tmp / "folder").mkdir()
    scene(tmp / "folder" / "a.tif")
    (tmp / "folder" / "b.tif").symlink_to("/nowhere/b.tif")
    return [tmp / "folder"]


def _missing_key(state: dict[str, object]) -> None:
    del state["class_predictor.weight"]


def _extra_key(state: dict[str, object]) -> None:
    state["class_predictor.extra"] = state["class_predictor.bias"].clone()  # type: ignore[attr-defined]


CASES: dict[str, tuple[Callable[[Path], list[object]], list[str]]] = {
    "missing file": (lambda t: [t / "nowhere.tif"], ["nowhere.tif"]),
    "missing files of both kinds": (
        lambda t: [t / "nowhere.tif", t / "gone.mp4", t / "lost.tif"],
        ["nowhere.tif", "gone.mp4", "lost.tif"],
    ),
    "directory without rasters": (_no_rasters, ["folder", "raster"]),
    "directory with a link to nowhere": (_half_mounted, ["b.tif", "does not exist", "--skip-invalid"]),
    "text file named .tif": (_text, ["notes.tif"]),
    "truncated TIFF": (_truncated, ["cut.tif", "truncated"]),
    "zero-size file": (_empty_file, ["empty.tif", "empty"]),
    "unknown band": (lambda t: [scene(t / "a.tif"), "--bands", "1,2,9"], ["a.tif", "9", "--bands"]),
    "band zero": (lambda t: [scene(t / "a.tif"), "--bands", "0,1,2"], ["--bands"]),
    "wrong number of bands asked for": (lambda t: [scene(t / "a.tif"), "--bands", "1,2"], ["bands"]),
    "wrong number of bands": (lambda t: [scene(t / "a.tif", bands=2)], ["a.tif", "2", "--bands"]),
    "overlap above half a tile": (lambda t: [scene(t / "a.tif"), "--overlap", "300"], ["--overlap", "256"]),
    "tile too small": (lambda t: [scene(t / "a.tif"), "--tile", "8"], ["--tile"]),
    "unknown task": (lambda t: [scene(t / "a.tif"), "--task", "depth"], ["--task", "depth"]),
    "unknown class": (lambda t: [scene(t / "a.tif"), "--classes", "unicorn"], ["unicorn", "thing"]),
    "regions of a thing": (
        lambda t: [scene(t / "a.tif"), "--regions", "tree crown"],
        ["--regions", "tree crown"],
    ),
    "regions of no class": (lambda t: [scene(t / "a.tif"), "--regions", "unicorn"], ["--regions", "unicorn"]),
    "bad scale": (lambda t: [scene(t / "a.tif"), "--scale", "dark"], ["scale", "dark"]),
    "bad failure limit": (lambda t: [scene(t / "a.tif"), "--max-failures", "many"], ["--max-failures"]),
    "score out of range": (lambda t: [scene(t / "a.tif"), "--score", "2"], ["--score"]),
    "unknown option": (lambda t: [scene(t / "a.tif"), "--colour", "red"], ["--colour"]),
    "no such checkpoint": (lambda t: [scene(t / "a.tif"), "--model", t / "weights"], ["weights"]),
    "checkpoint without a key": (
        lambda t: [scene(t / "a.tif"), "--model", _checkpoint(t / "m", _missing_key)],
        ["class_predictor.weight", "missing"],
    ),
    "checkpoint with an extra key": (
        lambda t: [scene(t / "a.tif"), "--model", _checkpoint(t / "m", _extra_key)],
        ["class_predictor.extra"],
    ),
    "echo on another grid": (
        lambda t: [scene(t / "a.tif", size=80), "--model", labels(t / "l.tif")],
        ["80x80", "96x96"],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["segment", "plan"])
def test_bad_input_ends_with_exit_2(
    case: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of bad input is told in one message that names it; the output folder is not made."""
    make, words = CASES[case]
    arguments = make(tmp_path)
    if "--model" not in arguments:
        arguments += ["--model", labels(tmp_path / "labels.tif")]
    code = panoptile(command, *arguments, "-o", tmp_path / "out", "--local")
    message = capsys.readouterr().err
    assert code == 2, message
    for word in words:
        assert word.lower() in message.lower()
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_an_output_under_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be made ends with exit 2."""
    (tmp_path / "file").touch()
    arguments = [scene(tmp_path / "a.tif"), "--model", labels(tmp_path / "l.tif"), "--local"]
    assert panoptile("segment", *arguments, "-o", tmp_path / "file" / "out") == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc as a folder that cannot be written")
@pytest.mark.parametrize("command", ["segment", "plan"])
def test_an_output_that_cannot_be_written_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A read-only place ends with exit 2 and says how to go on; a plan sees it too."""
    arguments = [scene(tmp_path / "a.tif"), "--model", labels(tmp_path / "l.tif"), "--local"]
    assert panoptile(command, *arguments, "-o", "/proc/panoptile-out") == 2
    assert "-o" in capsys.readouterr().err


def test_an_output_with_foreign_files_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that holds something else is refused and not touched."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.docx").write_text("three years of work")
    arguments = [scene(tmp_path / "a.tif"), "--model", labels(tmp_path / "l.tif"), "--local"]
    assert panoptile("segment", *arguments, "-o", out) == 2
    assert "thesis.docx" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["thesis.docx"]


def test_another_job_in_the_folder_ends_with_exit_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other options on the same folder are refused, and the differing one is named."""
    arguments = [scene(tmp_path / "a.tif"), "--model", labels(tmp_path / "l.tif"), "--local", "-q"]
    assert panoptile("segment", *arguments, "-o", tmp_path / "out", "--tile", "64", "--overlap", "16") == 0
    assert panoptile("segment", *arguments, "-o", tmp_path / "out", "--tile", "80", "--overlap", "16") == 5
    message = capsys.readouterr().err
    assert "tile" in message
    assert "overlap" not in message


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_equal_notes_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixteen sheets without georeference are one line each, with their number and the first; JSON has each one's."""
    folder = tmp_path / "sheets"
    folder.mkdir()
    for number in range(16):
        with rasterio.open(
            folder / f"{number:02d}.tif", "w", driver="GTiff", height=96, width=96, count=3, dtype="uint8"
        ) as dst:
            dst.write(np.full((3, 96, 96), 9, np.uint8))
    arguments = [
        folder,
        "--model",
        labels(tmp_path / "l.tif"),
        "--local",
        "-o",
        tmp_path / "out",
        "--min-area",
        9,
    ]
    assert panoptile("plan", *arguments, "--json") == 0
    told = capsys.readouterr()
    notes = " ".join(told.err.split()).split("note ")[1:]
    assert len(notes) == 3
    assert all(note.startswith(f"16 rasters, the first {folder / '00.tif'}: ") for note in notes)
    plan = json.loads(told.out)
    assert [len(one["notes"]) for one in plan["inputs"]] == [2] * 16
