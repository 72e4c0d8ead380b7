"""The training loop: resumption, schedule, groups and average, on a network of a few hundred weights."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from panoptile.model.loss import ImageTargets, Mask2FormerCriterion, PointSampling
from panoptile.model.training import (
    OptimiserRecipe,
    TrainingBatch,
    TrainingRun,
    learning_rate_factor,
    parameter_groups,
    train,
)

RECIPE = OptimiserRecipe(learning_rate=0.02, clip_norm=1.0, warmup_steps=3, ema_decay=0.9, seed=4)
STEPS = 12


@dataclass
class Outputs:
    class_queries_logits: Tensor
    masks_queries_logits: Tensor
    auxiliary_logits: list[dict[str, Tensor]]


class TinyNetwork(nn.Module):
    """Queries times a map of features: the shape of a Mask2Former without its transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8).eval(), nn.ReLU())
        self.queries = nn.Embedding(6, 8)
        self.classes = nn.Linear(8, 3)

    def forward(self, pixels: Tensor) -> Outputs:
        features = self.backbone(pixels)
        masks = torch.einsum("qc,bchw->bqhw", self.queries.weight, features)
        classes = self.classes(self.queries.weight + features.mean(dim=(2, 3))[:, None])
        return Outputs(
            classes, masks, [{"class_queries_logits": classes, "masks_queries_logits": 0.5 * masks}]
        )


def some_run(recipe: OptimiserRecipe = RECIPE) -> TrainingRun:
    torch.manual_seed(0)
    model = TinyNetwork()
    criterion = Mask2FormerCriterion(num_labels=2, sampling=PointSampling(points=64))
    return TrainingRun(model, criterion, recipe, backbone=model.backbone)


def bright_and_dark_halves(step: int) -> TrainingBatch:
    """Two images with a bright object on one side, which side depends on the step."""
    pixels = torch.full((2, 3, 16, 16), -1.0)
    targets = []
    for i in range(2):
        bright = torch.zeros(16, 16, dtype=torch.bool)
        bright[:, :8] = (step + i) % 2 == 0
        bright[:, 8:] = (step + i) % 2 == 1
        pixels[i, :, bright] = 1.0
        targets.append(ImageTargets(torch.stack([bright, ~bright]), torch.tensor([0, 1])))
    return TrainingBatch(pixels, tuple(targets))


def losses_in(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.parametrize("killed_at", [4, 7])
def test_a_killed_run_resumes_to_the_same_losses(tmp_path: Path, killed_at: int) -> None:
    """Killed between checkpoints and resumed, a run logs bit for bit the losses of one that was never stopped."""
    train(some_run(), bright_and_dark_halves, steps=STEPS, folder=tmp_path / "whole", save_every=3)

    class Killed(Exception):
        pass

    def batches_until_killed(step: int) -> TrainingBatch:
        if step == killed_at:
            raise Killed
        return bright_and_dark_halves(step)

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        train(some_run(), batches_until_killed, steps=STEPS, folder=folder, save_every=3)
    resumed = some_run()
    resumed.resume(folder / "checkpoint.pt")
    assert resumed.step == killed_at // 3 * 3
    train(resumed, bright_and_dark_halves, steps=STEPS, folder=folder, save_every=3)
    assert losses_in(folder) == losses_in(tmp_path / "whole")
    whole = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(resumed.average[name], value) for name, value in whole["average"].items())


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """On two separable halves the loss falls to less than half of where it started."""
    train(some_run(), bright_and_dark_halves, steps=60, folder=tmp_path, save_every=60)
    losses = losses_in(tmp_path)
    assert losses[60] < 0.5 * losses[1]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    """Resuming with another learning rate stops with both values."""
    some_run().save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"learning_rate: 0\.02 there, 0\.5 here"):
        some_run(OptimiserRecipe(learning_rate=0.5)).resume(tmp_path / "checkpoint.pt")


def test_the_schedule_rises_stays_and_falls_to_zero() -> None:
    """Warm-up to 1, constant, linear to 0; lengthening a run leaves its constant part as it was."""
    recipe = OptimiserRecipe(warmup_steps=10, decay_share=0.25)
    factors = [learning_rate_factor(step, steps=100, recipe=recipe) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:76] == [1.0] * 67
    assert factors[100] == 0.0
    assert all(a > b for a, b in itertools.pairwise(factors[75:]))
    longer = [learning_rate_factor(step, steps=300, recipe=recipe) for step in range(75)]
    assert longer == factors[:75]


def test_groups_slow_the_backbone_and_spare_norms_from_decay() -> None:
    """Each trained parameter is in one group; norms, biases and embeddings have no decay."""
    model = TinyNetwork()
    model.classes.bias.requires_grad_(False)
    groups = parameter_groups(model, RECIPE, backbone=model.backbone)
    found = {
        id(p): (group["lr"], group["weight_decay"], len(group["params"]))
        for group in groups
        for p in group["params"]
    }
    slow, fast = RECIPE.learning_rate * RECIPE.backbone_factor, RECIPE.learning_rate
    conv, norm, _ = model.backbone
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert found[id(conv.weight)][:2] == (slow, 0.05)
    assert found[id(norm.weight)][:2] == found[id(conv.bias)][:2] == (slow, 0.0)
    assert found[id(model.queries.weight)][:2] == (fast, 0.0)
    assert found[id(model.classes.weight)][:2] == (fast, 0.05)
    assert id(model.classes.bias) not in found
    assert sum(len(group["params"]) for group in groups) == 6


def test_a_diverging_run_stops_at_the_step() -> None:
    """A loss that is not finite ends the run with its step before it reaches the weights."""
    run = some_run()
    batch = bright_and_dark_halves(0)
    broken = TrainingBatch(batch.pixels * float("inf"), batch.targets)
    with pytest.raises(FloatingPointError, match="step 0"):
        run.take_step(broken, steps=STEPS)
