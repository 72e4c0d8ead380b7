"""``panoptile model info``: what a checkpoint is, read from its headers alone (a pickle has none: it is read whole)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from panoptile.jobs.exits import invalid
from panoptile.jobs.models import checkpoint_folder

if TYPE_CHECKING:
    from panoptile.model.config import Mask2FormerConfig


_SIZES = (32, 8192)


def info_fields(model: str, labels: str | None, size: int | None = None) -> dict[str, Any]:
    """What ``model info --json`` prints. Raises :class:`JobError` where the checkpoint would not load.

    ``size``: the side in pixels of the square tile whose operations are counted; without it none are.
    """
    from panoptile.model.checkpoint import inspect_checkpoint
    from panoptile.model.inferred_config import read_config

    if size is not None and not _SIZES[0] <= size <= _SIZES[1]:
        raise invalid(f"--size is between {_SIZES[0]} and {_SIZES[1]} px, got {size}.")
    path = checkpoint_folder(model)
    try:
        info = inspect_checkpoint(str(path), labels=labels)
        config = read_config(path)
    except ValueError as e:
        raise invalid(str(e)) from e
    block = config.panoptile or {}
    return {
        "path": str(path),
        "layout": info.layout,
        "backbone": info.backbone,
        "task": info.task,
        "num_queries": info.num_queries,
        "channels": info.channels,
        "parameters": info.parameters,
        "gsd_m": info.gsd_m,
        "gflops": None if size is None else _gflops(config, size),
        "gflops_size": size,
        "precision": _precision(),
        "license": block.get("license"),
        "note": block.get("note"),
        "sha256": info.sha256,
        "classes": info.classes.to_json(),
    }


def _precision() -> str:
    """What ``--precision`` offers on this machine."""
    import torch

    from panoptile.model.precision import choose_precision, is_bf16_native

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = "GPU" if device.type == "cuda" else "CPU"
    auto = "bf16" if choose_precision("auto", device) == torch.bfloat16 else "fp32"
    bf16 = "bf16" if is_bf16_native(device) else "bf16 (emulated, slow)"
    return f"fp32 or {bf16} on this {place}; auto is {auto}"


def _gflops(config: Mask2FormerConfig, size: int) -> float:
    from panoptile.model.flops import forward_flops

    return float(f"{forward_flops(config, size, size) / 1e9:.4g}")


def info_text(fields: dict[str, Any]) -> str:
    """The same for people."""
    classes = fields["classes"]
    things = [c["name"] for c in classes if c["is_thing"]]
    stuff = [c["name"] for c in classes if not c["is_thing"]]
    rows = {
        "path": fields["path"],
        "backbone": fields["backbone"],
        "task": fields["task"],
        "key layout": fields["layout"],
        "parameters": f"{fields['parameters']:,}",
        "operations": fields["gflops"]
        and f"{fields['gflops']:,} GFLOP per tile of {fields['gflops_size']} px",
        "queries": f"{fields['num_queries']} (the most segments of one tile)",
        "input": f"{fields['channels']} bands"
        + (f", trained at {fields['gsd_m']:g} m per pixel" if fields["gsd_m"] else ""),
        "precision": fields["precision"],
        "license": fields["license"],
        "note": fields["note"],
        "sha256": fields["sha256"],
        f"things ({len(things)})": _shortened(things),
        f"stuff ({len(stuff)})": _shortened(stuff),
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items() if value is not None)


def _shortened(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … {len(names) - most} more"
