"""Directories of numbered images as videos."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.pipeline.video_files import number_in, picture

from panoptile.pipeline.frame_source import Frame, LostFrame, choose_backend, open_frames
from panoptile.pipeline.image_sequence import index_images, natural_order
from panoptile.pipeline.inputs import InputError


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(folder / name)
    return folder


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "JPEG", "tiff"])
def test_images_come_in_natural_order_at_their_rate(tmp_path: Path, ending: str) -> None:
    """frame2 stands before frame10; frame k is at k / fps seconds; other files are left alone."""
    folder = write_images(tmp_path / "clip", [f"frame{k}.{ending}" for k in range(12)])
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    index = index_images(str(folder), fps=24)
    source = open_frames(str(folder), index)
    assert source.backend == "images"
    for start, stop, step in ((0, 12, 1), (1, 12, 7), (11, 12, 1)):
        given = list(source.frames(start, stop, step))
        assert [number_in(f.rgb) for f in given if isinstance(f, Frame)] == list(range(start, stop, step))
        assert [f.time_s for f in given] == [k / 24 for k in range(start, stop, step)]


def test_without_a_rate_the_number_is_the_time(tmp_path: Path) -> None:
    """No rate is made up; a fractional rate such as 29.97 is kept exactly."""
    folder = write_images(tmp_path / "clip", ["a.png", "b.png"])
    assert index_images(str(folder)).times_s.tolist() == [0, 1]
    assert index_images(str(folder), fps=30000 / 1001).times_s.tolist() == [0, 1001 / 30000]
    assert choose_backend(str(folder), index_images(str(folder))).backend == "images"
    with pytest.raises(InputError, match="positive"):
        index_images(str(folder), fps=-1)


@pytest.mark.parametrize(
    ("fps", "seconds"),
    [(1 / 3600, 3600), (0.0004, 2500), (0.0015, 2000 / 3), (1e-9, 1e9), (29.97, 100 / 2997)],
)
def test_slow_rates_are_exact_too(tmp_path: Path, fps: float, seconds: float) -> None:
    """A folder with an image an hour has a rate as well."""
    folder = write_images(tmp_path / "clip", ["a.png", "b.png"])
    assert index_images(str(folder), fps=fps).times_s.tolist() == pytest.approx([0, seconds], rel=1e-9)
    with pytest.raises(InputError, match="positive"):
        index_images(str(folder), fps=1e-300)


def test_natural_order() -> None:
    """Numbers compare as numbers, whatever their zeros; the rest without case."""
    names = ["f10.png", "F9.png", "f09b.png", "f1.png", "g0.png", "f100.png"]
    assert sorted(names, key=natural_order) == [
        "f1.png",
        "F9.png",
        "f09b.png",
        "f10.png",
        "f100.png",
        "g0.png",
    ]


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    """The message names both files and both sizes."""
    folder = write_images(tmp_path / "clip", ["0.png", "1.png"])
    Image.fromarray(picture(2)[:40]).save(folder / "2.png")
    with pytest.raises(InputError, match=r"2\.png has 160x40 pixels, but 0\.png has 160x96"):
        index_images(str(folder))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    """A text named as an image, and a folder without images, are errors."""
    folder = write_images(tmp_path / "clip", ["0.png"])
    (folder / "1.png").write_text("#EXTM3U")
    with pytest.raises(InputError, match=r"1\.png is not a PNG"):
        index_images(str(folder))
    with pytest.raises(InputError, match="holds no image"):
        index_images(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="not a regular file"):
        index_images(str(tmp_path))


def test_an_image_that_breaks_later_is_a_lost_frame(tmp_path: Path) -> None:
    """The other frames are given, each in its place."""
    folder = write_images(tmp_path / "clip", ["0.png", "1.png", "2.png", "3.png"])
    index = index_images(str(folder))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    Image.fromarray(picture(2)[:40]).save(folder / "2.png")
    given = list(open_frames(str(folder), index).frames(0, 4))
    assert [type(f) for f in given] == [Frame, LostFrame, LostFrame, Frame]
    assert [f.index for f in given] == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_damaged_images_are_refused_or_lost(tmp_path: Path, ending: str) -> None:
    """Cut off or with bytes overwritten anywhere: a sentence at the start, or a lost frame, and never an error of
    Pillow's own; what only lacks its end costs that one frame."""
    folder = write_images(tmp_path / "clip", [f"0.{ending}", f"1.{ending}"])
    whole, rng = (folder / f"1.{ending}").read_bytes(), np.random.default_rng(2)
    index = index_images(str(folder))
    for trial in range(150):
        data = bytearray(whole if trial % 3 else whole[: rng.integers(1, len(whole))])
        for at in rng.integers(0, min(len(data), 80 * 4 ** (trial % 4)), trial % 5):
            data[at] = rng.integers(256)
        (folder / f"1.{ending}").write_bytes(data)
        with contextlib.suppress(InputError):
            index_images(str(folder))
        assert len(list(open_frames(str(folder), index).frames(0, 2))) == 2
    (folder / f"1.{ending}").write_bytes(whole[: len(whole) * 3 // 4])
    if ending != "tif":  # whose directory stands at its end
        assert len(index_images(str(folder))) == 2
    given = list(open_frames(str(folder), index).frames(0, 2))
    assert [type(f) for f in given] == [Frame, LostFrame]


def test_sixteen_bits_grey_and_alpha_become_rgb(tmp_path: Path) -> None:
    """The upper eight bits of 16, grey three times, alpha dropped; a picture's orientation tag is applied."""
    values = np.arange(96, dtype=np.uint16).reshape(8, 12) * 600
    cases = {
        "a": (Image.fromarray(values), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2)),
        "b": (Image.fromarray(np.full((8, 12, 4), 7, np.uint8)), np.full((8, 12, 3), 7)),
    }
    for name, (image, expected) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        image.save(folder / "0.png")
        frame = next(iter(open_frames(str(folder), index_images(str(folder))).frames(0, 1)))
        assert isinstance(frame, Frame)
        np.testing.assert_array_equal(frame.rgb, expected)
    folder = tmp_path / "turned"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    Image.fromarray(picture(5)).save(folder / "0.png", exif=exif)
    index = index_images(str(folder))
    frame = next(iter(open_frames(str(folder), index).frames(0, 1)))
    assert (index.width, index.height) == (96, 160)
    assert isinstance(frame, Frame)
    np.testing.assert_array_equal(frame.rgb, np.rot90(picture(5), -1))
