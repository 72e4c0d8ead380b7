"""``panoptile segment`` and ``panoptile plan``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid

if TYPE_CHECKING:
    from panoptile.jobs.spec import JobSpec
    from panoptile.pipeline.replica import Task


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "segment",
        epilog="Exit codes: 0 done, 2 invalid input (nothing started), 3 finished with quarantined units, "
        "4 failed, 5 OUT holds another job, 6 cluster or storage unreachable, 130/143 interrupted (run it again "
        "to go on). Example: panoptile segment ortho.tif -o out/",
    )(_with_job_options(_segment))
    app.command("plan", epilog="Example: panoptile plan 'scenes/*.tif' -o out/ --tile 1024")(
        _with_job_options(_plan)
    )


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
