"""The results of rasters cut into images with their segments: what every format of annotated images is made of.

Images lie side by side from the raster's upper left corner, without overlap; those at its right and lower border are
smaller, and those without any input are left out. A segment that the cut divides becomes a part in each image, which
these formats take for a segment of its own: the raster's ``segment_id``, which every part carries as an extra
attribute, says which parts belong together. Memory is that of one image, plus four bytes per segment of one raster.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import FinishedRun, open_run
from panoptile.jobs.new_folder import is_packed, new_folder
from panoptile.jobs.source_change import check_segmented
from panoptile.jobs.state import cannot_write
from panoptile.model.classes import ClassTable, SegmentClass
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.label_runs import LabelRuns, coded_labels
from panoptile.pipeline.mosaic import MosaicSource, open_source
from panoptile.pipeline.parquet_read import read_batches
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_file import RasterReadError, open_raster, read_window
from panoptile.pipeline.raster_info import NODATA_ID, RasterInfo
from panoptile.pipeline.raster_source import RasterSource
from panoptile.pipeline.window import Window

DEFAULT_SIDE = 1024
SMALLEST_SIDE, LARGEST_SIDE = 32, 4096
"""Sides of an image, pixels: at 4096 the ids of its parts still fit into the 24 bits of COCO's PNGs."""
MOST_IDS = (1 << 24) - 1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """What one image holds of a segment."""

    number: int
    """Its label in this image, from 1."""
    segment_id: int
    """Its id in the raster: parts with the same one are one segment."""
    segment_class: SegmentClass
    score: float | None
    """None where the run wrote no table of segments."""
    area: int
    """Pixels."""
    bbox_xywh: tuple[int, int, int, int]
    counts: str
    """COCO's run-length code over the whole image."""


@dataclass(frozen=True, slots=True, eq=False)
class TiledImage:
    """One image, and what was found in it."""

    number: int
    """From 1, over all rasters."""
    info: RasterInfo
    """Of the raster that it is cut from."""
    window: Window
    """Where in the raster."""
    rgb: NDArray[np.uint8]
    """(H, W, 3) as the network saw it."""
    labels: NDArray[np.int64]
    """(H, W) numbers of parts; 0 for void, for pixels without input, and for classes that were not asked for."""
    runs: LabelRuns
    """Of ``labels``."""
    parts: tuple[Part, ...]
    """In the order of their numbers, and of their segment ids."""

    @property
    def name(self) -> str:
        """Raster, first row and first column: the file's stem."""
        return f"{self.info.key}_{self.window.row:07d}_{self.window.col:07d}"

    @property
    def file_name(self) -> str:
        return f"{self.name}.png"

    @property
    def geotransform(self) -> tuple[float, float, float, float, float, float]:
        """GDAL's six numbers for this image: x0, dx/dcol, dx/drow, y0, dy/dcol, dy/drow."""
        a, b, c, d, e, f = self.info.transform
        row, col = self.window.row, self.window.col
        return (a * col + b * row + c, a, b, d * col + e * row + f, d, e)

    def save(self, folder: Path) -> None:
        """Write the pixels as a PNG."""
        Image.fromarray(self.rgb).save(folder / self.file_name)


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """What a format must know before the first image comes."""

    name: str
    """Of the folder that it will be."""
    classes: tuple[SegmentClass, ...]
    """Those that were asked for."""
    rasters: tuple[RasterInfo, ...]


class ImageWriter(Protocol):
    """A format of annotated images. Called in one thread, with every image once, and ``finish`` at the end."""

    def add(self, image: TiledImage) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None:
        """Close all files, finished or not."""
        ...


OpenWriter = Callable[[Path, ImageDataset], ImageWriter]
"""Starts to write a format into an empty folder."""


