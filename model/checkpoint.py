"""What a checkpoint says about itself, read and checked without loading its weights.

Unusual: the keys and shapes of the weights are compared with what the network needs by reading the file's header
alone, so that a job can refuse a checkpoint before anything starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from panoptile.model.classes import ClassTable
from panoptile.model.config import CONFIG_NAME, Mask2FormerConfig
from panoptile.model.inferred_config import companion, read_config
from panoptile.model.label_tables import LabelTable, are_placeholders, find_table
from panoptile.model.weights import NO_CHECKPOINT, check_keys, find_weights, key_layout, read_shapes, sha256

log = logging.getLogger(__name__)

Task = Literal["panoptic", "instance", "semantic"]
TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")

PREPROCESSOR_NAME = "preprocessor_config.json"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DEFAULT_OVERLAP = 0.8
_DEFAULT_THRESHOLD: dict[Task, float] = {"panoptic": 0.8, "instance": 0.5, "semantic": 0.0}


@dataclass(frozen=True, slots=True)
class Normalisation:
    """``(grey * rescale - mean) / std`` per channel, grey 0-255."""

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or not all(s > 0 for s in self.std):
            raise ValueError(
                f"One mean and one positive std per channel are needed, got {self.mean} and {self.std}."
            )
        if not self.rescale > 0:
            raise ValueError(f"rescale_factor must be positive, got {self.rescale}.")

    @property
    def mean_pixel(self) -> tuple[int, ...]:
        """(C,) the grey level that normalises to nearly 0: what the network ignores best."""
        return tuple(min(255, max(0, round(m / self.rescale))) for m in self.mean)


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """How a checkpoint is to be used: its own word, overridden by the caller's."""

    config: Mask2FormerConfig
    task: Task
    classes: ClassTable
    """Semantic: all stuff. Classes that are fused by request are stuff too."""
    label_ids_to_fuse: frozenset[int]
    score_threshold: float
    overlap_threshold: float
    """Part of its own mask that a segment must keep; the paper's 0.8 unless the checkpoint says otherwise."""
    normalisation: Normalisation


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What ``plan`` and ``model info`` report."""

    path: str
    layout: str
    """Naming of the weights: ``hub``, ``in-memory``, ``timm`` or ``detectron2``."""
    backbone: str
    task: Task
    classes: ClassTable
    num_queries: int
    channels: int
    parameters: int
    """Learned and stored numbers, batch-norm statistics included."""
    sha256: str
    """Of configuration, preprocessing and weights: equal digests give equal results."""
    gsd_m: float | None
    """Metres per pixel of the training images, where the checkpoint says so."""
    queries_are_places: bool
    """See the function of this name."""


def inspect_checkpoint(
    path: str, *, task: Task | None = None, labels: str | None = None, fuse: Sequence[str] = ()
) -> CheckpointInfo:
    """Check a checkpoint's configuration, class table and weight keys. Raises ``ValueError`` with one clear sentence."""
    settings = read_settings(path, task=task, labels=labels, fuse=fuse)
    stored = read_shapes(path)
    expected = expected_shapes(settings.config)
    check_keys(stored, expected, path)
    config = settings.config
    gsd_m = (config.panoptile or {}).get("gsd_m")
    return CheckpointInfo(
        path=path,
        layout=key_layout(stored),
        backbone=_describe_backbone(config),
        task=settings.task,
        classes=settings.classes,
        num_queries=config.num_queries,
        channels=config.num_channels,
        parameters=sum(math.prod(shape) for shape in expected.values()),
        sha256=_digest(path),
        gsd_m=None if gsd_m is None else float(gsd_m),
        queries_are_places=queries_are_places(config),
    )


def queries_are_places(config: Mask2FormerConfig) -> bool:
    """Whether the network sees coordinates (see model/grid_start.py): the state of a query then says where on the picture
    its segment lies, whatever lies there, and nothing of whether it is the same object in another frame."""
    return bool(config.backbone_config.get("coordinate_frequencies"))


def read_settings(
    path: str,
    *,
    task: Task | None = None,
    labels: str | None = None,
    fuse: Sequence[str] = (),
    score_threshold: float | None = None,
) -> CheckpointSettings:
    """The task, classes, thresholds and normalisation to use. ``ValueError`` on contradictions.

    Reads only JSON, but for a file of weights without a ``config.json`` beside it.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(NO_CHECKPOINT.format(path=path))
    config = read_config(path)
    block = config.panoptile or {}
    names = [config.id2label[i] for i in range(config.num_labels)]
    table = find_table(names, hint=folder.name)
    chosen = task or _own_task(block, table, folder.name)
    classes = _class_table(config, chosen, names, table, labels, path)
    fused, classes = _fused(classes, fuse)
    threshold = score_threshold
    if threshold is None:
        threshold = float(block.get("score_threshold", _DEFAULT_THRESHOLD[chosen]))
    overlap = float(block.get("overlap_threshold", _DEFAULT_OVERLAP))
    return CheckpointSettings(
        config, chosen, classes, fused, threshold, overlap, _normalisation(path, config.num_channels)
    )


def expected_shapes(config: Mask2FormerConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor that the network needs; no memory is allocated for them."""
    import torch

    from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

    with torch.device("meta"):
        network = Mask2FormerForUniversalSegmentation(config)
    return {k: tuple(v.shape) for k, v in network.state_dict().items()}


