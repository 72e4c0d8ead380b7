"""``panoptile model info``: what a checkpoint is, read from its headers alone."""

from __future__ import annotations

from typing import Any

from panoptile.jobs.exits import invalid
from panoptile.jobs.models import checkpoint_folder


def info_fields(model: str, labels: str | None) -> dict[str, Any]:
    """What ``model info --json`` prints. Raises :class:`JobError` where the checkpoint would not load."""
    from panoptile.model.checkpoint import inspect_checkpoint

    path = checkpoint_folder(model)
    try:
        info = inspect_checkpoint(str(path), labels=labels)
    except ValueError as e:
        raise invalid(str(e)) from e
    return {
        "path": str(path),
        "layout": info.layout,
        "backbone": info.backbone,
        "task": info.task,
        "num_queries": info.num_queries,
        "channels": info.channels,
        "parameters": info.parameters,
        "gsd_m": info.gsd_m,
        "sha256": info.sha256,
        "classes": info.classes.to_json(),
    }


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
        "queries": f"{fields['num_queries']} (the most segments of one tile)",
        "input": f"{fields['channels']} bands"
        + (f", trained at {fields['gsd_m']:g} m per pixel" if fields["gsd_m"] else ""),
        "sha256": fields["sha256"],
        f"things ({len(things)})": _shortened(things),
        f"stuff ({len(stuff)})": _shortened(stuff),
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def _shortened(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … {len(names) - most} more"
