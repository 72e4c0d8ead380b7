"""From what a user names to sources that windows are drawn from, with a hold-out and a report on the labels."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from panoptile.model.classes import ClassTable
from panoptile.pipeline.inputs import RASTER_ENDINGS, InputError, find_inputs, shown
from panoptile.pipeline.label_report import LabelReport
from panoptile.pipeline.labelled_scene import MAX_CLASSES, LabelledSource, PixelWindow
from panoptile.pipeline.polygon_file import read_polygon_file
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.training_coco import CocoFile, coco_images, read_coco
from panoptile.pipeline.training_polygons import PolygonChecks, PolygonClasses, to_pixels
from panoptile.pipeline.training_rasters import (
    LabelledRaster,
    RasterLabels,
    check_label_raster,
    count_values,
    raster_report,
)
from panoptile.pipeline.training_spec import ClassSpec, DataSpec, SourceSpec, ValidationSpec
from panoptile.pipeline.training_split import (
    ValidationWindow,
    block_windows,
    training_part,
    validation_windows,
)

DEFAULT_CLASS = "object"
"""Name of the one class of labels that name none."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Ready to draw windows from."""

    sources: tuple[LabelledSource, ...]
    weights: tuple[float, ...]
    validation: tuple[ValidationWindow, ...]
    held_out: bool
    """False: nothing was held out, and ``validation`` shows training images."""
    classes: ClassTable
    gsd_m: float | None
    report: LabelReport
    files: tuple[tuple[str, int, int], ...]
    """(path, bytes, mtime in ns) of every file, for telling whether the data changed."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One image of the data, before the hold-out."""

    source: LabelledSource
    weight: float
    info: RasterInfo | None
    """Of a raster; None for a COCO image."""


@dataclass(slots=True)
class _Loaded:
    parts: list[_Part] = field(default_factory=list)
    report: LabelReport = field(default_factory=LabelReport)
    files: list[str] = field(default_factory=list)


def open_training_data(spec: DataSpec, *, extent: int, channels: int = 3, seed: int = 0) -> TrainingData:
    """Open and check everything; ``extent`` is what a window shows at the middle scale, in pixels.

    Raises InputError where the data cannot be used, above all if no label can.
    """
    coco = {s.coco: read_coco(s.coco) for s in spec.sources if s.coco is not None}
    classes = _class_specs(spec, coco)
    loaded = _Loaded()
    for source in spec.sources:
        if source.coco is not None:
            _load_coco(loaded, source, coco[source.coco], classes)
        else:
            _load_rasters(loaded, source, spec, classes, channels)
    if loaded.report.used == 0 or not loaded.parts:
        raise InputError(
            "No label can be used: " + "; ".join(loaded.report.lines()[1:] or ["there is none"]) + "."
        )
    parts, validation, held_out = _split(loaded.parts, spec.validation, extent, seed)
    table = ClassTable.from_names(
        [c.name for c in classes],
        {i for i, c in enumerate(classes) if c.thing},
        None if any(c.color is None for c in classes) else [str(c.color) for c in classes],
    )
    sizes = [p.info.transform[0] for p in loaded.parts if p.info is not None and p.info.georeferenced]
    return TrainingData(
        tuple(p.source for p in parts),
        tuple(p.weight for p in parts),
        tuple(validation),
        held_out,
        table,
        spec.gsd or _gsd(loaded.parts) if sizes else spec.gsd,
        loaded.report,
        tuple(_file_states(loaded.files)),
    )


# --- classes -----------------------------------------------------------------------------------------------------


def _class_specs(spec: DataSpec, coco: dict[str, CocoFile]) -> tuple[ClassSpec, ...]:
    """The classes in label order: those of the data file, else those that the labels name."""
    if spec.classes:
        classes: tuple[ClassSpec, ...] = spec.classes
    else:
        found: dict[str, bool] = {}
        for source in spec.sources:
            for name, is_thing in _named_classes(source, spec, coco):
                found.setdefault(name, is_thing and name not in spec.stuff)
        unknown = [name for name in spec.stuff if name not in found]
        if unknown:
            raise InputError(
                f"No label is of the class {unknown[0]!r} (there are {', '.join(sorted(found))})."
            )
        classes = tuple(ClassSpec(name=name, thing=thing) for name, thing in found.items())
    if not classes or len(classes) >= MAX_CLASSES:
        raise InputError(f"A training needs 1 to {MAX_CLASSES - 1} classes, the labels name {len(classes)}.")
    return classes


