"""Commands that draw over the source of a finished run: is it still the one that was segmented?"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.jobs.runs import WorldFiles, run, write_world
from tests.jobs.test_bad_input import panoptile
from tests.pipeline.worlds import make_world

from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.previews import redraw


@pytest.fixture
def files(tmp_path: Path) -> WorldFiles:
    return write_world(make_world(31, 100, 110), tmp_path / "world")


@pytest.fixture
def finished(files: WorldFiles, tmp_path: Path) -> str:
    """Two inputs, of which the first is never changed: its picture shows whether anything was drawn."""
    (files.image.parent / "image_0.tif").write_bytes(files.image.read_bytes())
    both = dataclasses.replace(files, image=files.image.parent / "image*.tif")
    run(both, tmp_path / "out", tile=80, overlap=24)
    return str(tmp_path / "out")


def replace(path: Path) -> None:
    """Other bytes of the same size."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)


def pictures(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out).glob("previews/*.png")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace, "has changed since it was segmented: run segment again, or put back"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "has changed since it was segmented"),
    ],
    ids=["replaced", "grown"],
)
def test_a_preview_is_not_drawn_over_another_photograph(
    files: WorldFiles, finished: str, change: Callable[[Path], None], words: str
) -> None:
    """One of equal size too: exit 2, one sentence with the file's name, and no picture is drawn, of no input."""
    before = pictures(finished)
    change(files.image)
    with pytest.raises(JobError, match=rf"image\.tif.* {words}") as e:
        redraw(finished, 600)
    assert e.value.code is Exit.INVALID
    assert "\n" not in str(e.value)
    assert pictures(finished) == before


def test_a_picture_whose_photograph_is_gone_stays(
    files: WorldFiles, finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows what cannot be drawn any more; the others are drawn, and a note says how many were not."""
    before = pictures(finished)
    files.image.unlink()
    assert panoptile("preview", finished, "--max-side", 600) == 0
    said = capsys.readouterr()
    assert "the source of 1 input is gone: left as drawn before" in said.err
    assert len(said.out.splitlines()) == 1
    changed = {name for name, data in pictures(finished).items() if data != before[name]}
    assert [name.rsplit("-", 1)[0] for name in changed] == ["image_0"]
    (files.image.parent / "image_0.tif").unlink()
    after = pictures(finished)
    assert panoptile("preview", finished) == 0
    assert capsys.readouterr().out == ""
    assert panoptile("preview", finished, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["previews"], {Path(uri).name for uri in found["left"]}) == (
        [],
        {"image.tif", "image_0.tif"},
    )
    assert pictures(finished) == after


def test_a_missing_picture_is_drawn_without_its_photograph(files: WorldFiles, finished: str) -> None:
    """From the label rasters alone; a source that is there and changed is refused all the same."""
    for picture in Path(finished).glob("previews/*.png"):
        picture.unlink()
    files.image.unlink()
    drawn = redraw(finished, 600)
    assert (len(drawn.paths), drawn.left) == (2, ())
    assert len(pictures(finished)) == 2
    replace(files.image.parent / "image_0.tif")
    before = pictures(finished)
    with pytest.raises(JobError, match=r"image_0\.tif has changed since") as e:
        redraw(finished, 500)
    assert e.value.code is Exit.INVALID
    assert pictures(finished) == before


def test_a_preview_is_drawn_over_a_photograph_that_was_touched(files: WorldFiles, finished: str) -> None:
    """Another time and the same bytes are the same photograph."""
    before = pictures(finished)
    os.utime(files.image, (1_700_000_000, 1_700_000_000))
    redraw(finished, 600)
    assert pictures(finished).keys() == before.keys()
    assert pictures(finished) != before


def test_a_preview_follows_what_was_segmented_anew(files: WorldFiles, finished: str) -> None:
    """What the sentence advises helps."""
    replace(files.image)
    both = dataclasses.replace(files, image=files.image.parent / "image*.tif")
    run(both, Path(finished), tile=80, overlap=24)
    assert len(redraw(finished, 600).paths) == 2


def test_a_mosaic_names_the_sheet_that_was_replaced(files: WorldFiles, tmp_path: Path) -> None:
    """Its plan knows the version of each sheet."""
    run(files, tmp_path / "out", tile=80, overlap=24, mosaic=True)
    assert len(redraw(str(tmp_path / "out"), 600).paths) == 1
    replace(files.image)
    with pytest.raises(JobError, match=r"image\.tif has changed since") as e:
        redraw(str(tmp_path / "out"), 600)
    assert e.value.code is Exit.INVALID
    files.image.unlink()
    assert redraw(str(tmp_path / "out"), 600).paths == ()
