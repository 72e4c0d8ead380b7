"""The moving average of weights: its numbers, and that it never disturbs the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panoptile.model.ema import WeightAverage


def test_averages_are_exact() -> None:
    """Each update is ``k a + (1 - k) w`` with ``k = min(decay, (1 + n) / (10 + n))``; counters are left alone."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = WeightAverage(network, decay=0.5)
    expected = network[0].weight.item()  # type: ignore[operator]
    for n, value in enumerate((1.0, -2.0, 5.0, 0.5, 3.0, 2.0, 2.0, 2.0, 2.0, 4.0)):
        network[0].weight.data.fill_(value)  # type: ignore[operator]
        average.update(network, updates=n)
        keep = min(0.5, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * value
    assert float(average.weights["0.weight"]) == pytest.approx(expected, rel=1e-6)
    assert int(average.weights["1.num_batches_tracked"]) == 0


def test_applying_the_average_is_undone() -> None:
    """Inside, the network has the averaged weights in eval mode; afterwards its own, in the mode it had."""
    network = nn.Linear(3, 3).train()
    average = WeightAverage(network, decay=0.9)
    own = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    with average.applied_to(network) as averaged:
        assert torch.equal(averaged.weight, own)  # type: ignore[arg-type]
        assert not averaged.training
    assert torch.equal(network.weight, own + 1.0)
    assert network.training


def test_a_decay_of_one_is_refused() -> None:
    """An average that never moves is a mistake."""
    with pytest.raises(ValueError, match="0…1"):
        WeightAverage(nn.Linear(1, 1), decay=1.0)
