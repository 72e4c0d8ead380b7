"""The moving average of a network's weights, which is what gets validated and published."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of all parameters and buffers (Polyak averaging).

    Young averages forget faster, ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates: without this, short runs
    would publish their random start.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of a moving average lies in 0…1, got {decay}.")
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in network.state_dict().items()
        }

    @torch.no_grad()
    def update(self, network: nn.Module, *, updates: int) -> None:
        """Take in the weights after the step that follows ``updates`` earlier ones."""
        keep = min(self.decay, (1 + updates) / (10 + updates))
        now = network.state_dict()
        moving = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in moving], [now[n] for n in moving], 1 - keep)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextlib.contextmanager
    def applied_to(self, network: nn.Module) -> Iterator[nn.Module]:
        """The network with the averaged weights, in eval mode; its own weights are back afterwards."""
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        was_training = network.training
        network.load_state_dict(self.weights)
        try:
            yield network.eval()
        finally:
            network.load_state_dict(own)
            network.train(was_training)
