"""Makes the built-in model from public data: ``python -m panoptile.jobs.builtin_model train|export|evaluate``.

``make builtin-model`` repeats the recipe behind the checkpoint in ``model/builtin``. The run folder lies outside the
source tree; a killed training continues from it when the same command is given again. No image is written into the
checkpoint's folder.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.efficientnet import (
    PIXEL_MEAN,
    PIXEL_SCALE,
    EfficientNetLite0,
    load_imagenet_backbone,
)
from panoptile.model.grid_start import grid_places, start_as_grid
from panoptile.model.loss import ImageTargets, LossWeights, Mask2FormerCriterion, PointSampling, QueryRoles
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.training import OptimiserRecipe, TrainingBatch, TrainingRun, freeze, train
from panoptile.pipeline.builtin_data import BANEPA_GSD_M, Sources, training_scenes, unpack_sources
from panoptile.pipeline.builtin_labels import CLASS_NAMES, THING_LABELS
from panoptile.pipeline.training_windows import Augmentation, WindowSampler

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)

Wheels = Annotated[Path, typer.Option(help="Folder with the deepforest and EfficientNet-Lite0 wheels.")]
Banepa = Annotated[Path, typer.Option(help="Folder with banepa_rgb_cog.tif and banepa_instances_cog.tif.")]
Run = Annotated[Path, typer.Option(help="Folder for unpacked data, checkpoints and losses.")]


WINDOWS, WINDOW_SIZE = 4, 256
"""Windows of a step, and their pixels a side."""
AUGMENTATION = Augmentation(scale_range=(0.42, 0.75))
"""A window of half the scenes' resolution shows what a tile of 512 px shows."""
INPUT_STRIDE = 2
"""What the published network averages its input by, so that a tile of 512 px looks like a training window."""
SCENE_WEIGHTS = (5.0, 5.0, 1.0)
"""How often Banepa, Yellowstone and Ordway-Swisher are drawn."""
RECIPE = OptimiserRecipe(
    learning_rate=4e-4,
    backbone_factor=0.25,
    clip_norm=0.1,
    ema_decay=0.995,
    warmup_steps=50,
    decay_share=0.3,
)
COORDINATE_FREQUENCIES = 5
"""The finest wave has 8 periods a tile: neighbours of 32 px side by side get opposite signs."""
COLORS = ("#e4572e", "#ffd23f", "#3f9b57", "#c2b8a3")
"""Of building, tree crown, vegetation and ground, for palettes and previews."""
GRID_SIDE = 10
STUFF_LABELS = tuple(i for i in range(len(CLASS_NAMES)) if i not in THING_LABELS)
PLACE_WEIGHT = 20.0
"""Matching cost of a distance of one image side; see QueryRoles."""
POINTS = 1280
"""Points per mask; the masks of a 256 px window have 4,096 pixels."""


def builtin_config(*, input_stride: int = 1) -> Mask2FormerConfig:
    """EfficientNet-Lite0 under a narrow Mask2Former; training makes its windows coarse itself, with a stride of 1."""
    return Mask2FormerConfig(
        backbone_config={
            "model_type": "efficientnet_lite0",
            "coordinate_frequencies": COORDINATE_FREQUENCIES,
            "input_stride": input_stride,
        },
        feature_size=128,
        mask_feature_size=128,
        hidden_dim=128,
        encoder_feedforward_dim=512,
        dim_feedforward=512,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_queries=GRID_SIDE**2 + len(STUFF_LABELS),
        # A third to a half of the queries have an object here; the usual 0.1 would leave many doubles for each object.
        no_object_weight=0.5,
        train_num_points=POINTS,
        id2label=dict(enumerate(CLASS_NAMES)),
        panoptile={
            "task": "panoptic",
            "thing_label_ids": list(THING_LABELS),
            "gsd_m": BANEPA_GSD_M,
            "score_threshold": 0.5,
            # Neighbouring queries still claim parts of one roof; 0.8 would drop both of them.
            "overlap_threshold": 0.6,
        },
    )


