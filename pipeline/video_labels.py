"""Label maps of videos, frame after frame, for evaluation: our own tables, numbered PNGs, YouTube-VIS documents.

Frames are named by their number in the video; only frames that both sides have can be compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from panoptile.pipeline.contingency import BACKGROUND, VOID, Labels
from panoptile.pipeline.image_sequence import natural_order
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.label_source import LabelMeaning, LabelRaster, Unlabelled, code, decode
from panoptile.pipeline.overlaps import UNSCORED, SegmentLabels
from panoptile.pipeline.parquet_read import read_columns
from panoptile.pipeline.video_probe import LIMITS
from panoptile.pipeline.video_tables import read_masks
from panoptile.pipeline.window import Window


class VideoLabels(Protocol):
    """Label maps whose labels are tracks: the same in all frames."""

    def frames(self) -> Iterator[tuple[int, Labels]]:
        """(number of the frame, (H, W) labels), ascending."""
        ...

    def describe(self, labels: Labels) -> SegmentLabels:
        """The class, crowd and score of tracks."""
        ...


class TrackTable:
    """A published ``masks.parquet``; what was filtered out or never claimed is void."""

    def __init__(self, path: Path, class_ids: Mapping[int, int], *, rest: int = VOID) -> None:
        """``class_ids`` gives the scored class of published class ids; ``rest`` is the label of void.

        Raises InputError for a file that is no such table.
        """
        self._path, self._rest = path, rest
        try:
            rows = read_columns(path, ["track_id", "class_id", "score"])
        except (OSError, pa.ArrowException) as e:
            raise InputError(f"{shown(str(path))} is no table of masks: {e}.") from e
        means = rows.group_by("track_id").aggregate([("class_id", "min"), ("score", "mean")])
        ids = means["track_id"].to_numpy()
        self._table = SegmentLabels.of(
            ids.astype(np.int64),
            np.array([class_ids.get(int(c), UNSCORED) for c in means["class_id_min"].to_numpy()], np.int64),
            scores=means["score_mean"].to_numpy(),
        )

    def frames(self) -> Iterator[tuple[int, Labels]]:
        for masks in read_masks(self._path):
            labels = masks.labels().astype(np.int64)
            if self._rest != VOID:
                labels[labels == 0] = self._rest
            yield masks.frame, labels

    def describe(self, labels: Labels) -> SegmentLabels:
        return self._table.take(labels)


class LabelFrames:
    """A folder of numbered label rasters; the first in the natural order of names is frame 0."""

    def __init__(self, folder: str, meaning: LabelMeaning) -> None:
        names = [n for n in os.listdir(folder) if n.lower().endswith((".png", ".tif", ".tiff"))]
        if not names:
            raise InputError(f"{shown(folder)} holds no label rasters: looked for .png .tif .tiff.")
        self._paths = [os.path.join(folder, n) for n in sorted(names, key=natural_order)]
        self._meaning = meaning

    def frames(self) -> Iterator[tuple[int, Labels]]:
        for number, path in enumerate(self._paths):
            raster = LabelRaster(self._meaning, objects=path, classes=None)
            try:
                yield number, raster.read(Window(0, 0, *raster.shape))
            finally:
                raster.close()

    def describe(self, labels: Labels) -> SegmentLabels:
        return decode(labels, self._meaning.things)


@dataclass(frozen=True, slots=True)
class VisVideo:
    """One video of a YouTube-VIS document."""

    name: str
    height: int
    width: int
    numbers: tuple[int, ...]
    """Numbers of its frames: its own field ``frame_numbers``, which our export writes, else 0, 1, 2, …"""
    annotations: tuple[dict[str, Any], ...]


class VisLabels:
    """Tracks of one video of a YouTube-VIS document; of overlapping masks the later one lies on top."""

    def __init__(
        self,
        video: VisVideo,
        class_ids: Mapping[int, int],
        things: frozenset[int],
        *,
        unlabelled: Unlabelled = "background",
    ) -> None:
        self._video, self._class_ids, self._things = video, class_ids, things
        self._rest = BACKGROUND if unlabelled == "background" else VOID

    def frames(self) -> Iterator[tuple[int, Labels]]:
        video = self._video
        for place, frame in enumerate(video.numbers):
            labels = np.full((video.height, video.width), self._rest, np.int64)
            for number, annotation in enumerate(video.annotations, start=1):
                rle = annotation["segmentations"][place]
                class_id = self._class_ids.get(int(annotation["category_id"]), UNSCORED)
                if rle is None or class_id == UNSCORED:
                    continue
                try:
                    inside = _mask(rle, video.height, video.width)
                except (ValueError, KeyError, TypeError, OverflowError) as e:
                    raise InputError(
                        f"The ground truth of {video.name}: the mask of annotation {annotation.get('id', number)} in frame "
                        f"{frame} cannot be used: {e}."
                    ) from e
                crowd = bool(annotation.get("iscrowd", 0)) or class_id not in self._things
                labels[inside] = code(np.array([class_id]), np.array([0 if crowd else number]))[0]
            yield frame, labels

    def describe(self, labels: Labels) -> SegmentLabels:
        return decode(labels, self._things)


def _mask(found: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) of a run-length code, as text or as a list of counts, or of a list of polygons [x, y, x, y, …]."""
    from pycocotools import mask as coco_mask

    if isinstance(found, list):
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in found):
            raise ValueError("a polygon needs an even number of coordinates, at least six")
        codes = coco_mask.frPyObjects(found, height, width) if found else []
        return (
            np.any([coco_mask.decode(c) for c in codes], axis=0) if codes else np.zeros((height, width), bool)
        )
    counts, size = found["counts"], [int(n) for n in found["size"]]
    if size != [height, width]:
        raise ValueError(f"it has {'x'.join(map(str, size))} pixels, the video {height}x{width}")
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"its counts sum to {sum(counts)}, not to {height * width} pixels")
        found = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
    mask: NDArray[np.bool_] = coco_mask.decode(found).astype(np.bool_)
    return mask