def export_images(
    out: str, open_writer: OpenWriter, output: Path, names: Sequence[str], tile: int | None, say: Say
) -> list[str]:
    """Write the rasters of a finished run as annotated images; returns what was written.

    Args:
        output: a new folder, or a new ``.zip``.
        names: of the classes to keep; none for all.
        tile: largest side of an image, pixels.

    Raises:
        JobError: exit 2 where OUT holds no rasters, a photograph is gone or has changed, or ``output`` is there.
    """
    side = DEFAULT_SIDE if tile is None else tile
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise invalid(f"--tile is {SMALLEST_SIDE} to {LARGEST_SIDE} for image formats, got {side}.")
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        run = open_run(out, Path(folder))
        infos = _rasters(run, out, say)
        wanted = tuple(c for c in run.classes if not names or c.name in names)
        name = output.stem if is_packed(output) else output.name
        dataset = ImageDataset(name, wanted, infos)
        with (
            _errors(output),
            new_folder(output) as whole,
            contextlib.closing(open_writer(whole, dataset)) as writer,
        ):
            _write(writer, _Cutter(run, side, frozenset(c.class_id for c in wanted), say), infos, out)
    return [str(output)]


def _write(writer: ImageWriter, cutter: _Cutter, infos: Sequence[RasterInfo], out: str) -> None:
    number = 0
    for info in infos:
        for image in cutter.images(info, number + 1):
            writer.add(image)
            number = image.number
    if number == 0:
        raise invalid(f"No raster of {out} has a pixel with input: there is nothing to export.")
    writer.finish()


def _rasters(run: FinishedRun, out: str, say: Say) -> tuple[RasterInfo, ...]:
    """The rasters with labels, in the order of their keys; says what is left out."""
    if not run.rasters:
        raise invalid(
            f"{out} holds only videos: export them as coco-panoptic-video or ytvis; this format is for images."
        )
    if run.videos:
        say(f"{len(run.videos)} videos are left out: export them as coco-panoptic-video or ytvis.")
    plans: list[RasterPlan] = sorted(run.rasters, key=lambda p: p.key)
    labelled = tuple(p.info for p in plans if all(run.store.exists(k) for k in _label_keys(p.info)))
    if not labelled:
        raise invalid(f"{out} holds no label rasters (rasters/*/*.segments.tif): run segment with --raster.")
    if len(labelled) < len(plans):
        say(f"{len(plans) - len(labelled)} rasters without label rasters are left out.")
    return labelled


def _label_keys(info: RasterInfo) -> tuple[str, str]:
    """Keys of segments.tif and classes.tif."""
    stem = f"rasters/{info.key}/{info.stem}"
    return f"{stem}.segments.tif", f"{stem}.classes.tif"


@contextlib.contextmanager
def _errors(output: Path) -> Iterator[None]:
    """Whatever cannot be read or written becomes one sentence with its exit code."""
    try:
        yield
    except (InputError, RasterReadError) as e:
        raise invalid(str(e)) from e
    except OSError as e:
        raise cannot_write(str(output), e) from e


