"""The settings of an image processor and the sizes that follow from them.

Unusual: a size is a dict in one of three forms, as in the public ``preprocessor_config.json`` files, and its older
spellings (a number, a pair, ``max_size``, ``reduce_labels``) are brought into one of them here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

log = logging.getLogger(__name__)

Size = tuple[int, int]

_SIZE_FORMS = (
    {"height", "width"},
    {"shortest_edge", "longest_edge"},
    {"shortest_edge"},
    {"longest_edge"},
    {"max_height", "max_width"},
)
_IGNORED = frozenset(
    [
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "_max_size",
        "max_size",
        "do_pad",
        "do_center_crop",
        "crop_size",
        "data_format",
        "input_data_format",
        "device",
        "return_tensors",
        "disable_grouping",
        "default_to_square",
        "pad_and_return_pixel_mask",
    ]
)
_OLD_NAMES = {"reduce_labels": "do_reduce_labels", "size_divisibility": "size_divisor"}


@dataclass(frozen=True)
class ImageSettings:
    """How images become inputs; the names and defaults are the documented ones."""

    do_convert_rgb: bool | None = None
    """Whether images of one channel get three, and those of four lose their last."""
    do_resize: bool = True
    size: dict[str, int] | None = None
    """``shortest_edge`` and ``longest_edge`` (800 and 1333), ``height`` and ``width``, or ``max_height`` and
    ``max_width``."""
    size_divisor: int = 32
    """Resized height and width are rounded up to a multiple of it; 0 for none."""
    resample: int = 2
    """Pillow's number of the filter: 0 nearest, 2 bilinear, 3 bicubic."""
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    ignore_index: int | None = None
    """Value of label maps that is no object; also the fill of padded masks."""
    do_reduce_labels: bool = False
    """Whether 0 means "nothing" in label maps: it becomes ``ignore_index``, the others go down by one."""
    num_labels: int | None = None
    """Kept for the file; nothing here depends on it."""
    pad_size: dict[str, int] | None = None
    """``height`` and ``width`` of the batch; by default those of its largest image."""

    def __post_init__(self) -> None:
        size = {"shortest_edge": 800, "longest_edge": 1333} if self.size is None else self.size
        object.__setattr__(self, "size", _as_size(size, "size", square=False))
        if self.pad_size is not None:
            object.__setattr__(self, "pad_size", _as_size(self.pad_size, "pad_size", square=True))
            if set(self.pad_size) != {"height", "width"}:
                raise ValueError(f"pad_size needs height and width, got {self.pad_size}.")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            values = (float(value),) if isinstance(value, int | float) else tuple(map(float, value))
            object.__setattr__(self, name, values)
        if self.resample not in (0, 2, 3):
            raise ValueError(
                f"resample must be 0 (nearest), 2 (bilinear) or 3 (bicubic), got {self.resample!r}."
            )
        object.__setattr__(self, "resample", int(self.resample))
        if self.do_reduce_labels and self.ignore_index is None:
            raise ValueError("do_reduce_labels needs an ignore_index, the value of pixels without a label.")

    @classmethod
    def from_keywords(cls, values: Mapping[str, Any]) -> ImageSettings:
        """From the keywords of a processor or the content of its file; unknown ones are ignored and logged.

        ``max_size`` is the old name of the longest edge.
        """
        given = {_OLD_NAMES.get(k, k): v for k, v in values.items()}
        longest = given.get("max_size") or given.get("_max_size")
        size = given.get("size")
        if longest is not None and (size is None or isinstance(size, int)):
            given["size"] = {"shortest_edge": size or 800, "longest_edge": int(longest)}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(given) - known - _IGNORED)
        if unknown:
            log.info(
                "Ignored %d unknown settings of the image processor: %s.", len(unknown), ", ".join(unknown)
            )
        return cls(**{k: v for k, v in given.items() if k in known and v is not None})

    def changed(self, changes: Mapping[str, Any]) -> ImageSettings:
        """With some values replaced, for one call; a null leaves what is set. ``TypeError`` for an unknown name."""
        given = {_OLD_NAMES.get(k, k): v for k, v in changes.items() if k not in _IGNORED and v is not None}
        return replace(self, **given) if given else self

    def to_dict(self) -> dict[str, Any]:
        """As plain values, in the form of the file; what is unset is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {k: v for k, v in plain.items() if v is not None}

    def target_size(self, height: int, width: int) -> Size:
        """(height, width) to which an image of ``height`` x ``width`` is resized."""
        size = self.size or {}
        if "shortest_edge" in size:
            found = _by_edges(height, width, size["shortest_edge"], size.get("longest_edge"))
        elif "max_height" in size:
            scale = min(size["max_height"] / height, size["max_width"] / width)
            found = int(height * scale), int(width * scale)
        elif "height" in size:
            found = size["height"], size["width"]
        else:
            raise ValueError(f"A size needs a shortest_edge, or a height and a width, got {size}.")
        if self.size_divisor > 0:
            return _round_up(found[0], self.size_divisor), _round_up(found[1], self.size_divisor)
        return found

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """(height, width) of a batch of images of these sizes; ``ValueError`` if ``pad_size`` is too small."""
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        if self.pad_size is None:
            return height, width
        wanted = self.pad_size["height"], self.pad_size["width"]
        if wanted[0] < height or wanted[1] < width:
            raise ValueError(
                f"pad_size {wanted[0]}x{wanted[1]} is smaller than an image of {height}x{width}: "
                "pass a larger pad_size or a smaller size."
            )
        return wanted


def _as_size(value: Any, name: str, *, square: bool) -> dict[str, int]:
    if isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif not isinstance(value, Mapping) and hasattr(value, "__dataclass_fields__"):
        value = {k: v for k, v in dict(value).items() if v is not None}
    elif isinstance(value, list | tuple):
        value = {"height": value[0], "width": value[1]}
    if set(value) not in _SIZE_FORMS:
        raise ValueError(
            f"{name} needs height and width, shortest_edge (and longest_edge), or max_height and max_width; "
            f"got {dict(value)}."
        )
    return {k: int(v) for k, v in value.items()}


def _by_edges(height: int, width: int, shortest: int, longest: int | None) -> Size:
    """The shorter side becomes ``shortest``, unless the longer one would exceed ``longest``; ratios cut, not rounded."""
    exact = float(shortest)
    if longest is not None and max(height, width) / min(height, width) * shortest > longest:
        exact = longest * min(height, width) / max(height, width)
        shortest = round(exact)
    if min(height, width) == shortest:
        return height, width
    if width < height:
        return int(exact * height / width), shortest
    return shortest, int(exact * width / height)


def _round_up(value: int, divisor: int) -> int:
    return math.ceil(value / divisor) * divisor
