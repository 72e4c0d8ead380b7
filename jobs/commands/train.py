"""``panoptile train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import JobError, invalid
from panoptile.jobs.option_values import names

if TYPE_CHECKING:
    from panoptile.pipeline.training_spec import DataSpec

_EPILOG = (
    "Examples: panoptile train ortho.tif --labels buildings.parquet --class-column kind -o run/ | "
    "panoptile train ortho.tif --labels ids.tif --label-classes classes.tif --stuff 'class 2' -o run/ | "
    "panoptile train panoptic_train.json --images train/ --masks panoptic_train/ -o run/ | "
    "panoptile train instances.json --images train/ -o run/ | panoptile train data.yaml -o run/. "
    "The same command goes on after a kill. Exit codes: 0 done, 2 data or options cannot be used, "
    "5 RUN holds another training, 130/143 interrupted."
)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=_EPILOG)(train)


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Raster, folder or quoted pattern of rasters (with --labels or --label-classes); a COCO file (.json), "
        "panoptic or instances; or a data file (.yaml) that names any number of sources, classes and the hold-out.",
    ),
]
RunFolder = Annotated[str, typer.Option("-o", "--out", metavar="RUN", help="Folder of the run.")]
StartModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH|ID|builtin",
        help="Checkpoint to start from; default: builtin. Classes of the same name keep their weights.",
    ),
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|efficientnet-lite0",
        help="Start from a bare pretrained backbone instead: ImageNet weights (.pth) of EfficientNet-Lite0.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DIR",
        help="Polygons (GeoJSON, GeoParquet, GeoPackage), or a raster of object ids; DIR: a raster for each image, of its name.",
    ),
]
LabelClasses = Annotated[
    str | None,
    typer.Option(metavar="FILE|DIR", help="Raster of class values, 1…N; 0 is unlabelled, nodata is ignored."),
]
ClassColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column with the polygons' class.")]
ClassName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The class of all objects, where no column or class raster tells it."),
]
ClassTableFile = Annotated[
    str | None,
    typer.Option("--classes", metavar="FILE", help='Class table, JSON: [{"name": …, "is_thing": …}, …].'),
]
Stuff = Annotated[
    str | None, typer.Option(metavar="CLASS,…", help="Classes that are not countable; default: none.")
]
Ignore = Annotated[
    str | None, typer.Option(metavar="CLASS,…", help="Class values whose polygons count neither way.")
]
Unlabelled = Annotated[
    str,
    typer.Option(
        metavar="background|ignore",
        help="What pixels without label are: no object, or unknown. COCO panoptic: always unknown.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of a COCO file's images; default: the file's own folder."),
]
Masks = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Label images of a COCO panoptic file; default: its name without .json."
    ),
]
Gsd = Annotated[float | None, typer.Option(metavar="M", help="Metres per pixel; default: the rasters' own.")]
ValArea = Annotated[
    str | None,
    typer.Option(
        metavar="MINX,MINY,MAXX,MAXY|FILE", help="Area to hold out, in the rasters' CRS, or a GeoJSON file."
    ),
]
ValFraction = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of blocks (COCO: of images) to hold out; default 0.1. 0: nothing; training windows judge.",
    ),
]
Recipe = Annotated[
    str | None, typer.Option(metavar="FILE", help="YAML with training options; flags come first.")
]
Steps = Annotated[int | None, typer.Option(metavar="N", help="Optimiser steps; default 2000.")]
Batch = Annotated[
    int | None, typer.Option(metavar="N", help="Windows per forward pass and process; default 4.")
]
Accumulate = Annotated[
    int | None, typer.Option(metavar="N", help="Forward passes per optimiser step; default 1.")
]
Size = Annotated[int | None, typer.Option(metavar="PX", help="Side of a window, pixels; default 512.")]
ScaleRange = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="Random factor on the images' resolution; default 0.7,1.4."),
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", "--lr", metavar="R", help="Default 1e-4.")
]
ScheduleName = Annotated[
    str | None,
    typer.Option("--schedule", metavar="poly|step|linear", help="Of the learning rate; default poly."),
]
AmpName = Annotated[
    str | None, typer.Option("--amp", metavar="off|bf16", help="Mixed precision; the loss stays fp32.")
]
FreezeName = Annotated[
    str | None, typer.Option("--freeze", metavar="none|early|backbone", help="Weights that stay as they are.")
]
ScoreThreshold = Annotated[
    float | None, typer.Option("--score", metavar="T", help="Score threshold of the new model.")
]
ValidateEvery = Annotated[int | None, typer.Option(metavar="N", help="Steps; default 500.")]
SaveEvery = Annotated[int | None, typer.Option(metavar="N", help="Steps; default 100.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of every random choice; default 0.")]
Processes = Annotated[
    int,
    typer.Option(
        "--gpus",
        "--workers",
        metavar="N",
        help="Processes, one per GPU (or on CPUs); for several machines: torchrun … -m panoptile train …",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda", help="Where to train; auto: the GPU, where there is one.")
]
Loaders = Annotated[
    int, typer.Option(metavar="N", help="Processes that make windows ahead of time; 0: none.")
]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Torch's threads per process on a CPU.")]


def train(
    data: Data,
    out: RunFolder,
    model: StartModel = None,
    backbone: Backbone = None,
    labels: Labels = None,
    label_classes: LabelClasses = None,
    class_column: ClassColumn = None,
    class_name: ClassName = None,
    classes: ClassTableFile = None,
    stuff: Stuff = None,
    ignore: Ignore = None,
    unlabelled: Unlabelled = "background",
    images: Images = None,
    masks: Masks = None,
    gsd: Gsd = None,
    val_area: ValArea = None,
    val_fraction: ValFraction = None,
    recipe: Recipe = None,
    steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    size: Size = None,
    scale_range: ScaleRange = None,
    learning_rate: LearningRate = None,
    schedule: ScheduleName = None,
    amp: AmpName = None,
    freeze: FreezeName = None,
    score: ScoreThreshold = None,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = None,
    seed: Seed = None,
    gpus: Processes = 1,
    device: Device = "auto",
    loaders: Loaders = 0,
    threads: Threads = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fine-tune a checkpoint on labelled rasters or COCO files; RUN/best is the new model."""
    from panoptile.jobs.train_options import train_options

    console = Console(as_json=as_json, quiet=quiet)
    options = train_options(
        recipe,
        {
            "steps": steps,
            "batch": batch,
            "accumulate": accumulate,
            "size": size,
            "scale_range": None if scale_range is None else _numbers("--scale-range", scale_range, 2),
            "learning_rate": learning_rate,
            "schedule": schedule,
            "amp": amp,
            "freeze": freeze,
            "score_threshold": score,
            "validate_every": validate_every,
            "save_every": save_every,
            "seed": seed,
        },
    )
    spec = data_spec(
        data,
        labels=labels,
        label_classes=label_classes,
        class_column=class_column,
        class_name=class_name,
        classes=classes,
        stuff=names("--stuff", stuff),
        ignore=names("--ignore", ignore),
        unlabelled=unlabelled,
        images=images,
        masks=masks,
        gsd=gsd,
        val_area=val_area,
        val_fraction=val_fraction,
    )
    from panoptile.jobs.train_command import run_command

    run_command(
        spec,
        Path(out),
        options,
        model=model,
        backbone=backbone,
        processes=gpus,
        device=device,
        loaders=loaders,
        threads=threads,
        console=console,
        quiet=quiet,
    )


