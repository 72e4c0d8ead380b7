"""What ``eval --gt`` names: a finished run, a COCO panoptic folder, label rasters, polygons, or labelled videos."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import FinishedRun, counterpart, is_run, open_run, stem_of
from panoptile.jobs.truth_classes import MatchedClasses, NamedClass
from panoptile.model.classes import ClassTable
from panoptile.pipeline.coco_panoptic import CocoPanoptic, is_coco_panoptic, read_coco_panoptic
from panoptile.pipeline.contingency import BACKGROUND, VOID
from panoptile.pipeline.inputs import sanitised
from panoptile.pipeline.label_source import LabelMeaning, LabelRaster, LabelSource, Unlabelled
from panoptile.pipeline.polygon_file import POLYGON_ENDINGS, PolygonFile, read_polygon_file
from panoptile.pipeline.polygon_truth import PolygonTruth
from panoptile.pipeline.raster_file import open_raster
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.video_labels import (
    LabelFrames,
    TrackTable,
    VideoLabels,
    VisDocument,
    VisLabels,
    is_vis_document,
    read_vis_document,
)

RASTER_ENDINGS = (".tif", ".tiff", ".png", ".jp2")
_FLAGS = {
    "class_name": "--class",
    "class_column": "--class-column",
    "gt_classes": "--gt-classes",
    "labels": "--labels",
    "divisor": "--divisor",
    "ignored": "--ignore",
}
_SAME_PLACE = 0.01
"""Pixels by which two grids may lie apart and count as one."""


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """What the user said of the ground truth."""

    gt: str
    class_name: str | None = None
    class_column: str | None = None
    gt_classes: str | None = None
    labels: str | None = None
    divisor: int | None = None
    ignored: tuple[str, ...] = ()
    unlabelled: Unlabelled | None = None
    """None: as the form of the ground truth has it, void in COCO panoptic and background elsewhere."""

    @property
    def rest(self) -> Unlabelled:
        return self.unlabelled or "background"


class GroundTruth(Protocol):
    """A ground truth of rasters, images or videos, named by stem."""

    @property
    def classes(self) -> tuple[NamedClass, ...]: ...

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        """Labels on the grid of a raster; None where there are none for it."""
        ...

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        """Labels of the video of this key; ``alone`` where it is the only one, so that its name need not agree."""
        ...


def open_truth(options: TruthOptions, scratch: Path, *, video: bool) -> GroundTruth:
    """Find out what ``options.gt`` is. Raises ``JobError`` or InputError, both exit 2."""
    gt = options.gt
    if is_run(gt):
        _refuse(options, "a finished run", *_FLAGS)
        return RunTruth(open_run(gt, scratch), options.rest)
    if "://" in gt:
        raise invalid(f"{gt} is no finished run: copy other ground truth to local files first.")
    if not os.path.exists(gt):
        raise invalid(f"The ground truth {gt} does not exist: check the path.")
    if is_coco_panoptic(gt):
        _refuse(options, "COCO panoptic", *_FLAGS)
        return CocoTruth(read_coco_panoptic(gt), options.unlabelled or "void")
    if is_vis_document(gt):
        _refuse(options, "YouTube-VIS", *_FLAGS)
        return VisTruth(read_vis_document(gt), options.rest)
    if video:
        return _video_truth(options)
    files = _label_files(gt)
    if Path(next(iter(files.values()))).suffix.lower() in POLYGON_ENDINGS:
        _refuse(options, "polygons", "gt_classes", "labels", "divisor")
        return PolygonFiles(options, files)
    _refuse(options, "label rasters", "class_column")
    return RasterFiles(options, files)


def _video_truth(options: TruthOptions) -> GroundTruth:
    _refuse(options, "video labels", "class_column", "gt_classes")
    if options.gt.lower().endswith(".parquet"):
        _refuse(options, "a table of masks", "class_name", "divisor", "ignored")
        if options.labels is None:
            raise invalid("A table of masks needs --labels, the classes.json of the run that wrote it.")
        return MaskTable(Path(options.gt), _class_table(options.labels), options.rest)
    if not os.path.isdir(options.gt):
        raise invalid(
            f"{options.gt} is no ground truth of a video: a folder of label rasters, masks.parquet or JSON."
        )
    return FrameFolder(options)


def _refuse(options: TruthOptions, kind: str, *names: str) -> None:
    """No option is silently ignored."""
    for name in names:
        if getattr(options, name):
            raise invalid(f"{_FLAGS[name]} means nothing for {options.gt}, which is {kind}: leave it out.")


def _label_files(gt: str) -> dict[str, str]:
    """Paths by stem; one entry without stem for a file that is for every input."""
    if os.path.isfile(gt):
        return {"": gt}
    names = sorted(n for n in os.listdir(gt) if n.lower().endswith((*RASTER_ENDINGS, *POLYGON_ENDINGS)))
    if not names:
        raise invalid(
            f"{gt} holds no ground truth: looked for {' '.join((*RASTER_ENDINGS, *POLYGON_ENDINGS))}."
        )
    return {sanitised(Path(n).stem): os.path.join(gt, n) for n in names}


def _class_table(path: str) -> ClassTable:
    try:
        return ClassTable.from_file(path)
    except ValueError as e:
        raise invalid(str(e)) from e


def _rest(unlabelled: Unlabelled) -> int:
    return BACKGROUND if unlabelled == "background" else VOID


def _of_table(table: ClassTable) -> tuple[NamedClass, ...]:
    return tuple(NamedClass(c.name, c.is_thing) for c in table)


def _by_value(table: ClassTable, matched: MatchedClasses) -> dict[int, int]:
    return {c.class_id: matched.truth[c.name] for c in table}


@dataclass(frozen=True, slots=True)
class RunTruth:
    """Another run, or the same one."""

    run: FinishedRun
    unlabelled: Unlabelled

    @property
    def classes(self) -> tuple[NamedClass, ...]:
        return _of_table(self.run.classes)

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        plans = {plan.key: plan for plan in self.run.rasters}
        key = counterpart(info.key, [info.key], list(plans))
        ids, rest = _by_value(self.run.classes, matched), _rest(self.unlabelled)
        return None if key is None else self.run.raster(plans[key].info, ids, unclaimed=rest)

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        videos = self.run.videos
        own = videos[0] if alone and len(videos) == 1 else counterpart(key, [key], videos)
        ids = _by_value(self.run.classes, matched)
        return None if own is None else self.run.video(own, ids, rest=_rest(self.unlabelled))


@dataclass(frozen=True, slots=True)
class CocoTruth:
    """COCO panoptic."""

    coco: CocoPanoptic
    unlabelled: Unlabelled

    @property
    def classes(self) -> tuple[NamedClass, ...]:
        return tuple(NamedClass(c.name, c.is_thing) for c in self.coco.categories)

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        names = {sanitised(stem): stem for stem in self.coco.annotations}
        if info.stem not in names:
            return None
        return self.image(names[info.stem], matched)

    def image(self, stem: str, matched: MatchedClasses) -> LabelSource:
        ids = {c.value: matched.truth[c.name] for c in self.coco.categories}
        return self.coco.source(stem, ids, unlabelled=_rest(self.unlabelled))

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        raise invalid(
            "COCO panoptic is ground truth of images; a video wants label rasters, masks.parquet or YouTube-VIS."
        )


class PolygonFiles:
    """GeoJSON, GeoParquet or GeoPackage: one file for all rasters, or one for each, named like it."""

    def __init__(self, options: TruthOptions, files: dict[str, str]) -> None:
        self._options = options
        self._files = {k: read_polygon_file(p, class_column=options.class_column) for k, p in files.items()}
        if (options.class_column is None) == (options.class_name is None):
            raise invalid(
                "Say what the polygons are: --class NAME where all are of one class, or --class-column COLUMN."
            )
        if options.class_column is None:
            _refuse(options, "polygons without a class column", "ignored")
        names = {v for f in self._files.values() for v in f.classes or () if v is not None}
        names -= set(options.ignored)
        self.classes = tuple(
            NamedClass(n) for n in (sorted(names) if options.class_column else [options.class_name or ""])
        )
        if not self.classes:
            raise invalid(f"The column {options.class_column!r} of {options.gt} names no class.")

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        file: PolygonFile | None = self._files.get(info.stem, self._files.get(""))
        if file is None:
            return None
        class_ids: dict[str | None, int] = dict(matched.truth.items())
        if self._options.class_column is None:
            class_ids[None] = matched.truth[self.classes[0].name]
        ignored, unlabelled = frozenset(self._options.ignored), self._options.rest
        return PolygonTruth(file, info, class_ids, matched.things, ignored=ignored, unlabelled=unlabelled)

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        raise invalid("Polygons are ground truth of rasters, not of videos.")


class RasterFiles:
    """Label rasters on the grid of the inputs."""

    def __init__(self, options: TruthOptions, files: dict[str, str]) -> None:
        self._options, self._files = options, files
        first = options.gt_classes or next(iter(files.values()))
        self._table = _table_of_values(options, first if os.path.isfile(first) else None)
        self.classes = _truth_classes(options, self._table)
        if options.gt_classes is not None and len(files) > 1:
            raise invalid("--gt-classes belongs to one raster of objects: evaluate the inputs one by one.")

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        path = self._files.get(info.stem, self._files.get(""))
        if path is None:
            return None
        meaning = _meaning(self._options, self._table, matched)
        only_classes = self._options.class_name is None and self._options.divisor is None
        objects, classes = path, self._options.gt_classes
        source = LabelRaster(meaning, objects=None, classes=path) if only_classes and classes is None else (
            LabelRaster(meaning, objects=objects, classes=classes)
        )  # fmt: skip
        _check_grid(path, info)
        return source

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        raise AssertionError("A ground truth of rasters was asked for a video.")


def _table_of_values(options: TruthOptions, path: str | None) -> ClassTable | None:
    """The classes of a class raster's values: from --labels, else from the raster's own tag."""
    if options.labels is not None:
        if options.class_name is not None:
            raise invalid(
                "--class names the one class of all objects, --labels names several: give one of the two."
            )
        return _class_table(options.labels)
    if options.class_name is not None:
        return None
    if path is not None and path.lower().endswith((".tif", ".tiff")):
        with open_raster(path) as dataset:
            tag = dataset.tags().get("CLASSES")
        if tag:
            rows = json.loads(tag)
            return ClassTable.from_names(
                [r["name"] for r in rows], {i for i, r in enumerate(rows) if r["is_thing"]}
            )
    raise invalid(
        f"Say what the values of {options.gt} are: --class NAME where it holds objects of one class, or --labels TABLE "
        "(the class table whose first row is value 1)."
    )


def _truth_classes(options: TruthOptions, table: ClassTable | None) -> tuple[NamedClass, ...]:
    return (NamedClass(options.class_name or ""),) if table is None else _of_table(table)


def _meaning(options: TruthOptions, table: ClassTable | None, matched: MatchedClasses) -> LabelMeaning:
    try:
        ignored = frozenset(int(v) for v in options.ignored)
    except ValueError as e:
        raise invalid(
            f"--ignore wants values of the label raster, whole numbers, got {options.ignored}."
        ) from e
    if options.divisor is not None and (options.divisor < 2 or table is None):
        raise invalid("--divisor is at least 2 and needs --labels: values are class * divisor + object.")
    class_ids = {} if table is None else _by_value(table, matched)
    single = next(iter(matched.truth.values())) if table is None else None
    return LabelMeaning(class_ids, matched.things, single, options.divisor, ignored, options.rest)


def _check_grid(path: str, info: RasterInfo) -> None:
    """The truth must lie where the raster does; only its georeferencing, if it has any, can tell."""
    with open_raster(path) as dataset:
        shape, own = (dataset.height, dataset.width), tuple(dataset.transform)[:6]
    if shape != (info.height, info.width):
        raise invalid(
            f"{path} has {shape[0]}x{shape[1]} pixels (rows x columns), the result {info.height}x{info.width}: "
            "label rasters must lie on the grid of the raster that was segmented."
        )
    if not info.georeferenced or own == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
        return
    a, b, c, d, e, f = info.transform
    pixel = min(math.hypot(a, d), math.hypot(b, e))
    for col, row in ((0, 0), (info.width, info.height)):
        x, y = a * col + b * row + c, d * col + e * row + f
        there = own[0] * col + own[1] * row + own[2], own[3] * col + own[4] * row + own[5]
        if math.hypot(x - there[0], y - there[1]) > _SAME_PLACE * pixel:
            raise invalid(
                f"{path} lies elsewhere than {info.uri}: warp it onto the raster's grid first (gdalwarp)."
            )


@dataclass(frozen=True, slots=True)
class VisTruth:
    """YouTube-VIS: every class is a thing."""

    document: VisDocument
    unlabelled: Unlabelled

    @property
    def classes(self) -> tuple[NamedClass, ...]:
        return tuple(NamedClass(name, True) for _, name in self.document.categories)

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        raise invalid("YouTube-VIS is ground truth of videos, not of rasters.")

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        videos = {sanitised(name): video for name, video in self.document.videos.items()}
        video = (
            videos.get(stem_of(key))
            or videos.get(key)
            or (next(iter(videos.values())) if alone and len(videos) == 1 else None)
        )
        ids = {value: matched.truth[name] for value, name in self.document.categories}
        return None if video is None else VisLabels(video, ids, matched.things, unlabelled=self.unlabelled)


@dataclass(frozen=True, slots=True)
class MaskTable:
    """One ``masks.parquet``."""

    path: Path
    table: ClassTable
    unlabelled: Unlabelled

    @property
    def classes(self) -> tuple[NamedClass, ...]:
        return _of_table(self.table)

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        raise AssertionError("A ground truth of videos was asked for a raster.")

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        ids = _by_value(self.table, matched)
        return TrackTable(self.path, ids, rest=_rest(self.unlabelled)) if alone else None


class FrameFolder:
    """A folder of label rasters in the order of frames, or a folder of such folders named like the videos."""

    def __init__(self, options: TruthOptions) -> None:
        self._options = options
        self._table = _table_of_values(options, None)
        self.classes = _truth_classes(options, self._table)
        if self._table is not None and options.divisor is None:
            raise invalid(
                "Label frames of several classes need --divisor: values are class * divisor + track."
            )

    def raster(self, info: RasterInfo, matched: MatchedClasses) -> LabelSource | None:
        raise AssertionError("A ground truth of videos was asked for a raster.")

    def video(self, key: str, matched: MatchedClasses, *, alone: bool) -> VideoLabels | None:
        own = os.path.join(self._options.gt, stem_of(key))
        folder = own if os.path.isdir(own) else self._options.gt if alone else None
        return None if folder is None else LabelFrames(folder, _meaning(self._options, self._table, matched))
