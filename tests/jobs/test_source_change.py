"""Commands that draw over the source of a finished run: is it still the one that was segmented?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.jobs.runs import WorldFiles, run, write_world
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
        (Path.unlink, "which was segmented, cannot be read .*Put it back"),
    ],
    ids=["replaced", "grown", "gone"],
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
    assert len(redraw(finished, 600)) == 2


def test_a_mosaic_names_the_sheet_that_was_replaced(files: WorldFiles, tmp_path: Path) -> None:
    """Its plan knows the version of each sheet."""
    run(files, tmp_path / "out", tile=80, overlap=24, mosaic=True)
    assert len(redraw(str(tmp_path / "out"), 600)) == 1
    replace(files.image)
    with pytest.raises(JobError, match=r"image\.tif has changed since") as e:
        redraw(str(tmp_path / "out"), 600)
    assert e.value.code is Exit.INVALID
