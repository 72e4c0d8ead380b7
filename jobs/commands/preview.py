"""``panoptile preview``."""

from __future__ import annotations

from typing import Annotated

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console, counted


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog="Example: panoptile preview out/ --max-side 4096")(preview)


def preview(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a finished run.")],
    max_side: Annotated[int, typer.Option(metavar="PX", help="Longer side of the picture, at most.")] = 2048,
    as_json: opt.Json = False,
) -> None:
    """Draw the result over the photograph again, at another size; where that is gone, the picture stays as it is."""
    from panoptile.jobs.previews import redraw

    drawn, console = redraw(out, max_side), Console(as_json=as_json)
    if drawn.left:
        inputs = counted(len(drawn.left), "input")
        console.say(f"note    the source of {inputs} is gone: left as drawn before (--json names all)")
    if drawn.paths or as_json:
        console.data("\n".join(drawn.paths), {"previews": list(drawn.paths), "left": list(drawn.left)})
