"""``panoptile eval`` and ``panoptile compare``."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "eval",
        epilog="Exit codes: 0 done, 2 invalid input. Examples: panoptile eval out/ --gt instances.tif --class building; "
        "panoptile eval out/ --gt labels.geojson --class-column kind --map 'houses=building'; "
        "panoptile eval predictions/ --gt panoptic_val2017/",
    )(evaluate)
    app.command(
        "compare",
        epilog="Exit codes: 0 done, 2 invalid input. Example: panoptile compare out_512/ out_768/ --json",
    )(compare)


def evaluate(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Output folder of a finished run, or a COCO panoptic folder.")
    ],
    gt: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Ground truth: label rasters, polygons (GeoJSON, GeoParquet, GeoPackage), COCO panoptic, a finished "
            "run; of videos a folder of label rasters, masks.parquet or YouTube-VIS JSON. A folder is searched by name.",
        ),
    ],
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="All objects of the ground truth are of this class."),
    ] = None,
    class_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the polygons that names their class.")
    ] = None,
    gt_classes: Annotated[
        str | None,
        typer.Option(metavar="TIF", help="Class raster beside a raster of objects; values as in --labels."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Class table of the ground truth, JSON; its first row is value 1."),
    ] = None,
    divisor: Annotated[
        int | None, typer.Option(metavar="N", help="Labels are class * N + object, classes as in --labels.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="TRUTH=RUN", help="Two names of one class; repeatable."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VALUE", help="Raster value or class that is neither right nor wrong; repeatable."
        ),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            metavar="background|void",
            help="What unlabelled pixels are: known to hold none of the classes, or not known. Default: void in COCO "
            "panoptic, background elsewhere.",
        ),
    ] = None,
    window: Annotated[
        str | None, typer.Option(metavar="ROW,COL,HEIGHT,WIDTH", help="Compare this part alone, pixels.")
    ] = None,
    area: Annotated[
        str | None,
        typer.Option(
            metavar="BOX|FILE",
            help="Compare this part alone: MINX,MINY,MAXX,MAXY in the raster's CRS, or GeoJSON.",
        ),
    ] = None,
    confusion: Annotated[
        str | None, typer.Option(metavar="PNG", help="Draw which classes were taken for which.")
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Compare a result with ground truth: PQ, AP, F1, mIoU; of videos VPQ, STQ and track AP."""
    from panoptile.jobs.evaluate import EvalOptions
    from panoptile.jobs.evaluate import evaluate as run
    from panoptile.jobs.ground_truth import TruthOptions
    from panoptile.jobs.score_text import score_fields, score_text
    from panoptile.pipeline.label_source import Unlabelled

    if unlabelled not in (None, "background", "void"):
        raise invalid(f"--unlabelled is background or void, got {unlabelled!r}.")
    truth = TruthOptions(
        gt,
        class_name,
        class_column,
        gt_classes,
        labels,
        divisor,
        tuple(ignore or ()),
        cast("Unlabelled | None", unlabelled),
    )
    console = Console(as_json=as_json, quiet=quiet)
    result = run(out, EvalOptions(truth, tuple(rename or ()), window, area), console)
    if confusion is not None:
        from pathlib import Path

        from panoptile.pipeline.confusion_picture import write_confusion

        try:
            write_confusion(Path(confusion), result.semantic)
        except OSError as e:
            raise invalid(f"Cannot write {confusion}: {e.strerror or e}.") from e
    console.data(score_text(result), score_fields(result))


def compare(
    out_a: Annotated[
        str, typer.Argument(metavar="OUT_A", help="Output folder of a finished run: the old one.")
    ],
    out_b: Annotated[str, typer.Argument(metavar="OUT_B", help="Output folder of another run: the new one.")],
    geojson: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the changed segments of rasters as GeoJSON.")
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Compare two runs over the same inputs: self-PQ, and which segments changed."""
    from panoptile.jobs.compare import compare as run
    from panoptile.jobs.compare import compare_fields, compare_text

    console = Console(as_json=as_json, quiet=quiet)
    result = run(out_a, out_b, console, geojson=geojson)
    console.data(compare_text(result), compare_fields(result))
