"""Makes the built-in model from public data: ``python -m panoptile.jobs.builtin_model train|export|evaluate``.

``make builtin-model`` repeats the recipe behind the checkpoint in ``model/builtin`` with the code of
``panoptile train``; only the data is special, because most of its labels nobody drew (see ``pipeline/builtin_data.py``).
The run folder lies outside the source tree; a killed training continues from it when the same command is given again.
No image is written into the checkpoint's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from panoptile.jobs.console import Console
from panoptile.jobs.exits import JobError
from panoptile.jobs.train import Training, check_folder, identity, summary_fields, summary_text
from panoptile.jobs.train_engine import launched_engine
from panoptile.jobs.train_options import TrainOptions, train_options
from panoptile.model.classes import ClassTable
from panoptile.pipeline.builtin_data import (
    BANEPA_GSD_M,
    Sources,
    training_scenes,
    unpack_sources,
    validation_scenes,
)
from panoptile.pipeline.builtin_labels import CLASS_NAMES, THING_LABELS
from panoptile.pipeline.label_report import LabelReport
from panoptile.pipeline.training_data import TrainingData
from panoptile.pipeline.training_split import validation_windows

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)

Wheels = Annotated[Path, typer.Option(help="Folder with the deepforest and EfficientNet-Lite0 wheels.")]
Banepa = Annotated[Path, typer.Option(help="Folder with banepa_rgb_cog.tif and banepa_instances_cog.tif.")]
Run = Annotated[Path, typer.Option(help="Folder for unpacked data, checkpoints and losses.")]

RECIPE = Path(__file__).with_name("builtin_recipe.yaml")
SCENE_WEIGHTS = (5.0, 5.0, 1.0)
"""How often Banepa, Yellowstone and Ordway-Swisher are drawn."""
COLORS = ("#e4572e", "#ffd23f", "#3f9b57", "#c2b8a3")
"""Of building, tree crown, vegetation and ground, for palettes and previews."""


def recipe(**changes: Any) -> TrainOptions:
    """The recipe file, with a few options changed."""
    return train_options(str(RECIPE), changes)


def builtin_classes() -> ClassTable:
    """Building and tree crown as things, vegetation and ground as stuff."""
    return ClassTable.from_names(list(CLASS_NAMES), frozenset(THING_LABELS), COLORS)


def builtin_training_data(sources: Sources, options: TrainOptions) -> TrainingData:
    """The scenes that are learnt from, and the windows that choose settings; nothing of the hold-out."""
    scenes = training_scenes(sources)
    judges = [
        window
        for scene in validation_scenes(sources)
        for window in validation_windows(scene, [(0, 0, *scene.shape)], extent=options.size)
    ]
    objects = sum(len(set(scene.ids.ravel().tolist()) - {0}) for scene in scenes)
    files = sorted([*sources.banepa.glob("*_cog.tif"), *sources.neon.iterdir()])
    return TrainingData(
        scenes,
        SCENE_WEIGHTS,
        tuple(judges),
        True,
        builtin_classes(),
        BANEPA_GSD_M,
        LabelReport(found=objects, used=objects),
        tuple((path.name, path.stat().st_size, 0) for path in files),
    )


@app.command("train")
def train_command(
    wheels: Wheels,
    banepa: Banepa,
    run: Run,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
) -> None:
    """Train, or go on training, until the recipe's steps are done."""
    console = Console()
    options = recipe(steps=steps)
    sources = unpack_sources(wheels=wheels, banepa=banepa, scratch=run / "sources")
    data = builtin_training_data(sources, options)
    backbone = str(sources.backbone)
    mine = identity(
        options, data, data_spec={"scenes": "builtin"}, model=None, backbone=backbone, processes=1
    )
    try:
        check_folder(run, mine)
        training = Training(
            run, options, data, model=None, backbone=backbone, engine=launched_engine(device), console=console
        )
        summary = training.go(mine)
    except JobError as e:
        console.error(str(e))
        raise typer.Exit(int(e.code)) from e
    console.data(summary_text(summary), summary_fields(summary))


@app.command()
def export(
    run: Run,
    to: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    which: Annotated[str, typer.Option(help="best (by validation PQ) or last.")] = "best",
) -> None:
    """Copy the averaged weights of the run into a checkpoint folder."""
    to.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        scratch = to / f"{name}.partial"
        shutil.copyfile(run / which / name, scratch)
        os.replace(scratch, to / name)
    typer.echo(f"{to}: the {which} weights of {run}.")


@app.command()
def evaluate(
    wheels: Wheels,
    banepa: Banepa,
    run: Run,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder to judge.")],
    score: Annotated[float | None, typer.Option(help="Score threshold instead of the checkpoint's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print the figures of a checkpoint on the held-out scenes, by the pipeline that users run."""
    from panoptile.jobs.builtin_scores import figures_fields, figures_text, held_out_figures

    sources = unpack_sources(wheels=wheels, banepa=banepa, scratch=run / "sources")
    with tempfile.TemporaryDirectory(prefix="panoptile-held-out-") as scratch:
        figures = held_out_figures(checkpoint, sources, scratch=Path(scratch), score=score)
    typer.echo(json.dumps(figures_fields(figures)) if as_json else figures_text(figures))


if __name__ == "__main__":
    app()
