"""The recipe of the built-in model, and a checkpoint folder that the pipeline can load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from typer.testing import CliRunner

from panoptile.jobs import builtin_model as recipe
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.segmenter import Segmenter


def test_every_window_shows_about_a_tile() -> None:
    """A training window covers between 0.65 and 1.2 sides of the tile that the pipeline cuts by default."""
    extents = [recipe.WINDOW_SIZE / scale for scale in recipe.AUGMENTATION.scale_range]
    assert 0.65 * 512 <= min(extents) <= max(extents) <= 1.2 * 512
    assert recipe.WINDOW_SIZE * recipe.INPUT_STRIDE == 512


def test_the_exported_folder_is_a_checkpoint(tmp_path: Path) -> None:
    """Export writes the averaged weights with threshold and normalisation, under 25 MB, and a Segmenter runs them."""
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(recipe.builtin_config())
    torch.save({"step": 3, "average": model.state_dict()}, tmp_path / "checkpoint.pt")
    folder = tmp_path / "folder"
    arguments = ["export", "--run", str(tmp_path), "--to", str(folder), "--score-threshold", "0.25"]
    result = CliRunner().invoke(recipe.app, arguments)
    assert result.exit_code == 0, result.output
    assert (folder / "model.safetensors").stat().st_size < 25e6
    assert json.loads((folder / "config.json").read_text())["panoptile"]["score_threshold"] == 0.25
    segmenter = Segmenter.load(str(folder), device="cpu")
    assert json.loads((folder / "config.json").read_text())["backbone_config"]["input_stride"] == 2
    assert [c.name for c in segmenter.classes] == ["building", "tree crown", "vegetation", "ground"]
    assert segmenter.classes.thing_label_ids == {0, 1}
    assert (segmenter.rules.score_threshold, segmenter.rules.overlap_threshold) == (0.25, 0.6)
    assert segmenter.mean_pixel == (127, 127, 127)
    (found,) = segmenter.predict(np.full((1, 3, 64, 96), 120, np.uint8))
    assert found.labels.shape == (64, 96)
