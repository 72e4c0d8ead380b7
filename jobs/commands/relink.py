"""``panoptile relink``."""

from __future__ import annotations

from typing import Any

import typer

from panoptile.jobs.console import Console
from panoptile.jobs.job_options import with_recorded_job
from panoptile.jobs.spec import LINK_OPTIONS


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        "relink",
        epilog="Exit codes as of segment; 2 where units are missing or the job has no video, 5 beside a live run. "
        "Example: panoptile relink out/ --max-age 3",
    )(with_recorded_job(relink, only=LINK_OPTIONS))


def relink(out: str, changes: dict[str, Any], console: Console) -> None:
    """Link the segments of a finished job's videos anew, with other options; the network is not needed."""
    from panoptile.jobs.exits import invalid
    from panoptile.jobs.relink import prepare_relink
    from panoptile.jobs.relink import relink as run
    from panoptile.jobs.report_text import summary_fields, summary_text
    from panoptile.jobs.state import store_errors
    from panoptile.pipeline.store import open_store

    try:
        store = open_store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
    with store_errors(out):
        prepared = prepare_relink(store, changes)
    summary = run(prepared, console)
    console.data(summary_text(summary), summary_fields(summary))
    raise typer.Exit(int(summary.exit))
