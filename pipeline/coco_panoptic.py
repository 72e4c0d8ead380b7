"""A folder in COCO's panoptic format: one JSON, and a PNG for each image whose colours are segment ids.

Every id in a PNG must be in the JSON and the other way round; what differs is refused rather than guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoptile.pipeline.contingency import VOID
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.label_source import ArrayLabels
from panoptile.pipeline.overlaps import UNSCORED, SegmentLabels
from panoptile.pipeline.raster_file import Limits, check_file, open_raster, read_window
from panoptile.pipeline.window import Window

MAX_PIXELS = 1 << 28
"""A PNG is decoded whole; a larger one is refused."""


@dataclass(frozen=True, slots=True)
class Category:
    """A class of the document."""

    value: int
    """``category_id``."""
    name: str
    is_thing: bool


@dataclass(frozen=True, slots=True)
class CocoPanoptic:
    """A document and the folder with its PNGs."""

    path: Path
    """The JSON."""
    folder: Path
    categories: tuple[Category, ...]
    annotations: Mapping[str, dict[str, Any]]
    """By stem of the PNG."""

    def source(self, stem: str, class_ids: Mapping[int, int], *, unlabelled: int = VOID) -> ArrayLabels:
        """The labels of one image, ``class_ids`` giving the scored class id of each category.

        ``unlabelled`` is the label of black pixels.

        Raises InputError for a missing or broken PNG, and where PNG and JSON name different segments.
        """
        annotation = self.annotations[stem]
        path = str(self.folder / f"{stem}.png")
        check_file(path, Limits(pixels=MAX_PIXELS))
        with open_raster(path) as dataset:
            if dataset.count < 3 or dataset.dtypes[0] != "uint8":
                raise InputError(
                    f"{shown(path)} is no picture of three 8-bit bands, as COCO's panoptic format has."
                )
            whole = Window(0, 0, dataset.height, dataset.width)
            red, green, blue = read_window(dataset, path, whole, [1, 2, 3]).astype(np.int64)
        labels = red + (green << 8) + (blue << 16)
        try:
            infos = [
                (int(s["id"]), int(s["category_id"]), bool(s.get("iscrowd", 0)))
                for s in annotation["segments_info"]
            ]
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f"{shown(str(self.path))}: the segments of {stem} cannot be read: {e!r}.") from e
        self._check_ids(stem, {i for i, _, _ in infos}, labels)
        table = SegmentLabels.of(
            np.array([i for i, _, _ in infos], np.int64),
            np.array([class_ids.get(c, UNSCORED) for _, c, _ in infos], np.int64),
            crowd=np.array([crowd for _, _, crowd in infos], np.bool_),
            scores=np.array([float(s.get("score", 1.0)) for s in annotation["segments_info"]]),
        )
        if unlabelled != VOID:
            labels[labels == 0] = unlabelled
        return ArrayLabels(labels, table)

    def _check_ids(self, stem: str, listed: set[int], labels: np.ndarray) -> None:
        drawn = set(np.unique(labels).tolist()) - {0}
        if drawn != listed:
            only = f"the PNG alone {sorted(drawn - listed)[:3]}, the JSON alone {sorted(listed - drawn)[:3]}"
            raise InputError(f"{shown(str(self.path))}: {stem}.png and its segments_info differ: {only}.")


def is_coco_panoptic(path: str) -> bool:
    """``path`` is such a JSON, or a folder with one at its top or in its ``annotations/``."""
    return _document_of(Path(path)) is not None


def read_coco_panoptic(path: str) -> CocoPanoptic:
    """The document at ``path``, a JSON or a folder with one. Raises InputError for anything else."""
    found = _document_of(Path(path))
    if found is None:
        raise InputError(
            f"{shown(path)} holds no COCO panoptic JSON (with annotations that have segments_info)."
        )
    file, document = found
    try:
        annotations = {Path(a["file_name"]).stem: a for a in document["annotations"]}
        categories = tuple(
            Category(int(c["id"]), str(c["name"]), bool(c.get("isthing", 1))) for c in document["categories"]
        )
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(f"{shown(str(file))} is no COCO panoptic document: {e!r}.") from e
    names = [Path(a["file_name"]).name for a in document["annotations"]]
    for folder in (file.with_suffix(""), file.parent / "annotations", file.parent):
        if names and (folder / names[0]).is_file():
            return CocoPanoptic(file, folder, categories, annotations)
    raise InputError(
        f"{shown(str(file))}: its PNGs are neither in {shown(str(file.with_suffix('')))} nor beside it."
    )


def _document_of(path: Path) -> tuple[Path, dict[str, Any]] | None:
    candidates = [path] if path.suffix.lower() == ".json" else []
    if path.is_dir():
        candidates = [*sorted(path.glob("*.json")), *sorted(path.glob("annotations/*.json"))]
    for file in candidates:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        rows = document.get("annotations") if isinstance(document, dict) else None
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "segments_info" in rows[0]:
            return file, document
    return None