def data_spec(data: str, *, val_area: str | None, val_fraction: float | None, **given: Any) -> DataSpec:
    """What DATA and the options beside it mean. Raises :class:`JobError` (exit 2)."""
    import pydantic

    from panoptile.pipeline.inputs import InputError
    from panoptile.pipeline.training_spec import DataSpec, read_data_file, validation_sentence

    validation: dict[str, Any] = {}
    if val_area is not None:
        validation["area"] = val_area if Path(val_area).exists() else _numbers("--val-area", val_area, 4)
    if val_fraction is not None:
        validation["fraction"] = val_fraction
    try:
        if data.endswith((".yaml", ".yml")):
            spec = read_data_file(data)
            _refuse_beside_file(given)
            if validation:
                spec = spec.model_copy(update={"validation": type(spec.validation)(**validation)})
            return spec
        fields = _source_fields(data, given)
        classes = given["classes"]
        return DataSpec.model_validate(
            {
                "sources": (fields,),
                "classes": () if classes is None else tuple(_class_rows(classes)),
                "stuff": given["stuff"],
                "ignore": given["ignore"],
                "gsd": given["gsd"],
                "validation": validation,
            }
        )
    except pydantic.ValidationError as e:
        raise invalid(validation_sentence(e) + ".") from e
    except (InputError, ValueError) as e:
        if isinstance(e, JobError):
            raise
        raise invalid(str(e)) from e


def _source_fields(data: str, given: dict[str, Any]) -> dict[str, Any]:
    names = ("labels", "label_classes", "class_column", "class_name", "masks", "images")
    fields = {name: given[name] for name in names if given[name] is not None}
    fields["unlabelled"] = given["unlabelled"]
    if data.endswith(".json") and "labels" not in fields and "label_classes" not in fields:
        return {"images": str(Path(data).absolute().parent), **fields, "coco": data}
    if "images" in fields:
        raise invalid("--images names the images of a COCO file; rasters are DATA itself.")
    if "labels" not in fields and "label_classes" not in fields:
        raise invalid(
            f"{data} needs labels: --labels polygons.parquet or ids.tif, or --label-classes classes.tif; "
            "or give a COCO file (.json) or a data file (.yaml)."
        )
    return {"images": data, **fields}


def _class_rows(path: str) -> list[dict[str, Any]]:
    from panoptile.model.classes import ClassTable

    table = ClassTable.from_file(path)
    return [
        {"name": c.name, "thing": c.is_thing, "color": "#{:02x}{:02x}{:02x}".format(*c.color)} for c in table
    ]


def _refuse_beside_file(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value not in (None, (), "background"):
            raise invalid(f"--{name.replace('_', '-')} belongs into the data file, where DATA is one.")


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise invalid(f"{option} wants {count} numbers separated by commas, got {text!r}.")
    return values