def _named_classes(
    source: SourceSpec, spec: DataSpec, coco: dict[str, CocoFile]
) -> Iterable[tuple[str, bool]]:
    if source.coco is not None:
        return [(c.name, c.is_thing) for c in coco[source.coco].classes]
    if source.label_classes is not None:
        values: set[int] = set()
        for path in _label_paths(source.label_classes):
            values |= set(count_values(path)) - {0}
        if values and max(values) > 254:
            raise InputError(
                f"{shown(source.label_classes)} holds the class value {max(values)}: name the classes in a data file."
            )
        with_ids = source.labels is not None
        return [(f"class {value}", with_ids) for value in range(1, max(values, default=0) + 1)]
    if source.class_column is not None:
        assert source.labels is not None
        names: set[str] = set()
        for path in _label_paths(source.labels):
            names |= {v for v in read_polygon_file(path, class_column=source.class_column).classes or () if v}
        return [(name, True) for name in sorted(names - set(spec.ignore))]
    return [(source.class_name or DEFAULT_CLASS, True)]


# --- sources -----------------------------------------------------------------------------------------------------


def _load_coco(loaded: _Loaded, source: SourceSpec, file: CocoFile, classes: tuple[ClassSpec, ...]) -> None:
    assert source.coco is not None
    label_of_name = {c.name: i for i, c in enumerate(classes)}
    labels = {c.category_id: label_of_name[c.name] for c in file.classes if c.name in label_of_name}
    masks = Path(source.masks) if source.masks else Path(source.coco).with_suffix("")
    images, report = coco_images(file, label_of_category=labels, images=Path(source.images), masks=masks)
    loaded.report.include(report)
    loaded.files.append(source.coco)
    loaded.parts += [_Part(image, source.weight, None) for image in images]


def _load_rasters(
    loaded: _Loaded, source: SourceSpec, spec: DataSpec, classes: tuple[ClassSpec, ...], channels: int
) -> None:
    paths = find_inputs([source.images])
    infos = [inspect_raster(path, gsd=spec.gsd, channels=channels) for path in paths]
    loaded.files += paths
    if source.labels is not None and not _is_raster(source.labels):
        _load_polygons(loaded, source, spec, classes, infos)
        return
    things = frozenset(i for i, c in enumerate(classes) if c.thing)
    for info in infos:
        ids = _partner(source.labels, info, len(infos))
        values = _partner(source.label_classes, info, len(infos))
        meaning = {i + 1: i for i in range(len(classes))}
        if values is None:
            meaning = {1: _only_class(source, classes)}
        labels = RasterLabels(ids, values, meaning, things, source.unlabelled, info)
        for path in (ids, values):
            if path is not None:
                check_label_raster(path, info)
                loaded.files.append(path)
        objects = None if ids is None else len([v for v in count_values(ids) if v > 0])
        counts = None if values is None else count_values(values)
        loaded.report.include(raster_report(labels, class_values=counts, objects=objects))
        loaded.parts.append(_raster_part(info, labels, source))


def _load_polygons(
    loaded: _Loaded,
    source: SourceSpec,
    spec: DataSpec,
    classes: tuple[ClassSpec, ...],
    infos: list[RasterInfo],
) -> None:
    assert source.labels is not None
    if source.label_classes is not None:
        raise InputError(
            "label_classes is a raster of class values; polygons name their class with class_column."
        )
    meaning = PolygonClasses(
        {c.name: i for i, c in enumerate(classes)},
        frozenset(i for i, c in enumerate(classes) if c.thing),
        frozenset(spec.ignore),
        classes[_only_class(source, classes)].name,
    )
    for path in _label_paths(source.labels):
        file = read_polygon_file(path, class_column=source.class_column)
        checks = PolygonChecks(file, meaning)
        loaded.files.append(path)
        if file.crs is None and any(info.crs_wkt for info in infos):
            checks.report.notes.append(
                f"{shown(path)} has no CRS: its coordinates are taken as the raster's own."
            )
        for info in infos:
            labels = checks.on_raster(info, unlabelled=source.unlabelled)
            if len(labels.polygons):
                loaded.parts.append(_raster_part(info, labels, source))
        loaded.report.include(checks.finish())


def _only_class(source: SourceSpec, classes: tuple[ClassSpec, ...]) -> int:
    """The label id of objects whose class no column and no raster tells."""
    names = [c.name for c in classes]
    if source.class_name is not None and source.class_name not in names:
        raise InputError(f"class_name {source.class_name!r} is not among the classes ({', '.join(names)}).")
    return 0 if source.class_name is None else names.index(source.class_name)


def _raster_part(info: RasterInfo, labels: Any, source: SourceSpec) -> _Part:
    share = math.sqrt(info.height * info.width)  # between equal shares and shares by area
    return _Part(LabelledRaster(info, labels, None), source.weight * share, info)


def _is_raster(path: str) -> bool:
    first = next(iter(_label_paths(path)))
    return Path(first).suffix.lower() in RASTER_ENDINGS


