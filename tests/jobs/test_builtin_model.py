"""The recipe of the built-in model, and a checkpoint folder that the pipeline can load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from panoptile.jobs import builtin_model
from panoptile.jobs.builtin_scores import SceneFigures, figures_fields, figures_text
from panoptile.jobs.train_start import _start, write_checkpoint
from panoptile.model.checkpoint import Normalisation
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.segmenter import Segmenter
from panoptile.model.small_config import small_config
from panoptile.pipeline.object_scores import ObjectScores


def test_every_window_shows_about_a_tile() -> None:
    """A training window covers between 0.65 and 1.2 sides of the tile that the pipeline cuts by default."""
    options = builtin_model.recipe()
    extents = [options.size / scale for scale in options.scale_range]
    assert 0.65 * 512 <= min(extents) <= max(extents) <= 1.2 * 512
    assert options.size == 512


def test_the_exported_folder_is_a_checkpoint(tmp_path: Path) -> None:
    """What a run keeps and export copies is under 25 MB, has thresholds and normalisation, and a Segmenter runs it."""
    torch.manual_seed(0)
    classes = builtin_model.builtin_classes()
    config = small_config(classes, grid_side=10, input_stride=2)
    model = Mask2FormerForUniversalSegmentation(config)
    start = _start(model, Normalisation(1 / 255, (127 / 255,) * 3, (128 / 255,) * 3), classes, [])
    write_checkpoint(tmp_path / "run" / "best", start, model.state_dict())
    folder = tmp_path / "folder"
    arguments = ["export", "--run", str(tmp_path / "run"), "--to", str(folder)]
    result = CliRunner().invoke(builtin_model.app, arguments)
    assert result.exit_code == 0, result.output
    assert (folder / "model.safetensors").stat().st_size < 25e6
    assert len(load_file(folder / "model.safetensors")) > 100
    assert json.loads((folder / "config.json").read_text())["backbone_config"]["input_stride"] == 2
    segmenter = Segmenter.load(str(folder), device="cpu")
    assert [c.name for c in segmenter.classes] == ["building", "tree crown", "vegetation", "ground"]
    assert segmenter.classes.thing_label_ids == {0, 1}
    assert (segmenter.rules.score_threshold, segmenter.rules.overlap_threshold) == (0.5, 0.6)
    assert segmenter.mean_pixel == (127, 127, 127)
    (found,) = segmenter.predict(np.full((1, 3, 64, 96), 120, np.uint8))
    assert found.labels.shape == (64, 96)


def test_held_out_figures_are_printed_together() -> None:
    """Buildings with their PQ, crowns of all scenes together, and the mean IoU of stuff."""
    figures = [
        SceneFigures("town", "building", "mask IoU > 0.5", ObjectScores(6, 2, 2, 4.8), {"ground": 0.5}),
        SceneFigures("wood", "tree crown", "box IoU >= 0.4", ObjectScores(3, 1, 0, 2.0), {"ground": 0.7}),
        SceneFigures("park", "tree crown", "box IoU >= 0.4", ObjectScores(1, 3, 4, 0.5), {"ground": 0.9}),
    ]
    fields = figures_fields(figures)
    assert fields["crowns"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert abs(float(fields["stuff_miou"]) - 0.7) < 1e-12  # type: ignore[arg-type]
    text = figures_text(figures)
    assert "0.600  0.750  0.750 0.750  6/2/2" in text
    assert "crowns of all scenes: precision 0.500, recall 0.500, F1 0.500; stuff mIoU 0.700" in text