@dataclass(frozen=True, slots=True)
class VisDocument:
    """A YouTube-VIS document."""

    categories: tuple[tuple[int, str], ...]
    videos: Mapping[str, VisVideo]
    """By name: the folder of the video's frames."""


def is_vis_document(path: str) -> bool:
    """``path`` is a JSON with videos."""
    if not path.lower().endswith(".json") or not os.path.isfile(path):
        return False
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "videos" in document and "annotations" in document


def read_vis_document(path: str) -> VisDocument:
    """Raises InputError for a document that cannot be used."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        by_video: dict[int, list[dict[str, Any]]] = {int(v["id"]): [] for v in document["videos"]}
        for annotation in document["annotations"]:
            by_video[int(annotation["video_id"])].append(annotation)
        videos = {}
        for v in document["videos"]:
            names = v["file_names"]
            if any(len(a["segmentations"]) != len(names) for a in by_video[int(v["id"])]):
                raise ValueError(f"video {v['id']} has {len(names)} frames, but not all of its tracks have")
            name = os.path.dirname(names[0]) or str(v["id"])
            numbers = tuple(int(n) for n in v.get("frame_numbers", range(len(names))))
            if len(numbers) != len(names) or sorted(set(numbers)) != list(numbers):
                raise ValueError(f"video {v['id']}: frame_numbers must ascend, one for each of its frames")
            height, width = int(v["height"]), int(v["width"])
            if not 0 < height * width <= LIMITS.pixels or min(height, width) < 1:
                raise ValueError(f"video {v['id']} has frames of {height}x{width} pixels")
            videos[name] = VisVideo(name, height, width, numbers, tuple(by_video[int(v["id"])]))
        named = {int(c["id"]) for c in document["categories"]}
        unnamed = sorted({int(a["category_id"]) for a in document["annotations"]} - named)
        if unnamed:
            raise ValueError(f"it names no category {unnamed[0]}, which an annotation has")
        return VisDocument(tuple((int(c["id"]), str(c["name"])) for c in document["categories"]), videos)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as e:
        raise InputError(f"{shown(path)} is no YouTube-VIS document: {type(e).__name__} {e}.") from e
