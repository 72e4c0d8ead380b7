"""``panoptile config show``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from panoptile.jobs.console import Console
from panoptile.jobs.job_options import ResolvedJob, with_job_options
from panoptile.jobs.option_names import variable_in_use


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    config_app = typer.Typer(help="Look at the options of a job.", no_args_is_help=True)
    config_app.command("show", epilog="Example: panoptile config show job.yaml --tile 1024 --origin")(
        with_job_options(show)
    )
    app.add_typer(config_app, name="config")


def show(
    job: ResolvedJob,
    console: Console,
    *,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
) -> None:
    """Print every option of a job as it would run: flags over environment over job file over defaults."""
    job.write_saved(console)
    values = dataclasses.asdict(job.spec)
    where = {name: _place(job, name) for name in job.origins}
    width = max(map(len, values))
    lines = []
    for name, value in values.items():
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
        lines.append(f"{name:<{width}}  {text:<32} {where[name] if origin else ''}".rstrip())
    fields: dict[str, object] = {"options": values}
    if origin:
        fields["origins"] = where
    console.data("\n".join(lines), fields)


def _place(job: ResolvedJob, name: str) -> str:
    """Where an option's value came from: the variable or the file by its name."""
    origin = job.origins[name]
    if origin == "environment":
        return variable_in_use(name)
    return job.file or origin if origin == "job file" else origin
