"""``panoptile model convert``: any checkpoint that we read, as a folder in the public layout.

Unusual: what the source leaves open (task, which classes are things) is settled now and written down, so that the
folder needs no options later. It is built beside the target and moved into place, so a failed run leaves nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.model_info import info_fields
from panoptile.jobs.models import checkpoint_folder

if TYPE_CHECKING:
    from panoptile.model.checkpoint import CheckpointSettings, Task
    from panoptile.model.config import Mask2FormerConfig

_FRESH_PREPROCESSING: dict[str, Any] = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_reduce_labels": False,
    "ignore_index": 255,
    "resample": 2,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "size_divisor": 32,
}
"""For sources without preprocessing: the paper's sizes for COCO; the pipeline does not resize, but other programs do."""


def convert(
    source: str, target: str, *, labels: str | None = None, task: Task | None = None
) -> dict[str, Any]:
    """Write the checkpoint ``source`` (folder, file, hub id, ``builtin``) into the folder ``target``.

    Returns the fields of ``model info`` about the result, with ``converted_from`` and ``source_layout``. Raises
    :class:`JobError` where the source would not load, or ``target`` is not a new or empty folder.
    """
    from panoptile.model.checkpoint import inspect_checkpoint, read_settings

    folder = Path(target).expanduser()
    _refuse_occupied(folder)
    path = str(checkpoint_folder(source))
    try:
        info = inspect_checkpoint(path, task=task, labels=labels)
        settings = read_settings(path, task=task, labels=labels)
    except ValueError as e:
        raise invalid(str(e)) from e
    _build(path, settings, folder)
    return info_fields(str(folder), None) | {"converted_from": path, "source_layout": info.layout}


def _refuse_occupied(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise invalid(f"{folder} is not an empty folder: pass a new one, so that nothing is overwritten.")
    if not folder.parent.exists():
        raise invalid(f"There is no folder {folder.parent} to put {folder.name} in.")


def _build(path: str, settings: CheckpointSettings, folder: Path) -> None:
    """Write beside the target, then rename: the target is complete or absent."""
    from panoptile.model.checkpoint import PREPROCESSOR_NAME, read_preprocessing
    from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

    try:
        network = Mask2FormerForUniversalSegmentation.from_pretrained(path, config=settings.config)
        preprocessing = read_preprocessing(path)
    except ValueError as e:
        raise invalid(str(e)) from e
    network.config = _settled_config(settings)
    norm = settings.normalisation
    means = {"rescale_factor": norm.rescale, "image_mean": list(norm.mean), "image_std": list(norm.std)}
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            network.save_pretrained(draft)
            text = json.dumps(preprocessing or _FRESH_PREPROCESSING | means, indent=2)
            (draft / PREPROCESSOR_NAME).write_text(text + "\n", encoding="utf-8")
            draft.chmod(0o755)
            os.replace(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as e:
        raise JobError(Exit.UNREACHABLE, f"Cannot write {folder}: {e}.") from e


def _settled_config(settings: CheckpointSettings) -> Mask2FormerConfig:
    """The configuration with names, task, things and colours written down, and the backbone under our own name."""
    from panoptile.model.classes import spread_color
    from panoptile.model.config import Mask2FormerConfig
    from panoptile.model.timm_resnet import resnet_config

    config = settings.config
    changes: dict[str, Any] = {
        "id2label": {c.label_id: c.name for c in settings.classes},
        "panoptile": (config.panoptile or {})
        | {
            "task": settings.task,
            "thing_label_ids": sorted(settings.classes.thing_label_ids),
        },
    }
    changes["panoptile"].pop("colors", None)
    if any(c.color != spread_color(c.label_id) for c in settings.classes):  # generated ones need no words
        changes["panoptile"]["colors"] = [row["color"] for row in settings.classes.to_json()]
    if config.backbone_type == "timm_backbone":
        changes["backbone_config"] = resnet_config(config.backbone_config)
    return Mask2FormerConfig.from_dict(config.to_dict() | changes)


def convert_text(fields: dict[str, Any]) -> str:
    """What the command prints for people."""
    things = sum(bool(c["is_thing"]) for c in fields["classes"])
    return "\n".join(
        f"{name:<14} {value}"
        for name, value in {
            "from": f"{fields['converted_from']} ({fields['source_layout']})",
            "to": fields["path"],
            "backbone": fields["backbone"],
            "task": f"{fields['task']} (another: --task)",
            "classes": f"{len(fields['classes'])}, {things} of them things (others: --labels)",
            "parameters": f"{fields['parameters']:,}",
        }.items()
    )
