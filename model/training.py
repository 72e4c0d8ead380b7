"""The training loop: the paper's optimiser groups, a schedule that can be lengthened, EMA, and exact resumption.

Nothing here knows where windows come from: a step asks a callable for its batch, by number. Every random choice of
a step hangs on the run's seed and the step's number, so that a run that was killed and resumed computes the same
losses as one that was not. The schedule is warm-up, constant, linear decay to zero: before the decay has begun, a
resumed run may be given another length without having wasted a step.

Letters in shapes: ``B`` images, ``C`` channels, ``H W`` pixels.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panoptile.model.loss import ImageTargets, LayerLosses, Mask2FormerCriterion


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What one step learns from."""

    pixels: Tensor
    """Normalised as the network wants them, float32 (B, C, H, W)."""
    targets: tuple[ImageTargets, ...]
    """One per image, on the same grid."""


@dataclass(frozen=True, slots=True)
class OptimiserRecipe:
    """How the weights are moved; the defaults are the paper's for batches of 16."""

    learning_rate: float = 1e-4
    backbone_factor: float = 0.1
    """Learning rate of the backbone relative to the rest."""
    weight_decay: float = 0.05
    clip_norm: float = 0.01
    """Largest norm of the gradient of all parameters together."""
    ema_decay: float = 0.998
    """Decay of the moving average of the weights, which is what gets published."""
    warmup_steps: int = 100
    decay_share: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    seed: int = 0


def learning_rate_factor(step: int, *, steps: int, recipe: OptimiserRecipe) -> float:
    """Factor on the learning rate of ``step`` (from 0) in a run of ``steps``: warm-up, 1, linear decay."""
    rising = (step + 1) / max(recipe.warmup_steps, 1)
    falling = (steps - step) / max(recipe.decay_share * steps, 1)
    return max(min(rising, 1.0, falling), 0.0)


def parameter_groups(
    model: nn.Module, recipe: OptimiserRecipe, *, backbone: nn.Module
) -> list[dict[str, Any]]:
    """Optimiser groups: the backbone slower than the rest; no decay on norms, biases, embeddings and their like."""
    in_backbone = {id(p) for p in backbone.parameters()}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            plain = parameter.ndim > 1 and not isinstance(module, nn.Embedding) and not name.endswith("embed")
            decay = recipe.weight_decay if plain else 0.0
            factor = recipe.backbone_factor if id(parameter) in in_backbone else 1.0
            group = groups.setdefault((recipe.learning_rate * factor, decay), [])
            if not any(parameter is known for known in group):
                group.append(parameter)
    return [
        {"params": params, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), params in groups.items()
    ]


def layer_logits(outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Class and mask logits of all decoder layers, the last one last, from a Mask2Former's outputs."""
    auxiliary = list(outputs.auxiliary_logits or ())
    return (
        [*(layer["class_queries_logits"] for layer in auxiliary), outputs.class_queries_logits],
        [*(layer["masks_queries_logits"] for layer in auxiliary), outputs.masks_queries_logits],
    )


class TrainingRun:
    """A network in training with its optimiser, its average and its step; saves to and resumes from one file."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Mask2FormerCriterion,
        recipe: OptimiserRecipe,
        *,
        backbone: nn.Module,
        forward: Callable[[Tensor], Any] | None = None,
    ) -> None:
        """``forward`` maps pixels to outputs with the logits of all layers; by default ``model`` itself."""
        self.model = model
        self.criterion = criterion
        self.recipe = recipe
        self.forward = forward or model
        self.step = 0
        self.optimiser = torch.optim.AdamW(parameter_groups(model, recipe, backbone=backbone), fused=True)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def take_step(self, batch: TrainingBatch, *, steps: int) -> dict[str, float]:
        """One optimiser step of a run of ``steps``; returns what is worth logging."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        factor = learning_rate_factor(self.step, steps=steps, recipe=self.recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.model.train()
        losses = self.criterion(*layer_logits(self.forward(batch.pixels)), batch.targets)
        if not bool(losses.total.isfinite()):
            raise FloatingPointError(f"The loss of step {self.step} is {float(losses.total.detach())}.")
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self._trained(), self.recipe.clip_norm)
        self.optimiser.step()
        self._update_average()
        self.step += 1
        return _log_row(losses, step=self.step, norm=float(norm), factor=factor)

    def save(self, path: Path) -> None:
        """Write everything that :meth:`resume` needs, whole or not at all."""
        state = {
            "step": self.step,
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        scratch = path.with_name(path.name + ".partial")
        torch.save(state, scratch)
        os.replace(scratch, path)

    def resume(self, path: Path) -> None:
        """Continue from a file of :meth:`save`; refuses one that was made with another recipe."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        mine = asdict(self.recipe)
        changed = [
            f"{k}: {v} there, {mine.get(k)} here" for k, v in state["recipe"].items() if mine.get(k) != v
        ]
        if changed:
            raise ValueError(
                f"{path} was made with another recipe ({'; '.join(changed)}): use another folder."
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.step = state["step"]

    def _trained(self) -> Iterator[Tensor]:
        return (p for group in self.optimiser.param_groups for p in group["params"])

    @torch.no_grad()
    def _update_average(self) -> None:
        # A young average forgets its random start quickly: without this, short runs publish their first weights.
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        now = self.model.state_dict()
        moving = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in moving], [now[n] for n in moving], 1 - decay)


def _log_row(losses: LayerLosses, *, step: int, norm: float, factor: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": float(losses.total.detach()),
        "class_last": float(losses.classes[-1].detach()),
        "mask_last": float(losses.mask[-1].detach()),
        "dice_last": float(losses.dice[-1].detach()),
        "gradient_norm": norm,
        "rate_factor": factor,
    }


def train(
    run: TrainingRun,
    batch_of_step: Callable[[int], TrainingBatch],
    *,
    steps: int,
    folder: Path,
    save_every: int = 100,
    after_save: Callable[[TrainingRun], None] | None = None,
) -> None:
    """Train until ``steps`` steps are done, from wherever ``run`` stands.

    Appends a row per step to ``folder/losses.jsonl`` and keeps ``folder/checkpoint.pt``, from which a later process
    resumes; rows of steps that were done again after a kill come twice, the later one counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "losses.jsonl").open("a", encoding="utf-8", buffering=1) as log:
        while run.step < steps:
            started = time.monotonic()
            row = run.take_step(batch_of_step(run.step), steps=steps)
            log.write(json.dumps({**row, "seconds": round(time.monotonic() - started, 3)}) + "\n")
            if run.step % save_every == 0 or run.step == steps:
                run.save(folder / "checkpoint.pt")
                if after_save is not None:
                    after_save(run)


def freeze(modules: Sequence[nn.Module]) -> None:
    """Take modules out of training; what only they lead to costs no backward pass."""
    for module in modules:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
