"""``panoptile export``."""

from __future__ import annotations

from typing import Annotated

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.option_values import names

FORMATS_HELP = (
    "stac, coco-panoptic, coco, geojson, flatgeobuf, gpkg, pmtiles, fiftyone, cvat, labelstudio; "
    "coco-panoptic-video and ytvis for videos."
)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        epilog="Examples: panoptile export out/ --to gpkg -o objects.gpkg ; panoptile export out/ --to stac ; "
        "panoptile export out/ --to cvat --tile 1024 -o task.zip"
    )(export)


def export(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a finished run.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help=FORMATS_HELP)],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="New file or folder; .zip for formats with images. stac writes OUT/catalog.",
        ),
    ] = None,
    classes: opt.Classes = None,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Side of the images of coco-panoptic, coco, fiftyone, cvat and labelstudio; default 1024.",
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Write a finished result in another format, with the libraries that define it."""
    from panoptile.jobs.export import export_to

    console = Console(as_json=as_json)
    written = export_to(out, to, output, names("--classes", classes), tile, console.say)
    console.data("\n".join(written), {"format": to, "written": written})
