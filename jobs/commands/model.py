"""``panoptile model info`` and ``panoptile model convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid

if TYPE_CHECKING:
    from panoptile.pipeline.terms import Task


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    model_app = typer.Typer(help="Look at checkpoints.", no_args_is_help=True)
    model_app.command("info", epilog="Example: panoptile model info builtin --size 1024")(model_info)
    model_app.command(
        "convert", epilog="Example: panoptile model convert model_final.pkl mask2former-swin-tiny/"
    )(model_convert)
    app.add_typer(model_app, name="model")


def model_info(
    model: Annotated[
        str, typer.Argument(metavar="PATH|ID", help="Checkpoint (folder or file), hub id or 'builtin'.")
    ],
    labels: opt.Labels = None,
    size: Annotated[int, typer.Option(metavar="PX", help="Side of the tile for the GFLOPs.")] = 512,
    as_json: opt.Json = False,
) -> None:
    """Print what a checkpoint is: backbone, task, classes, parameters, GFLOPs, hash."""
    from panoptile.jobs.model_info import info_fields, info_text

    fields = info_fields(model, labels, size)
    Console(as_json=as_json).data(info_text(fields), fields)


def model_convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Checkpoint folder, .pkl, .pth, .bin, .safetensors or hub id."),
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="New or empty folder.")],
    labels: opt.Labels = None,
    task: opt.TaskName = None,
    as_json: opt.Json = False,
) -> None:
    """Write any checkpoint that we read, Detectron2's too, as a folder with config.json and safetensors."""
    from panoptile.jobs.model_convert import convert, convert_text

    if task not in (None, "panoptic", "instance", "semantic"):
        raise invalid(f"--task is panoptic, instance or semantic, got {task!r}.")
    fields = convert(source, target, labels=labels, task=cast("Task | None", task))
    Console(as_json=as_json).data(convert_text(fields), fields)
