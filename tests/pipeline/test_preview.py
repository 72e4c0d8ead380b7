"""The preview picture: what is drawn where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin
from tests.pipeline.label_arrays import CLASSES, dense, publish, raster_info, voronoi

from panoptile.pipeline.preview import NoPhotograph, write_preview
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.window import Window


@dataclass
class Tile:
    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_]


class GrayPhoto:
    """A photograph of one value that remembers how much of it was read at once."""

    def __init__(self, bands: int = 3) -> None:
        self.bands = bands
        self.largest = 0

    def read(self, window: Window) -> Tile:
        self.largest = max(self.largest, window.pixels)
        return Tile(np.full((self.bands, *window.shape), 128, np.uint8), np.ones(window.shape, bool))


class CheckeredPhoto(GrayPhoto):
    """Pixels of 0 and 200 by turns."""

    def read(self, window: Window) -> Tile:
        rows, cols = np.mgrid[window.row : window.stop_row, window.col : window.stop_col]
        values = ((rows + cols) % 2 * 200).astype(np.uint8)
        return Tile(np.broadcast_to(values, (3, *window.shape)), np.ones(window.shape, bool))


def draw(
    labels: NDArray[np.uint32], folder: Path, *, max_side: int = 2048, bands: int = 3
) -> NDArray[np.uint8]:
    """The preview of a label raster over grey, as an array (H, W, 3)."""
    info = raster_info(*labels.shape)
    published = publish(labels, folder, info)
    path = folder / "preview.png"
    photo = GrayPhoto(bands)
    write_preview(
        path,
        info,
        published.segments_tif,
        published.classes_tif,
        CLASSES,
        max_side=max_side,
        photo=photo,
    )
    assert photo.largest <= 2048**2
    return np.asarray(Image.open(path))


def test_classes_are_coloured_and_things_outlined(tmp_path: Path) -> None:
    """Inside, a class's colour lies over the photograph; a thing's border is nearly its pure colour."""
    labels = np.zeros((900, 900), np.uint32)
    labels[100:300, 100:300] = 1
    labels[300:500, 100:300] = 2
    labels[600:800, 100:800] = 3
    labels[:50] = NODATA_ID
    picture = draw(labels, tmp_path).astype(int)
    house, _, ground = (np.array(c.color) for c in CLASSES)
    assert np.abs(picture[200, 200] - (0.62 * 128 + 0.38 * house)).max() <= 1
    assert np.abs(picture[700, 400] - (0.70 * 128 + 0.30 * ground)).max() <= 1
    for border in ((100, 200), (200, 100), (299, 200), (200, 299)):
        assert np.abs(picture[border] - house).max() <= 10
    assert np.abs(picture[600, 400] - picture[700, 400]).max() == 0  # stuff has no outline
    assert picture[550, 550].tolist() == [128, 128, 128]  # void: the photograph
    assert picture[20, 20].min() > 200  # no input: blank
    assert picture.shape[1] > 900  # the legend


@pytest.mark.parametrize("shape", [(1, 1), (30, 1200), (1200, 30), (640, 480), (1300, 2100)])
@pytest.mark.parametrize("max_side", [480, 1024])
def test_any_shape_fits(tmp_path: Path, shape: tuple[int, int], max_side: int) -> None:
    """The sheet never exceeds the size asked for, legend included, however long, small or large the raster is."""
    picture = draw(voronoi(1, *shape, 50), tmp_path, max_side=max_side, bands=1)
    assert max(picture.shape) <= max_side
    assert min(picture.shape[:2]) >= 100


def test_the_photograph_is_averaged(tmp_path: Path) -> None:
    """A fine checkerboard becomes its mean, not one of its values: no aliasing."""
    labels = dense(np.zeros((2000, 1600), np.uint32))
    info = raster_info(2000, 1600)
    published = publish(labels, tmp_path, info)
    path = tmp_path / "p.png"
    photo = CheckeredPhoto()
    write_preview(
        path, info, published.segments_tif, published.classes_tif, CLASSES, max_side=1000, photo=photo
    )
    picture = np.asarray(Image.open(path))
    assert np.abs(picture[100:900, 100:400].astype(int).mean() - 100) < 2
    assert picture[100:900, 100:400].std() < 40


def test_a_picture_too_small_for_its_legend_is_refused(tmp_path: Path) -> None:
    """Fewer than 480 px a side is an error that says so."""
    with pytest.raises(ValueError, match="at least 480 px a side, got 100"):
        draw(voronoi(1, 50, 50, 9), tmp_path, max_side=100)


def test_without_a_photograph_the_input_is_drawn(tmp_path: Path) -> None:
    """The picture under the colours is the input file, band by band."""
    red = np.zeros((3, 700, 700), np.uint8)
    red[0] = 250
    source = tmp_path / "red.tif"
    with rasterio.open(
        source,
        "w",
        driver="GTiff",
        width=700,
        height=700,
        count=3,
        dtype="uint8",
        transform=from_origin(5, 5, 1, 1),
    ) as f:
        f.write(red)
    info = inspect_raster(str(source), scale="0,255")
    published = publish(np.zeros((700, 700), np.uint32), tmp_path / "out", info)
    write_preview(tmp_path / "p.png", info, published.segments_tif, published.classes_tif, CLASSES)
    assert np.asarray(Image.open(tmp_path / "p.png"))[350, 350].tolist() == [250, 0, 0]


def test_unreadable_windows_stay_blank(tmp_path: Path) -> None:
    """A photograph with a damaged block is drawn where it can be read."""

    class DamagedPhoto(GrayPhoto):
        def read(self, window: Window) -> Tile:
            if window.row > 0:
                raise OSError("block 7 is damaged")
            return super().read(window)

    info = raster_info(2200, 900)
    published = publish(np.zeros((2200, 900), np.uint32), tmp_path, info)
    path = tmp_path / "p.png"
    write_preview(path, info, published.segments_tif, published.classes_tif, CLASSES, photo=DamagedPhoto())
    picture = np.asarray(Image.open(path))
    assert picture[100, 100].tolist() == [128, 128, 128]
    assert picture[1900, 100].min() > 200


def test_labels_are_drawn_over_nothing(tmp_path: Path) -> None:
    """The photograph is not to be seen any more: the raster itself is not opened, and segments are drawn all the same."""
    info = raster_info(700, 700)
    labels = np.zeros((700, 700), np.uint32)
    labels[:350] = 1
    published = publish(labels, tmp_path, info)
    path = tmp_path / "p.png"
    write_preview(path, info, published.segments_tif, published.classes_tif, CLASSES, photo=NoPhotograph())
    picture = np.asarray(Image.open(path))
    assert picture[600, 100].min() > 200
    assert picture[100, 100].tolist() != picture[600, 100].tolist()
