"""The options of a training: their defaults, a strict recipe file, and what makes two trainings the same."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from panoptile.jobs.exits import invalid
from panoptile.pipeline.yaml_error import one_line

Freeze = Literal["none", "early", "backbone"]


class TrainOptions(pydantic.BaseModel):
    """All of a training but its data and the weights that it starts from; a recipe file has these keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    steps: int = pydantic.Field(default=2000, ge=1)
    """Optimiser steps."""
    batch: int = pydantic.Field(default=4, ge=1)
    """Windows per forward pass and process."""
    accumulate: int = pydantic.Field(default=1, ge=1)
    """Forward passes per step."""
    size: int = pydantic.Field(default=512, ge=32, multiple_of=32)
    """Pixels a side of a window, as the published model sees it."""
    scale_range: tuple[float, float] = (0.7, 1.4)
    """Factor on the resolution of the images."""
    rotate: bool = True
    flip: bool = True
    colour: float = pydantic.Field(default=1.0, ge=0)
    """Strength of colour changes."""
    min_object_px: int = pydantic.Field(default=24, ge=1)
    """Segments with fewer pixels in a window are ignored."""
    learning_rate: float = pydantic.Field(default=1e-4, gt=0)
    backbone_factor: float = pydantic.Field(default=0.1, ge=0)
    weight_decay: float = pydantic.Field(default=0.05, ge=0)
    clip_norm: float = pydantic.Field(default=0.01, gt=0)
    schedule: Literal["poly", "step", "linear"] = "poly"
    warmup_steps: int = pydantic.Field(default=100, ge=0)
    decay_share: float = pydantic.Field(default=0.3, gt=0, le=1)
    ema_decay: float = pydantic.Field(default=0.998, ge=0, lt=1)
    amp: Literal["off", "bf16"] = "off"
    freeze: Freeze = "none"
    """early: stem and first stages of an EfficientNet; backbone: all of it."""
    points: int | None = pydantic.Field(default=None, ge=1)
    """Points per mask in the loss; default: the checkpoint's."""
    no_object_weight: float | None = pydantic.Field(default=None, gt=0)
    query_grid: int = pydantic.Field(default=10, ge=1)
    """With a bare backbone: places of the queries, a side."""
    place_weight: float = pydantic.Field(default=20.0, ge=0)
    """Matching cost of a distance of one window side, where queries have places."""
    input_stride: int = pydantic.Field(default=1, ge=1)
    """With a bare backbone: the published network averages its input over so many pixels a side."""
    score_threshold: float | None = pydantic.Field(default=None, ge=0, le=1)
    overlap_threshold: float | None = pydantic.Field(default=None, ge=0, le=1)
    validate_every: int = pydantic.Field(default=500, ge=1)
    validation_windows: int = pydantic.Field(default=200, ge=1)
    """At most; spread evenly over the held-out parts."""
    save_every: int = pydantic.Field(default=100, ge=1)
    seed: int = 0

    @pydantic.field_validator("scale_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("a range of scales is two positive numbers, the lower one first")
        return value


def train_options(recipe: str | None, given: dict[str, Any]) -> TrainOptions:
    """Options from flags, then a recipe file, then defaults. Raises :class:`JobError` (exit 2)."""
    values = {} if recipe is None else _read_recipe(recipe)
    values |= {key: value for key, value in given.items() if value is not None}
    try:
        return TrainOptions.model_validate_json(json.dumps(values))
    except pydantic.ValidationError as e:
        raise invalid("; ".join(_sentence(error, recipe) for error in e.errors()) + ".") from e


def _read_recipe(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        json.dumps(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as e:
        raise invalid(f"Cannot read the recipe {path}: {one_line(e)}.") from e
    if not isinstance(values, dict):
        raise invalid(f"The recipe {path} must hold 'option: value' lines, such as 'steps: 2000'.")
    return values


def _sentence(error: Any, recipe: str | None) -> str:
    name = ".".join(str(part) for part in error["loc"])
    where = "" if recipe is None else f" (flags and {recipe})"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(TrainOptions.model_fields), 1, 0.5)
        return (
            f"There is no training option {name!r}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + where
        )
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}{where}"
