"""The training step: resumption, groups, accumulation, average and precision, on a network of a few hundred weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.loss import ImageTargets, LossTotals, Mask2FormerCriterion, PointSampling
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.training import (
    OptimiserRecipe,
    TrainingBatch,
    TrainingRun,
    keep_fp32,
    keep_norm_statistics,
    parameter_groups,
)

RECIPE = OptimiserRecipe(
    learning_rate=0.02, clip_norm=1.0, warmup_steps=3, ema_decay=0.9, schedule="linear", seed=4
)
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
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.queries = nn.Embedding(6, 8)
        self.classes = nn.Linear(8, 3)

    def forward(self, pixels: Tensor, *, output_auxiliary_logits: bool = False) -> Outputs:
        features = self.backbone(pixels)
        masks = torch.einsum("qc,bchw->bqhw", self.queries.weight, features)
        classes = self.classes(self.queries.weight + features.mean(dim=(2, 3))[:, None])
        auxiliary = [{"class_queries_logits": classes, "masks_queries_logits": 0.5 * masks}]
        return Outputs(classes, masks, auxiliary if output_auxiliary_logits else [])


def on_a_lattice(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Points that do not depend on how many masks there are, nor on chance."""
    masks, points, _ = shape
    k = torch.arange(points)
    one = torch.stack([(k * 0.6180339887) % 1, (k * 0.7548776662) % 1], dim=1)
    return one.expand(masks, -1, -1)


def some_run(recipe: OptimiserRecipe = RECIPE, *, lattice: bool = False) -> TrainingRun:
    torch.manual_seed(0)
    model = TinyNetwork()
    criterion = Mask2FormerCriterion(num_labels=2, sampling=PointSampling(points=64))
    if lattice:
        criterion.random_uniform = on_a_lattice
    return TrainingRun(model, criterion, recipe, backbone=model.backbone)


def bright_and_dark_halves(step: int) -> list[TrainingBatch]:
    """Two images with a bright object on one side, which side depends on the step."""
    pixels = torch.full((2, 3, 16, 16), -1.0)
    targets = []
    for i in range(2):
        bright = torch.zeros(16, 16, dtype=torch.bool)
        bright[:, :8] = (step + i) % 2 == 0
        bright[:, 8:] = (step + i) % 2 == 1
        pixels[i, :, bright] = 1.0
        targets.append(ImageTargets(torch.stack([bright, ~bright]), torch.tensor([0, 1])))
    return [TrainingBatch(pixels, tuple(targets))]


def losses(run: TrainingRun, steps: range) -> list[float]:
    return [run.take_step(bright_and_dark_halves(step), steps=STEPS)["loss"] for step in steps]


@pytest.mark.parametrize("stopped_at", [4, 7])
def test_a_resumed_run_has_the_same_losses(tmp_path: Path, stopped_at: int) -> None:
    """Saved at any step and resumed, a run has bit for bit the losses and averages of one that was never stopped."""
    whole = some_run()
    expected = losses(whole, range(STEPS))
    first = some_run()
    found = losses(first, range(stopped_at))
    first.save(tmp_path / "state.pt", best_pq=0.25)
    resumed = some_run()
    assert resumed.resume(tmp_path / "state.pt") == {"best_pq": 0.25}
    assert resumed.step == stopped_at
    assert found + losses(resumed, range(stopped_at, STEPS)) == expected
    assert all(torch.equal(resumed.average.weights[n], v) for n, v in whole.average.weights.items())


def test_training_lowers_the_loss() -> None:
    """On two separable halves the loss falls to less than half of where it started."""
    run = some_run()
    curve = [run.take_step(bright_and_dark_halves(step), steps=60)["loss"] for step in range(60)]
    assert curve[-1] < 0.5 * curve[0]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    """Resuming with another learning rate stops with both values."""
    some_run().save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"learning_rate: 0\.02 there, 0\.5 here"):
        some_run(OptimiserRecipe(learning_rate=0.5)).resume(tmp_path / "state.pt")


