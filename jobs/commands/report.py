"""``panoptile report``."""

from __future__ import annotations

from typing import Annotated

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog="Example: panoptile report out/ --price 2.10")(report)


def report(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a finished run.")],
    price: Annotated[
        float | None, typer.Option(metavar="P", help="Price of a replica-hour, in any currency.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Write OUT/report.html: map, counts, areas, seams, failures, throughput, cost; one file, no network."""
    from panoptile.jobs.report import gather
    from panoptile.jobs.report_html import render
    from panoptile.jobs.state import store_errors
    from panoptile.pipeline.store import open_store

    if price is not None and not 0 <= price < 1e9:
        raise invalid(f"--price wants the price of a replica-hour, got {price}.")
    found = gather(out, price)
    store = open_store(out)
    with store_errors(out, started=True):
        store.put_bytes("report.html", render(found).encode())
    Console(as_json=as_json).data(
        store.uri("report.html"),
        {
            "report": store.uri("report.html"),
            "inputs": len(found.inputs),
            "replica_hours": found.replica_hours,
        },
    )
