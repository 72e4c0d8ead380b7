"""What a training learns from, as a user says it: on the command line, or in a strict data file.

A data file is YAML::

    classes:
      - {name: building, thing: true, color: "#e4572e"}
      - {name: road, thing: false}
    ignore: [unclear]                 # class values whose pixels count neither way
    sources:
      - {images: ortho.tif, labels: buildings.parquet, class_column: kind}
      - {images: west.tif, labels: west_ids.tif, label_classes: west_classes.tif, unlabelled: ignore}
      - {coco: panoptic_train.json, images: train/, masks: panoptic_train/, weight: 0.5}
    validation: {area: [85.50, 27.62, 85.53, 27.64]}    # or {fraction: 0.1}

Paths are relative to the file. Tags, anchors and unknown keys are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

import pydantic
import yaml

from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.yaml_error import one_line


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class ClassSpec(_Strict):
    """One class, in label order."""

    name: str
    thing: bool = True
    color: str | None = None


class SourceSpec(_Strict):
    """Images and their labels."""

    images: str
    """A raster, a folder or a pattern of rasters; with ``coco``, the folder of the images."""
    labels: str | None = None
    """Polygons (GeoJSON, GeoParquet, GeoPackage), or a raster of object ids; a folder: files of the images' names."""
    label_classes: str | None = None
    """A raster of class values 1…N in the order of the classes; 0 is unlabelled."""
    coco: str | None = None
    """A COCO annotation file, panoptic or instances."""
    masks: str | None = None
    """Folder of the label images of a panoptic file; default: the file's name without its ending."""
    class_column: str | None = None
    """Column of the polygons' class."""
    class_name: str | None = None
    """The class of all objects, where no column and no class raster tells it; default: the first class."""
    unlabelled: Literal["background", "ignore"] = "background"
    """What a pixel without label is."""
    weight: float = pydantic.Field(default=1.0, gt=0)
    """How often the source is drawn, relative to its share of the pixels (COCO: of the images)."""

    @pydantic.model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.coco is None and self.labels is None and self.label_classes is None:
            raise ValueError("a source needs labels, label_classes or coco")
        if self.class_name and (self.coco or self.class_column or self.label_classes):
            raise ValueError("class_name is for labels that do not tell their class")
        if self.coco is not None and (self.labels or self.label_classes or self.class_column):
            raise ValueError("a COCO source takes images and masks, no other labels")
        if self.coco is None and self.masks is not None:
            raise ValueError("masks belong to a COCO file: name it with coco")
        return self


class ValidationSpec(_Strict):
    """What is held out: an area, or a share of blocks (of images, for COCO)."""

    area: tuple[float, float, float, float] | str | None = None
    """minx, miny, maxx, maxy in the rasters' CRS, or a GeoJSON file (each polygon with its bounding box)."""
    fraction: float = pydantic.Field(default=0.1, ge=0, lt=1)
    """Without an area: share of the blocks; 0 holds nothing out, and training windows judge."""
    block: int | None = pydantic.Field(default=None, gt=0)
    """Side of a block, pixels; default: what a window shows."""
    guard: int = pydantic.Field(default=32, ge=0)
    """Width of the strip around held-out parts that nobody sees, pixels."""


class DataSpec(_Strict):
    """All of a data file."""

    sources: tuple[SourceSpec, ...] = pydantic.Field(min_length=1)
    classes: tuple[ClassSpec, ...] = ()
    """Empty: what the labels name."""
    stuff: tuple[str, ...] = ()
    """Without ``classes``: names of those that are not countable."""
    ignore: tuple[str, ...] = ()
    """Class values of polygons whose pixels are ignored."""
    gsd: float | None = pydantic.Field(default=None, gt=0)
    """Metres per pixel that rasters are brought to; default: their own."""
    validation: ValidationSpec = ValidationSpec()


def read_data_file(path: str) -> DataSpec:
    """Read a data file; its paths become absolute. Raises InputError that names every wrong key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
                raise InputError(
                    f"{shown(path)}, line {token.start_mark.line + 1}: anchors, aliases and tags are not allowed."
                )
        data = yaml.safe_load(text)
        spec = DataSpec.model_validate_json(json.dumps(data))
    except OSError as e:
        raise InputError(f"Cannot read the data file {shown(path)}: {e.strerror}.") from e
    except pydantic.ValidationError as e:
        raise InputError(f"{shown(path)}: {validation_sentence(e)}.") from e
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as e:
        raise InputError(f"{shown(path)} is no YAML data file: {one_line(e)}.") from e
    folder = Path(path).absolute().parent
    return spec.model_copy(
        update={
            "sources": tuple(_beside(folder, source) for source in spec.sources),
            "validation": _area_beside(folder, spec.validation),
        }
    )


def validation_sentence(error: pydantic.ValidationError) -> str:
    """All that is wrong, in one line."""
    return "; ".join(
        ".".join(str(part) for part in e["loc"]) + f": {e['msg'][0].lower()}{e['msg'][1:]}"
        for e in error.errors()
    )


def _beside(folder: Path, source: SourceSpec) -> SourceSpec:
    names = ("images", "labels", "label_classes", "coco", "masks")
    paths = {n: str(folder / value) for n in names if (value := getattr(source, n)) is not None}
    return source.model_copy(update=paths)


def _area_beside(folder: Path, spec: ValidationSpec) -> ValidationSpec:
    if isinstance(spec.area, str):
        return spec.model_copy(update={"area": str(folder / spec.area)})
    return spec