def _own_task(block: dict[str, Any], table: LabelTable | None, folder: str) -> Task:
    """The checkpoint's task: its own word, else a table that fits one task only, else the folder's name."""
    stated = block.get("task")
    if stated is not None:
        if stated not in TASKS:
            raise ValueError(f"config.json names the task {stated!r}; there are {', '.join(TASKS)}.")
        return cast(Task, stated)
    if table is not None and table.things_only:
        return "instance"
    return next((t for t in TASKS if t in folder.lower()), "panoptic")


def _class_table(
    config: Mask2FormerConfig,
    task: Task,
    names: list[str],
    table: LabelTable | None,
    labels: str | None,
    path: str,
) -> ClassTable:
    if labels is not None:
        classes = ClassTable.from_file(labels)
        if len(classes) != config.num_labels:
            raise ValueError(
                f"The checkpoint {path} has {config.num_labels} classes but {labels} names {len(classes)}: "
                "pass --labels with as many, or another checkpoint."
            )
    else:
        shown = list(table.names) if table is not None and are_placeholders(names) else names
        things = _thing_label_ids(config, task, table, path)
        classes = ClassTable.from_names(_unique(shown), things, (config.panoptile or {}).get("colors"))
    if task == "semantic":
        return _as_stuff(classes, frozenset(range(len(classes))))
    if task == "instance" and not classes.thing_label_ids:
        raise ValueError(f"The task instance needs classes that are things, but {labels or path} has none.")
    return classes


def _thing_label_ids(
    config: Mask2FormerConfig, task: Task, table: LabelTable | None, path: str
) -> frozenset[int]:
    stated = (config.panoptile or {}).get("thing_label_ids")
    if stated is not None:
        ids = frozenset(int(i) for i in stated)
        if not ids <= set(range(config.num_labels)):
            raise ValueError(
                f"thing_label_ids in {path}/config.json must be among 0…{config.num_labels - 1}."
            )
        return ids
    if table is not None:
        return table.thing_label_ids
    if task == "semantic":
        return frozenset()
    if task == "instance":
        return frozenset(range(config.num_labels))
    raise ValueError(
        f"The checkpoint {path} does not say which of its {config.num_labels} classes are things: "
        'pass --labels FILE, a JSON list of {"name": …, "is_thing": …} in label order.'
    )


def _fused(classes: ClassTable, fuse: Sequence[str]) -> tuple[frozenset[int], ClassTable]:
    """The label ids to fuse (default: all stuff); a thing that is fused is counted as stuff from then on."""
    if not fuse:
        return frozenset(range(len(classes))) - classes.thing_label_ids, classes
    ids = frozenset(classes.by_name(name).label_id for name in fuse)
    return ids, _as_stuff(classes, ids)


def _as_stuff(classes: ClassTable, label_ids: frozenset[int]) -> ClassTable:
    from dataclasses import replace

    return ClassTable(tuple(replace(c, is_thing=c.is_thing and c.label_id not in label_ids) for c in classes))


def _unique(names: list[str]) -> list[str]:
    """Names as they are, but a repeated one gets its label id, because a table needs unique names."""
    return [f"{n} ({i})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def read_preprocessing(path: str) -> dict[str, Any]:
    """The content of a checkpoint's ``preprocessor_config.json``; empty if it has none."""
    file = companion(path, PREPROCESSOR_NAME)
    if file is None:
        log.info("No %s for %s: pixels are normalised with the ImageNet means.", PREPROCESSOR_NAME, path)
        return {}
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ValueError(f"Cannot read {file}: {e}.") from e
    return values


def _normalisation(path: str, channels: int) -> Normalisation:
    values = read_preprocessing(path)
    rescale = float(values.get("rescale_factor") or 1 / 255) if values.get("do_rescale", True) else 1.0
    if values.get("do_normalize", True):
        mean, std = values.get("image_mean") or _IMAGENET_MEAN, values.get("image_std") or _IMAGENET_STD
    else:
        mean, std = [0.0] * channels, [1.0] * channels
    if len(mean) != channels:
        raise ValueError(
            f"The {PREPROCESSOR_NAME} of {path} has means of {len(mean)} channels, but the network reads {channels}."
        )
    return Normalisation(rescale, tuple(map(float, mean)), tuple(map(float, std)))


def _describe_backbone(config: Mask2FormerConfig) -> str:
    """Such as ``swin 96 (2, 2, 6, 2)`` or ``resnet bottleneck (3, 4, 6, 3)``."""
    values = config.backbone_config
    detail = values.get("embed_dim") if config.backbone_type == "swin" else values.get("layer_type")
    depths = values.get("depths")
    parts = [config.backbone_type, detail, depths and "(" + ", ".join(map(str, depths)) + ")"]
    return " ".join(str(p) for p in parts if p)


def _digest(path: str) -> str:
    """One digest over the names and digests of all files that decide the results."""
    files = [companion(path, CONFIG_NAME), companion(path, PREPROCESSOR_NAME), *find_weights(path).paths]
    lines = [f"{f.name} {sha256(f)}" for f in files if f is not None]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