def start_run(sources: Sources, batch_of_step: Callable[[int], TrainingBatch]) -> TrainingRun:
    """The network before its first step: ImageNet weights in the backbone, the rest random."""
    torch.manual_seed(RECIPE.seed)
    config = builtin_config()
    model = Mask2FormerForUniversalSegmentation(config)
    backbone = model.model.pixel_level_module.encoder
    assert isinstance(backbone, EfficientNetLite0)
    backbone.load_state_dict(load_imagenet_backbone(str(sources.backbone)).state_dict())
    start_as_grid(model, batch_of_step(0).pixels, side=GRID_SIDE)
    # Edges and colours need no relearning, and their maps are the largest: a third of the backward pass.
    freeze([backbone.stem, backbone.stages[0], backbone.stages[1], backbone.stages[2]])
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = Mask2FormerCriterion(
        num_labels=config.num_labels,
        weights=LossWeights(
            config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight
        ),
        sampling=PointSampling(POINTS, config.oversample_ratio, config.importance_sample_ratio),
        roles=QueryRoles(grid_places(GRID_SIDE), STUFF_LABELS, PLACE_WEIGHT),
    )
    forward = functools.partial(model, output_auxiliary_logits=True)  # every layer learns
    return TrainingRun(model, criterion, RECIPE, backbone=backbone, forward=forward)


def window_batches(sources: Sources) -> Callable[[int], TrainingBatch]:
    """Batches of training windows, by step number."""
    sampler = WindowSampler(training_scenes(sources), SCENE_WEIGHTS, AUGMENTATION, seed=RECIPE.seed)

    def batch_of_step(step: int) -> TrainingBatch:
        windows = sampler.batch(step, count=WINDOWS, size=WINDOW_SIZE)
        pixels = (torch.stack([w.image for w in windows]).float() - PIXEL_MEAN) / PIXEL_SCALE
        return TrainingBatch(
            pixels.contiguous(memory_format=torch.channels_last),
            tuple(ImageTargets(w.masks, w.class_labels, w.ignored) for w in windows),
        )

    return batch_of_step


@app.command("train")
def train_command(
    wheels: Wheels,
    banepa: Banepa,
    run: Run,
    steps: Annotated[int, typer.Option(min=1, help="Length; a resumed run may be given another.")] = 2000,
) -> None:
    """Train, or go on training, until STEPS steps are done."""
    sources = unpack_sources(wheels=wheels, banepa=banepa, scratch=run / "sources")
    batch_of_step = window_batches(sources)
    training = start_run(sources, batch_of_step)
    if (run / "checkpoint.pt").exists():
        training.resume(run / "checkpoint.pt")
        typer.echo(f"Resuming at step {training.step} of {steps}.", err=True)
    train(training, batch_of_step, steps=steps, folder=run, save_every=50)


def averaged_model(checkpoint: Path) -> tuple[Mask2FormerForUniversalSegmentation, int]:
    """The network with the averaged weights of a training checkpoint, and the steps behind it."""
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Mask2FormerForUniversalSegmentation(builtin_config(input_stride=INPUT_STRIDE))
    model.load_state_dict(state["average"])
    return model.eval(), int(state["step"])


@app.command()
def export(
    run: Run,
    to: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Default score threshold.")] = 0.5,
) -> None:
    """Write the averaged weights of the run as a checkpoint folder."""
    model, steps = averaged_model(run / "checkpoint.pt")
    assert model.config.panoptile is not None
    model.config.panoptile["score_threshold"] = score_threshold
    model.config.panoptile["colors"] = list(COLORS)
    model.save_pretrained(to)
    processor = {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN / 255] * 3,
        "image_std": [PIXEL_SCALE / 255] * 3,
        "size_divisor": 32,
        "num_labels": model.config.num_labels,
    }
    (to / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"{to}: averaged weights of step {steps}.")


@app.command()
def evaluate(
    wheels: Wheels,
    banepa: Banepa,
    run: Run,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder to judge.")],
    score: Annotated[float | None, typer.Option(help="Score threshold instead of the checkpoint's.")] = None,
) -> None:
    """Print the figures of a checkpoint on the held-out scenes, one JSON object a line."""
    from panoptile.jobs.builtin_scores import held_out_figures

    sources = unpack_sources(wheels=wheels, banepa=banepa, scratch=run / "sources")
    with tempfile.TemporaryDirectory(prefix="panoptile-held-out-") as scratch:
        for figures in held_out_figures(checkpoint, sources, scratch=Path(scratch), score=score):
            typer.echo(json.dumps(figures.row()))


if __name__ == "__main__":
    app()
