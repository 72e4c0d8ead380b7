"""``panoptile segment`` and ``panoptile plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from panoptile.jobs.console import Console
from panoptile.jobs.job_options import ResolvedJob, with_job_options

if TYPE_CHECKING:
    from panoptile.jobs.prepare import Prepared


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "segment",
        epilog="Exit codes: 0 done, 2 invalid input (nothing started), 3 finished with quarantined units, "
        "4 failed, 5 OUT holds another job, 6 cluster or storage unreachable, 130/143 interrupted (run it again "
        "to go on). Each option can stand in the environment, as PANOPTILE_TILE=1024. "
        "Example: panoptile segment ortho.tif -o out/",
    )(with_job_options(segment))
    app.command("plan", epilog="Example: panoptile plan 'scenes/*.tif' -o out/ --tile 1024 --save job.yaml")(
        with_job_options(plan)
    )


def segment(job: ResolvedJob, console: Console) -> None:
    """Segment rasters of any size; the result lies in OUT when the command ends."""
    from panoptile.jobs.report_text import plan_line, summary_fields, summary_text
    from panoptile.jobs.segment import run_job

    prepared = _prepared(job, console)
    console.say(plan_line(prepared))
    summary = run_job(prepared, console)
    console.data(summary_text(summary), summary_fields(summary))
    raise typer.Exit(int(summary.exit))


def plan(
    job: ResolvedJob,
    console: Console,
    *,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Time N of the tiles that are to do, and estimate the replica-hours from them."
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(metavar="P", help="Price of a replica-hour, with --sample: estimate the cost."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="B", help="With --price: exit 8 where the cost could be above it.")
    ] = None,
) -> None:
    """Check everything and say what would run, and what it would cost. Writes nothing but --save."""
    from panoptile.jobs.estimate import check_budget, check_prices, estimate
    from panoptile.jobs.plan_report import full_plan_fields, full_plan_text, nodata_shares, pending, to_do

    check_prices(sample, price, budget)
    prepared = _prepared(job, console)
    left, shares = pending(prepared), nodata_shares(prepared)
    found = None if sample is None else estimate(prepared, to_do(prepared, left), sample, price)
    console.data(
        full_plan_text(prepared, shares, left, found), full_plan_fields(prepared, shares, left, found)
    )
    if found is not None:
        check_budget(found, budget)


def _prepared(job: ResolvedJob, console: Console) -> Prepared:
    from panoptile.jobs.prepare import prepare

    prepared = prepare(job.spec)
    for note in prepared.notes:
        console.say(f"note    {note}")
    job.write_saved(console)
    return prepared
