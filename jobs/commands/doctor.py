"""``panoptile doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        epilog="Exit codes: 0 fine (notes included), 4 something that a run needs is wrong. "
        "Example: panoptile doctor s3://bucket/out --cluster http://ray-head:8265"
    )(doctor)


def doctor(
    out: Annotated[
        str | None,
        typer.Argument(metavar="OUT", help="Output folder or store to try, without changing a job there."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="URL", envvar="PANOPTILE_CLUSTER", help="Ray dashboard to try.")
    ] = None,
    auth_token_file: Annotated[
        str | None, typer.Option("--auth-token-file", metavar="FILE", help="Token of that cluster.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Check GPU, GDAL, Ray, video, scratch space and store: all is well, or what to do."""
    from panoptile.jobs.doctor import examine, finding_text

    findings = []
    for finding in examine(out, cluster, auth_token_file):
        findings.append(finding)
        if not as_json:
            print(finding_text(finding), flush=True)
    wrong = any(f.verdict == "wrong" for f in findings)
    if as_json:
        Console(as_json=True).data("", {"findings": [f.to_json() for f in findings], "ok": not wrong})
    raise typer.Exit(int(Exit.FAILED) if wrong else int(Exit.DONE))
