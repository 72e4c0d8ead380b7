"""``panoptile resume``, ``verify`` and ``gc``: they need the output folder alone, so the cluster may be gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid
from panoptile.jobs.job_options import with_recorded_job

if TYPE_CHECKING:
    from panoptile.pipeline.store import Store


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "resume",
        epilog="Exit codes as of segment; with --explain always 0. Options that are not given stay as recorded; one "
        "that would change the result is refused (exit 5), but can be explained. "
        "Example: panoptile resume s3://bucket/out --explain",
    )(with_recorded_job(resume))
    app.command(
        epilog="Exit codes: 0 all as promised, 7 something differs (each is named), 5 something differs while a run "
        "works on OUT. Example: panoptile verify out/"
    )(verify)
    app.command(
        epilog="Removes fragments without a commit, files that were staged more than ten minutes ago and old leases; "
        "never what is committed or published. Exit 5 beside a live run. Example: panoptile gc out/ --dry-run"
    )(gc)


def resume(
    out: str,
    changes: dict[str, Any],
    console: Console,
    *,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why each unit would be run; run nothing.")
    ] = False,
    retry_quarantined: Annotated[
        bool,
        typer.Option(
            "--retry-quarantined",
            help="Also try again what an earlier run gave up; segment always does.",
        ),
    ] = False,
) -> None:
    """Finish the job that OUT holds: only what is missing is run."""
    from panoptile.jobs.prepare import prepare
    from panoptile.jobs.report_text import plan_line, summary_fields, summary_text
    from panoptile.jobs.resume import explain_job, explanation_text, recorded_spec
    from panoptile.jobs.segment import run_job
    from panoptile.jobs.state import read_errors

    store = _open(out)
    with read_errors(out):
        spec = recorded_spec(store, changes)
    prepared = prepare(spec, any_job=explain)
    for note in prepared.notes:
        console.say(f"note    {note}")
    if explain:
        with read_errors(out):
            explanation = explain_job(store, prepared, retry_quarantined=retry_quarantined)
        console.data(explanation_text(explanation), explanation.to_json())
        return
    console.say(plan_line(prepared))
    summary = run_job(prepared, console, retry_quarantined=retry_quarantined)
    console.data(summary_text(summary), summary_fields(summary))
    raise typer.Exit(int(summary.exit))


def verify(out: opt.JobFolder, as_json: opt.Json = False) -> None:
    """Read everything again and compare it with what was promised: fragments, published files, manifest."""
    from panoptile.jobs.state import read_errors
    from panoptile.jobs.verify import verified_text
    from panoptile.jobs.verify import verify as verify_store

    store = _open(out)
    with read_errors(out):
        verified = verify_store(store)
    Console(as_json=as_json).data(verified_text(store, verified), verified.to_json())
    raise typer.Exit(int(verified.exit))


def gc(
    out: opt.JobFolder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Remove what killed runs left behind."""
    from panoptile.jobs.gc import collect, collected_text
    from panoptile.jobs.state import store_errors

    store = _open(out)
    with store_errors(out):
        collected = collect(store, dry_run=dry_run)
    Console(as_json=as_json).data(collected_text(store, collected), collected.to_json())


def _open(out: str) -> Store:
    from panoptile.pipeline.store import open_store

    try:
        return open_store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
