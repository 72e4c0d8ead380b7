"""The command line. ``--help`` imports neither torch nor Ray nor GDAL: each command imports what it needs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError, invalid

if TYPE_CHECKING:
    from panoptile.jobs.spec import JobSpec
    from panoptile.pipeline.replica import Task

app = typer.Typer(
    name="panoptile",
    help="Panoptic segmentation of rasters that are too large for one forward pass.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="Look at checkpoints.", no_args_is_help=True)
app.add_typer(model_app, name="model")


_TERMINATED = 143


class _Terminated(BaseException):
    """SIGTERM."""


def main() -> None:
    """Entry point: runs the command line and exits with the documented code."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        ended = app(standalone_mode=False)  # the code of a typer.Exit comes back as a value
        code = ended if isinstance(ended, int) else int(Exit.DONE)
    except JobError as e:
        Console().error(str(e))
        code = int(e.code)
    except typer.Exit as e:
        code = e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = int(Exit.INTERRUPTED)
    except _Terminated:
        code = _TERMINATED
    except Exception as e:  # noqa: BLE001  (the outermost frame: every error must end in a sentence and a code)
        code = _usage_error(e)
    if code in (int(Exit.INTERRUPTED), _TERMINATED):  # typer turns Ctrl-C into a plain exit code 130
        Console().error("interrupted; what is done is kept. To go on, run the same command again.")
        sys.stdout.flush()
        os._exit(code)  # threads in the middle of a unit must not delay the end: nothing uncommitted counts
    sys.stdout.flush()
    if code in (int(Exit.FAILED), int(Exit.UNREACHABLE)):
        sys.stderr.flush()
        os._exit(code)  # a hung unit's thread would be waited for without end
    sys.exit(code)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _usage_error(error: Exception) -> int:
    """A wrong option ends with exit 2; anything else is our fault: exit 1 with the traceback."""
    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):  # a usage error of the command-line library
        show()
        return int(Exit.INVALID)
    import traceback

    traceback.print_exc()
    Console().error(
        f"internal error: {type(error).__name__}: {error}. Please report it with the lines above."
    )
    return int(Exit.INTERNAL)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import importlib.metadata

        print(f"panoptile {importlib.metadata.version('panoptile')}")
        raise typer.Exit


def _spec(sources: list[str], out: str, **fields: Any) -> JobSpec:
    from panoptile.jobs.spec import JobSpec

    if fields["task"] not in (None, "panoptic", "instance", "semantic"):
        raise invalid(f"--task is panoptic, instance or semantic, got {fields['task']!r}.")
    try:
        for name in ("fuse", "classes", "exclude"):
            fields[name] = opt.names(f"--{name}", fields[name])
        fields["bands"] = opt.band_numbers(fields["bands"])
        fields["task"] = cast("Task | None", fields["task"])
        return JobSpec(tuple(sources), out, **fields)
    except ValueError as e:
        raise invalid(str(e)) from e


def _with_job_options(run: Callable[[JobSpec, Console], None]) -> Callable[..., None]:
    """A command that takes the options of a job: ``segment`` and ``plan`` are asked in the same words."""

    def command(
        sources: opt.Sources,
        out: opt.Out,
        model: opt.Model = "builtin",
        task: opt.TaskName = None,
        labels: opt.Labels = None,
        fuse: opt.Fuse = None,
        tile: opt.TileSide = 512,
        overlap: opt.Overlap = 128,
        bands: opt.Bands = None,
        scale: opt.Scale = "auto",
        gsd: opt.Gsd = None,
        nodata: opt.Nodata = None,
        aoi: opt.Aoi = None,
        classes: opt.Classes = None,
        exclude: opt.Exclude = None,
        min_area: opt.MinArea = 0.0,
        score: opt.Score = None,
        raster: opt.Raster = True,
        vector: opt.Vector = True,
        compression: opt.Compression = "zstd",
        batch: opt.Batch = 1,
        threads: opt.Threads = 1,
        workers: opt.Workers = None,
        local: opt.Local = False,
        retries: opt.Retries = 2,
        max_failures: opt.MaxFailures = "10%",
        unit_timeout: opt.TimeoutUnit = 1800.0,
        as_json: opt.Json = False,
        quiet: opt.Quiet = False,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("sources", "out", "as_json", "quiet", "run")}
        run(_spec(sources, out, **given), Console(as_json=as_json, quiet=quiet))

    command.__doc__ = run.__doc__
    return command


def _segment(spec: JobSpec, console: Console) -> None:
    """Segment rasters of any size; the result lies in OUT when the command ends."""
    from panoptile.jobs.prepare import prepare
    from panoptile.jobs.report_text import plan_line, summary_fields, summary_text
    from panoptile.jobs.segment import run_job

    prepared = prepare(spec)
    for note in prepared.notes:
        console.say(f"note    {note}")
    console.say(plan_line(prepared))
    summary = run_job(prepared, console)
    console.data(summary_text(prepared, summary), summary_fields(prepared, summary))
    raise typer.Exit(int(summary.exit))


def _plan(spec: JobSpec, console: Console) -> None:
    """Check everything and say what would run: tiles, units, bytes, memory. Writes nothing."""
    from panoptile.jobs.prepare import prepare
    from panoptile.jobs.report_text import plan_fields, plan_text

    prepared = prepare(spec)
    for note in prepared.notes:
        console.say(f"note    {note}")
    console.data(plan_text(prepared), plan_fields(prepared))


app.command(
    "segment",
    epilog="Exit codes: 0 done, 2 invalid input (nothing started), 3 finished with quarantined units, 4 failed, "
    "5 OUT holds another job, 6 cluster or storage unreachable, 130/143 interrupted (run it again to go on). "
    "Example: panoptile segment ortho.tif -o out/",
)(_with_job_options(_segment))
app.command("plan", epilog="Example: panoptile plan 'scenes/*.tif' -o out/ --tile 1024")(
    _with_job_options(_plan)
)


@app.command(epilog="Example: panoptile preview out/ --max-side 4096")
def preview(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a finished run.")],
    max_side: Annotated[int, typer.Option(metavar="PX", help="Longer side of the picture, at most.")] = 2048,
    as_json: opt.Json = False,
) -> None:
    """Draw the result over the photograph again, at another size."""
    from panoptile.jobs.previews import redraw

    paths = redraw(out, max_side)
    Console(as_json=as_json).data("\n".join(paths), {"previews": paths})


@model_app.command("info", epilog="Example: panoptile model info builtin --size 1024")
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


@model_app.command(
    "convert", epilog="Example: panoptile model convert model_final.pkl mask2former-swin-tiny/"
)
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
