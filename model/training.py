"""The training step: the paper's optimiser groups, accumulation, several processes, bf16, averaging, resumption.

Nothing here knows where windows come from. Every random choice of a step hangs on the run's seed, the step's number
and the process, so that a run that was killed and resumed computes the same losses as one that was not. The gradient
of a step is that of one large batch, however it is split into batches and processes, because each part's loss is
divided by the totals of all parts (:class:`~panoptile.model.loss.LossTotals`).

Letters in shapes: ``B`` images, ``C`` channels, ``H W`` pixels, ``L`` layers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from panoptile.model.ema import WeightAverage
from panoptile.model.loss import ImageTargets, LayerLosses, LossTotals, Mask2FormerCriterion
from panoptile.model.schedule import Schedule, learning_rate_factor

Amp = Literal["off", "bf16"]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What goes through the network at once."""

    pixels: Tensor
    """Normalised as the network wants them, float32 (B, C, H, W)."""
    targets: tuple[ImageTargets, ...]
    """One per image, on the same grid."""

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch on a device."""
        return TrainingBatch(
            self.pixels.to(device, non_blocking=True),
            tuple(
                ImageTargets(
                    t.masks.to(device, non_blocking=True),
                    t.class_labels.to(device, non_blocking=True),
                    None if t.ignored is None else t.ignored.to(device, non_blocking=True),
                )
                for t in self.targets
            ),
        )


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
    schedule: Schedule = "poly"
    warmup_steps: int = 100
    decay_share: float = 0.3
    """Of the linear schedule: share of the steps, at the end, over which the learning rate falls to zero."""
    amp: Amp = "off"
    """bf16: backbone and transformer decoder under autocast; pixel decoder, matching and losses stay fp32."""
    seed: int = 0


class Engine(Protocol):
    """What several processes do together; :class:`OneProcess` does nothing."""

    @property
    def rank(self) -> int: ...

    @property
    def processes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over the processes."""

    def without_exchange(self, network: nn.Module) -> AbstractContextManager[None]:
        """Backward passes in here keep their gradients for themselves."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a small tensor over the processes."""


