"""The recipe of the built-in model: phases, and a checkpoint folder that the pipeline can load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from typer.testing import CliRunner

from panoptile.jobs import builtin_model as recipe
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.segmenter import Segmenter


def test_phases_follow_each_other_and_fill_the_run() -> None:
    """Every step has a phase, phases never go back, and each lasts its share of the steps."""
    phases = [recipe.phase_of_step(step, 200) for step in range(200)]
    assert phases == sorted(phases)
    assert [phases.count(i) for i in range(len(recipe.PHASES))] == [
        round(200 * p.share) for p in recipe.PHASES
    ]


def test_every_window_shows_about_a_tile() -> None:
    """A window of any phase covers between 0.6 and 1.2 sides of the tile that the pipeline cuts by default."""
    for phase in recipe.PHASES:
        extents = [phase.size / scale for scale in phase.scale_range]
        assert 0.6 * 512 <= min(extents) <= max(extents) <= 1.2 * 512


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
    assert [c.name for c in segmenter.classes] == ["building", "tree crown", "vegetation", "ground"]
    assert segmenter.classes.thing_label_ids == {0, 1}
    assert segmenter.mean_pixel == (127, 127, 127)
    (found,) = segmenter.predict(np.full((1, 3, 64, 96), 120, np.uint8))
    assert found.labels.shape == (64, 96)