def _label_paths(path: str) -> list[str]:
    """The file itself, or the files of a folder, sorted."""
    if not os.path.exists(path):
        raise InputError(f"There are no labels at {shown(path)}.")
    if not os.path.isdir(path):
        return [path]
    found = sorted(str(p) for p in Path(path).iterdir() if p.is_file() and not p.name.startswith("."))
    if not found:
        raise InputError(f"The folder {shown(path)} holds no label file.")
    return found


def _partner(labels: str | None, image: RasterInfo, images: int) -> str | None:
    """The label raster of an image: the file itself, or the file of the same name in a folder."""
    if labels is None:
        return None
    if not os.path.isdir(labels):
        if images > 1:
            raise InputError(
                f"{images} images cannot share the label raster {shown(labels)}: name a folder with a file for each."
            )
        return labels
    stem = Path(image.uri).stem
    found = [path for path in _label_paths(labels) if Path(path).stem == stem]
    if len(found) != 1:
        raise InputError(
            f"{shown(labels)} holds {len(found)} label rasters called {stem!r} for {shown(image.uri)}: one is needed."
        )
    return found[0]


def _gsd(parts: list[_Part]) -> float | None:
    """The middle pixel size of the rasters in metres; None for angles."""
    from panoptile.pipeline.ground_area import pixel_area_m2

    areas = [area for p in parts if p.info is not None and (area := pixel_area_m2(p.info)) is not None]
    return math.sqrt(float(np.median(areas))) if areas else None


def _file_states(paths: list[str]) -> Iterable[tuple[str, int, int]]:
    for path in sorted(set(paths)):
        status = os.stat(path)
        yield os.path.abspath(path), status.st_size, status.st_mtime_ns


# --- hold-out ----------------------------------------------------------------------------------------------------


def _split(
    parts: list[_Part], spec: ValidationSpec, extent: int, seed: int
) -> tuple[list[_Part], list[ValidationWindow], bool]:
    """Training parts, validation windows, and whether anything was held out."""
    held = _held_out(parts, spec, extent, seed)
    validation: list[ValidationWindow] = []
    kept: list[_Part] = []
    for part, windows in zip(parts, held, strict=True):
        validation += validation_windows(part.source, windows, extent=extent)
        rest = training_part(part.source, windows, guard=spec.guard)
        if rest is not None:
            kept.append(_Part(rest, part.weight, part.info))
    if not kept:
        raise InputError("The hold-out leaves nothing to train on: make it smaller.")
    if validation:
        return kept, validation, True
    if spec.area is not None:
        raise InputError("The validation area does not meet any image: check its coordinates and their CRS.")
    for part in parts:
        validation += validation_windows(part.source, [(0, 0, *part.source.shape)], extent=extent)
    return kept, validation, False


def _held_out(
    parts: list[_Part], spec: ValidationSpec, extent: int, seed: int
) -> list[tuple[PixelWindow, ...]]:
    if spec.area is not None:
        return [() if p.info is None else _area_windows(p.info, spec.area) for p in parts]
    images = [i for i, p in enumerate(parts) if p.info is None]
    wanted = round(spec.fraction * len(images)) if len(images) > 1 else 0
    if spec.fraction > 0 and len(images) > 1:
        wanted = min(max(1, wanted), len(images) - 1)
    chosen = set(np.random.default_rng((seed, len(images))).permutation(len(images))[:wanted].tolist())
    whole = {images[k] for k in chosen}
    block = spec.block or extent
    return [
        ((0, 0, *p.source.shape),)
        if i in whole
        else ()
        if p.info is None
        else block_windows(p.source.shape, block=block, fraction=spec.fraction, seed=seed + i)
        for i, p in enumerate(parts)
    ]


def _area_windows(info: RasterInfo, area: tuple[float, float, float, float] | str) -> tuple[PixelWindow, ...]:
    """Bounding boxes of the area's polygons in pixels, clipped to the raster."""
    if isinstance(area, str):
        file = read_polygon_file(area, class_column=None)
        shapes, crs = [s for s in file.geometries if s is not None and not s.is_empty], file.crs
    else:
        shapes, crs = [shapely.box(*area)], None
    polygons = [p for shape in shapes for p in shapely.get_parts(shape)]
    if not polygons:
        raise InputError("The validation area holds no polygon.")
    frame = shapely.box(0, 0, info.width, info.height)
    found = []
    for polygon in to_pixels(polygons, crs, info):
        clipped = shapely.intersection(shapely.envelope(polygon), frame)
        if clipped.area > 0:
            left, top, right, bottom = clipped.bounds
            row, col = math.floor(top), math.floor(left)
            found.append((row, col, math.ceil(bottom) - row, math.ceil(right) - col))
    return tuple(found)