def test_accumulated_batches_are_one_large_batch() -> None:
    """Two batches of unlike many objects, accumulated, move the weights as one batch of all their images does."""
    (batch,) = bright_and_dark_halves(0)
    few = ImageTargets(batch.targets[1].masks[:1], batch.targets[1].class_labels[:1])
    parts = [TrainingBatch(batch.pixels[i : i + 1], (t,)) for i, t in enumerate((batch.targets[0], few))]
    whole = [TrainingBatch(batch.pixels, (batch.targets[0], few))]
    runs = []
    for batches in (parts, whole):
        run = some_run(lattice=True)
        rows = [run.take_step(batches, steps=STEPS) for _ in range(3)]
        runs.append((run, rows))
    (split, split_rows), (joint, joint_rows) = runs
    for a, b in zip(split_rows, joint_rows, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for a_value, b_value in zip(split.model.parameters(), joint.model.parameters(), strict=True):
        # AdamW divides by the gradient's size, so last-bit differences grow where a gradient is nearly 0.
        torch.testing.assert_close(a_value, b_value, rtol=1e-4, atol=2e-5)


def test_totals_are_those_of_the_weighted_mean() -> None:
    """The divisor of the class term is the sum of weights that a weighted mean would use, with more objects than queries too."""
    masks = torch.zeros(9, 4, 4)
    targets = [ImageTargets(masks[:n], torch.zeros(n, dtype=torch.int64)) for n in (0, 2, 9)]
    totals = LossTotals.of(targets, queries=6, no_object=0.1)
    assert totals.objects == 11
    assert totals.class_weight == pytest.approx((0 + 2 + 6) + 0.1 * (6 + 4 + 0))


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


def test_groups_of_a_whole_network() -> None:
    """Of a Swin Mask2Former every parameter is in one group; position tables and level embeddings have no decay."""
    config = Mask2FormerConfig(
        backbone_config={"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
        feature_size=32, mask_feature_size=16, hidden_dim=16, encoder_feedforward_dim=16, encoder_layers=1,
        decoder_layers=3, num_attention_heads=2, dim_feedforward=16, num_queries=5,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    backbone = model.model.pixel_level_module.encoder
    groups = parameter_groups(model, OptimiserRecipe(), backbone=backbone)
    names = {id(p): name for name, p in model.named_parameters()}
    of_group = {
        (group["lr"], group["weight_decay"]): {names[id(p)] for p in group["params"]} for group in groups
    }
    assert set(of_group) == {(1e-5, 0.05), (1e-5, 0.0), (1e-4, 0.05), (1e-4, 0.0)}
    assert sum(map(len, of_group.values())) == len(names)
    decayed = of_group[(1e-5, 0.05)] | of_group[(1e-4, 0.05)]
    assert not [
        name
        for name in decayed
        if "norm" in name or "embed.weight" in name or "bias" in name or name.endswith("level_embed")
    ]
    plain = of_group[(1e-4, 0.0)]
    assert "model.transformer_module.queries_embedder.weight" in plain
    assert "model.pixel_level_module.decoder.level_embed" in plain
    tables = {name for name in of_group[(1e-5, 0.0)] if name.endswith("relative_position_bias_table")}
    assert len(tables) == 4
    assert "class_predictor.weight" in of_group[(1e-4, 0.05)]


def test_norm_statistics_stay_those_of_the_pretraining() -> None:
    """A training step leaves running means and variances of batch norms alone."""
    run = some_run()
    norm = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    losses(run, range(2))
    assert torch.equal(norm.running_mean, before)
    run.model.train()
    keep_norm_statistics(run.model)
    assert not norm.training


def test_bf16_trains_beside_fp32() -> None:
    """Under bf16 autocast the weights stay fp32, the losses come near those of fp32, and training lowers them."""
    exact = losses(some_run(), range(STEPS))
    rough = losses(some_run(replace(RECIPE, amp="bf16")), range(STEPS))
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.1)
    run = some_run(replace(RECIPE, amp="bf16"))
    losses(run, range(1))
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_a_module_can_be_kept_in_fp32() -> None:
    """Inside autocast, a module that is kept takes half-precision inputs, lists of them too, and answers in fp32."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, values: list[Tensor]) -> Tensor:
            summed: Tensor = self.linear(values[0] + values[1])
            return summed

    module = Sum()
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert module([x, x]).dtype == torch.bfloat16
        keep_fp32(module)
        assert module([x.bfloat16(), x]).dtype == torch.float32


def test_a_diverging_run_stops_at_the_step() -> None:
    """A loss that is not finite ends the run with its step before it reaches the weights."""
    run = some_run()
    (batch,) = bright_and_dark_halves(0)
    broken = TrainingBatch(batch.pixels * float("inf"), batch.targets)
    with pytest.raises(FloatingPointError, match="step 0"):
        run.take_step([broken], steps=STEPS)
