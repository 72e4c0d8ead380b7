"""A directory of numbered images as a video: each file is a frame, in the natural order of the names.

Each frame is a key, so any part can be read alone. Without a rate the frame's number is its time.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from panoptile.pipeline.frame_source import Frame, LostFrame, checked_range
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.magic import image_kind
from panoptile.pipeline.video_index import VideoIndex
from panoptile.pipeline.video_probe import LIMITS

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_UNREADABLE = (OSError, SyntaxError, ValueError)
"""What Pillow raises for damaged images; a PNG's chunks are a matter of syntax to it."""
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I"})


def is_image_sequence(directory: str) -> bool:
    """Whether a directory holds an image directly."""
    return any(_is_image(name) for name in os.listdir(directory))


def index_images(directory: str, fps: float | None = None) -> VideoIndex:
    """Index the images of a directory; frame k is shown at k / fps seconds, at k seconds without ``fps``.

    Reads the headers alone: damage behind them makes a lost frame later on. Raises InputError for a directory without images, a file that is none, a rate that is
    not positive, and, naming both files, for images of different sizes.
    """
    tick = Fraction(1) if fps is None else 1 / _exact_rate(fps)
    names = sorted(filter(_is_image, os.listdir(directory)), key=natural_order)
    if not names:
        raise InputError(f"{shown(directory)} holds no image: looked for {' '.join(IMAGE_ENDINGS)}.")
    size = _image_size(os.path.join(directory, names[0]))
    kind = image_kind(os.path.join(directory, names[0]))
    total, newest = 0, 0
    for name in names:
        path = os.path.join(directory, name)
        here = _image_size(path)
        if here != size:
            raise InputError(
                f"{shown(path)} has {here[0]}x{here[1]} pixels, but {shown(names[0])} has {size[0]}x{size[1]}: "
                "the images of one sequence must have one size."
            )
        status = os.stat(path)
        total, newest = total + status.st_size, max(newest, status.st_mtime_ns)
    numbers = np.arange(len(names), dtype=np.int64)
    return VideoIndex(
        pts=numbers, time_base=tick,
        keys=numbers, key_dts=numbers, width=size[0], height=size[1], rotation=0, codec=kind,
        container="images", decord_safe=False, reasons=("a directory of images",), size=total, mtime_ns=newest,
        files=tuple(names),
    )  # fmt: skip


def folder_tag(directory: str) -> str:
    """Which images a directory holds now: changes with every name, size or time among them."""
    digest = hashlib.sha256()
    for name in sorted(filter(_is_image, os.listdir(directory)), key=natural_order):
        status = os.stat(os.path.join(directory, name))
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Key by which frame10 stands after frame9: digits compare as numbers, letters without case."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in parts], name


def _exact_rate(fps: float) -> Fraction:
    """The simplest fraction that is this number to nine digits: 30000/1001 of its decimals, 1/3600, 29.97."""
    rate = Fraction(0)
    if 0 < fps < np.inf:
        for largest in (1001, 10**5, 10**9):
            rate = Fraction(fps).limit_denominator(largest)
            if abs(float(rate) - fps) <= 1e-9 * fps:
                break
    if not rate:
        raise InputError(
            f"The rate of an image sequence must be positive, from 1e-9 frames a second, got {fps}."
        )
    return rate


class ImageSource:
    """Frames of one directory of images; see frame_source.FrameSource."""

    backend = "images"

    def __init__(self, directory: str, index: VideoIndex, reason: str = "a directory of images") -> None:
        self.index = index
        self.reason = reason
        self._directory = directory

    def close(self) -> None:
        """Nothing is held open."""

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[Frame | LostFrame]:
        """See FrameSource.frames. An image that cannot be read is a lost frame."""
        for number in checked_range(self.index, start, stop, step):
            pts, time_s = int(self.index.pts[number]), self.index.time_s(number)
            path = os.path.join(self._directory, self.index.files[number])
            try:
                rgb = read_rgb(path)
            except _UNREADABLE as e:
                yield LostFrame(number, pts, time_s, str(e))
                continue
            if rgb.shape != (self.index.height, self.index.width, 3):
                yield LostFrame(number, pts, time_s, f"its size is {rgb.shape[1]}x{rgb.shape[0]} now")
                continue
            yield Frame(number, pts, time_s, rgb)


def read_rgb(path: str) -> NDArray[np.uint8]:
    """(H, W, 3) of one image: turned as its orientation tag says, grey repeated, alpha dropped, 16 bits
    cut to their upper 8."""
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened) if _orientation(opened) != 1 else opened
        if image.mode in _SIXTEEN_BITS:
            grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))


def _image_size(path: str) -> tuple[int, int]:
    """(width, height) from the header; InputError for what is no image or too large."""
    with _opened(path) as image:
        width, height = image.size
        if _orientation(image) >= 5:  # turned by a quarter
            width, height = height, width
    if width > LIMITS.side or height > LIMITS.side or width * height > LIMITS.pixels:
        raise InputError(f"{shown(path)} declares {width}x{height} pixels, more than {LIMITS.pixels:,}.")
    return width, height


def _orientation(image: Image.Image) -> int:
    """The orientation tag of an opened image, as far as its header holds one: a PNG's own way of looking for it decodes
    the whole picture."""
    try:
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except (*_UNREADABLE, TypeError):
        return 1


def _opened(path: str) -> Image.Image:
    kind = image_kind(path)  # before any decoder
    try:
        return Image.open(path, formats=[kind.upper()])
    except (*_UNREADABLE, Image.DecompressionBombError) as e:
        raise InputError(f"{shown(path)} cannot be opened as {kind.upper()}: {e}.") from e


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