class _Cutter:
    """Cuts the published labels and the photographs into images."""

    def __init__(self, run: FinishedRun, side: int, class_ids: frozenset[int], say: Say) -> None:
        self._run, self._side, self._say = run, side, say
        self._plans = {plan.key: plan for plan in run.rasters}
        self._wanted = np.zeros(len(run.classes) + 1, np.bool_)
        self._wanted[list(class_ids)] = True

    def images(self, info: RasterInfo, first: int) -> Iterator[TiledImage]:
        """The images of one raster, numbered from ``first``, row by row."""
        gone = "Image formats need its pixels: put it back, or export a format without images, such as gpkg."
        check_segmented(self._run.store, self._plans[info.key], if_gone=gone)
        numbers = itertools.count(first)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="panoptile-")))
            segments, classes = (str(self._run.store.local_copy(k, folder)) for k in _label_keys(info))
            scores = self._scores(info, folder)
            photo = open_source(info)
            stack.callback(photo.close)
            ids_file = stack.enter_context(open_raster(segments))
            class_file = stack.enter_context(open_raster(classes))
            unread = 0
            for window in _windows(info, self._side):
                ids = read_window(ids_file, segments, window, [1])[0].astype(np.int64)
                if (ids == NODATA_ID).all():
                    continue
                rgb = _photograph(photo, window, whole=not (ids == NODATA_ID).any())
                if rgb is None:
                    unread += 1
                    continue
                class_ids = read_window(class_file, classes, window, [1])[0]
                labels, found = _numbered(ids, class_ids, self._wanted)
                parts, runs = _parts(labels, found, self._run.classes, scores)
                yield TiledImage(next(numbers), info, window, rgb, labels, runs, parts)
        if unread:
            self._say(
                f"{unread} images of {info.stem} are left out: the photograph cannot be read there, nor could the run."
            )

    def _scores(self, info: RasterInfo, folder: Path) -> NDArray[np.float32] | None:
        """Scores by segment id; None where the run wrote no table."""
        key = f"segments/{info.key}.parquet"
        if not self._run.store.exists(key):
            return None
        scores = np.zeros(1, np.float32)
        for batch in read_batches(self._run.store.local_copy(key, folder), ["segment_id", "score"]):
            ids = batch.column("segment_id").to_numpy()
            if len(ids) and ids.max() >= len(scores):
                scores = np.pad(scores, (0, max(int(ids.max()) + 1, 2 * len(scores)) - len(scores)))
            scores[ids] = batch.column("score").to_numpy()
        return scores


def _windows(info: RasterInfo, side: int) -> Iterator[Window]:
    for row in range(0, info.height, side):
        for col in range(0, info.width, side):
            yield Window.span(row, col, min(row + side, info.height), min(col + side, info.width))


def _photograph(
    photo: RasterSource | MosaicSource, window: Window, *, whole: bool
) -> NDArray[np.uint8] | None:
    """(H, W, 3) pixels; None where they cannot be read and the run had no input there either (not ``whole``)."""
    try:
        pixels = photo.read(window).pixels
    except RasterReadError:
        if whole:
            raise
        return None
    bands = pixels[:3] if len(pixels) >= 3 else np.broadcast_to(pixels[0], (3, *window.shape))
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def _numbered(
    ids: NDArray[np.int64], class_ids: NDArray[np.generic], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """(labels 0…n in the order of segment ids, (segment id, class id) of each) for the wanted classes."""
    kept = np.where(ids == NODATA_ID, 0, ids)
    present, first, index = np.unique(kept, return_index=True, return_inverse=True)
    of = class_ids.ravel()[first].astype(np.int64)
    keep = (present > 0) & wanted[np.where(present > 0, of, 0)]
    numbers = np.where(keep, np.cumsum(keep), 0)
    if numbers.max() > MOST_IDS:
        raise invalid(f"An image holds {numbers.max():,} segments, at most {MOST_IDS:,} fit: lower --tile.")
    found = list(zip(present[keep].tolist(), of[keep].tolist(), strict=True))
    return numbers[index].reshape(ids.shape), found


def _parts(
    labels: NDArray[np.int64],
    found: Sequence[tuple[int, int]],
    classes: ClassTable,
    scores: NDArray[np.float32] | None,
) -> tuple[tuple[Part, ...], LabelRuns]:
    runs = LabelRuns.of(labels)
    areas = runs.areas(len(found))
    coded = coded_labels(labels, runs, len(found))
    parts = []
    for number, (segment_id, class_id) in enumerate(found, start=1):
        x, y, width, height = coded.boxes_xywh[number].tolist()
        score = None if scores is None else round(float(scores[segment_id]), 6)
        parts.append(
            Part(
                number, segment_id, classes[class_id - 1], score,
                int(areas[number]), (x, y, width, height), coded.texts[number],
            )
        )  # fmt: skip
    return tuple(parts), runs