@dataclass(frozen=True, slots=True)
class OneProcess:
    """The engine of a run in one process."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    processes: int = 1

    def wrap(self, network: nn.Module) -> nn.Module:
        return network

    def without_exchange(self, network: nn.Module) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        return values


def parameter_groups(
    model: nn.Module, recipe: OptimiserRecipe, *, backbone: nn.Module
) -> list[dict[str, Any]]:
    """Optimiser groups: the backbone slower than the rest; no decay on norms, embeddings and their like.

    Biases are not decayed either (the paper does; it makes no difference that anyone has measured).
    """
    in_backbone = {id(p) for p in backbone.parameters()}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_table = isinstance(module, nn.Embedding) or name.endswith(("embed", "position_bias_table"))
            decay = recipe.weight_decay if parameter.ndim > 1 and not is_table else 0.0
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


class LayerLogits(nn.Module):
    """A network whose forward pass gives plain lists of logits, under autocast if asked."""

    def __init__(self, model: nn.Module, *, amp: Amp) -> None:
        super().__init__()
        self.model = model
        self.amp = amp

    def forward(self, pixels_BCHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        with torch.autocast(pixels_BCHW.device.type, torch.bfloat16, enabled=self.amp == "bf16"):
            return layer_logits(self.model(pixels_BCHW, output_auxiliary_logits=True))


def keep_fp32(module: nn.Module) -> None:
    """Run a module in fp32 even under autocast."""
    forward = module.forward

    def run(*inputs: Any) -> Any:
        floats = [_as_fp32(value) for value in inputs]
        with torch.autocast(_device_type(floats), enabled=False):
            return forward(*floats)

    module.forward = run


def _as_fp32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return [_as_fp32(v) for v in value] if isinstance(value, list | tuple) else value


def _device_type(values: list[Any]) -> str:
    first = values[0][0] if isinstance(values[0], list) else values[0]
    return str(first.device.type)


class TrainingRun:
    """A network in training with its optimiser, its average and its step; saves to and resumes from one file."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Mask2FormerCriterion,
        recipe: OptimiserRecipe,
        *,
        backbone: nn.Module,
        engine: Engine | None = None,
    ) -> None:
        """``model(pixels, output_auxiliary_logits=True)`` gives outputs with the logits of all layers."""
        self.engine = engine or OneProcess()
        self.model = model.to(self.engine.device)
        self.criterion = criterion.to(self.engine.device)
        self.recipe = recipe
        self.step = 0
        groups = parameter_groups(model, recipe, backbone=backbone)
        self.optimiser = torch.optim.AdamW(groups, fused=True)
        self.average = WeightAverage(model, decay=recipe.ema_decay)
        self._network = self.engine.wrap(LayerLogits(model, amp=recipe.amp))

    def take_step(self, batches: Sequence[TrainingBatch], *, steps: int) -> dict[str, float]:
        """One optimiser step of a run of ``steps`` on all of ``batches`` (of this process); what is worth logging."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + self.step + 7_919_000_003 * self.engine.rank)
        factor = learning_rate_factor(
            self.step,
            steps=steps,
            schedule=recipe.schedule,
            warmup_steps=recipe.warmup_steps,
            decay_share=recipe.decay_share,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.model.train()
        keep_norm_statistics(self.model)
        self.optimiser.zero_grad(set_to_none=True)
        row = self._accumulate(batches)
        norm = nn.utils.clip_grad_norm_(self._trained(), recipe.clip_norm)
        self.optimiser.step()
        self.average.update(self.model, updates=self.step)
        self.step += 1
        return {"step": self.step, **row, "gradient_norm": float(norm), "rate_factor": factor}

    def _accumulate(self, batches: Sequence[TrainingBatch]) -> dict[str, float]:
        """Forward and backward of all batches, gradients summed; the step's losses."""
        totals: LossTotals | None = None
        terms = torch.zeros(4, device=self.engine.device)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with contextlib.nullcontext() if last else self.engine.without_exchange(self._network):
                class_logits, mask_logits = self._network(batch.pixels)
                if totals is None:
                    totals = self._totals(batches, queries=class_logits[0].shape[1])
                losses = self.criterion(class_logits, mask_logits, batch.targets, totals)
                if not bool(losses.total.isfinite()):
                    raise FloatingPointError(
                        f"The loss of step {self.step} is {float(losses.total.detach())}."
                    )
                # Processes average their gradients, but the parts of a step are to be summed.
                (losses.total * self.engine.processes).backward()
            terms += _terms(losses)
        loss, class_last, mask_last, dice_last = self.engine.sum(terms).tolist()
        return {"loss": loss, "class_last": class_last, "mask_last": mask_last, "dice_last": dice_last}

    def _totals(self, batches: Sequence[TrainingBatch], *, queries: int) -> LossTotals:
        mine = LossTotals(0.0, 0.0)
        for batch in batches:
            mine += self.criterion.totals(batch.targets, queries=queries)
        values = torch.tensor(
            [mine.objects, mine.class_weight], dtype=torch.float32, device=self.engine.device
        )
        objects, class_weight = self.engine.sum(values).tolist()
        return LossTotals(objects, class_weight)

    def save(self, path: Path, **extra: Any) -> None:
        """Write everything that :meth:`resume` needs, and ``extra`` plain values, whole or not at all."""
        state = {
            "step": self.step,
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimiser": self.optimiser.state_dict(),
            "extra": extra,
        }
        scratch = path.with_name(path.name + ".partial")
        torch.save(state, scratch)
        os.replace(scratch, path)

    def resume(self, path: Path) -> dict[str, Any]:
        """Continue from a file of :meth:`save` and return its extra values; refuses one of another recipe."""
        state = torch.load(path, map_location=self.engine.device, weights_only=True)
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
        self.average.load(state["average"])
        self.step = state["step"]
        extra: dict[str, Any] = state["extra"]
        return extra

    def _trained(self) -> Iterator[Tensor]:
        return (p for group in self.optimiser.param_groups for p in group["params"])


def _terms(losses: LayerLosses) -> Tensor:
    """What is logged of a batch: the loss, and the last layer's terms (4,)."""
    return torch.stack([losses.total, losses.classes[-1], losses.mask[-1], losses.dice[-1]]).detach()


def keep_norm_statistics(model: nn.Module) -> None:
    """Leave batch norms on the statistics of their pretraining: batches of a few crops would spoil them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def freeze(modules: Sequence[nn.Module]) -> None:
    """Take modules out of training; what only they lead to costs no backward pass."""
    for module in modules:
        for parameter in module.parameters():
            parameter.requires_grad_(False)


BatchesOfStep = Callable[[int], Sequence[TrainingBatch]]
"""The batches of a step, by its number."""
