"""Graphs per shape: when they are captured, which are kept, and what happens where capture fails."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from panoptile.model import constants, positions
from panoptile.model.cuda_graph import Captured, Function, GraphCache


class Recorder:
    """A capture that notes what it is asked; its graphs overwrite one tensor, as CUDA graphs do."""

    def __init__(self, *, fails: bool = False) -> None:
        self.captured: list[tuple[int, ...]] = []
        self.closed: list[tuple[int, ...]] = []
        self.replays = 0
        self._fails = fails

    def __call__(self, function: Function, example: Tensor) -> Captured:
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing\nlong trace")
        self.captured.append(tuple(example.shape))
        recorder, shape = self, tuple(example.shape)

        class Graph:
            output = function(example)

            def __call__(self, x: Tensor) -> Tensor:
                recorder.replays += 1
                with torch.inference_mode():
                    return self.output.copy_(function(x))

            def close(self) -> None:
                recorder.closed.append(shape)

        return Graph()


def double(x: Tensor) -> Tensor:
    return x * 2


def test_a_shape_is_captured_after_two_eager_calls() -> None:
    """Two calls run eagerly, the third captures, all later ones replay; results are the function's."""
    recorder = Recorder()
    cache = GraphCache(double, capture=recorder)
    for i in range(6):
        assert torch.equal(cache(torch.full((2, 3), i)), torch.full((2, 3), 2 * i))
    assert recorder.captured == [(2, 3)]
    assert recorder.replays == 4


def test_types_and_shapes_have_their_own_graphs() -> None:
    """Another batch size or number type is another graph."""
    recorder = Recorder()
    cache = GraphCache(double, capture=recorder, warm_up=0)
    for x in (torch.ones(1, 2), torch.ones(2, 2), torch.ones(1, 2, dtype=torch.uint8), torch.ones(1, 2)):
        assert torch.equal(cache(x), x * 2)
        assert cache(x).dtype == x.dtype
    assert recorder.captured == [(1, 2), (2, 2), (1, 2)]


def test_the_cache_is_bounded() -> None:
    """Of three shapes with room for two, the one used longest ago is closed, and captured anew when it returns."""
    recorder = Recorder()
    cache = GraphCache(double, capture=recorder, warm_up=0, limit=2)
    for size in (1, 2, 1, 3, 1, 2):
        cache(torch.ones(size))
    assert recorder.captured == [(1,), (2,), (3,), (2,)]
    assert recorder.closed == [(2,), (3,)]


def test_a_failed_capture_is_said_once_and_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    """The result is the function's, and one warning names the shape and the first line of the reason."""
    cache = GraphCache(double, capture=Recorder(fails=True), warm_up=1)
    with caplog.at_level(logging.WARNING):
        for i in range(5):
            assert torch.equal(cache(torch.full((4, 5), i)), torch.full((4, 5), 2 * i))
    (record,) = caplog.records
    assert "4x5" in record.message
    assert "not permitted when stream is capturing. They run without one" in record.message


def test_constants_that_a_graph_reads_can_be_kept() -> None:
    """What is asked for inside ``using`` is collected, from the cache too, and what is asked for outside is not."""
    device = torch.device("cpu")
    first = positions.sine_positions(3, 5, 8, device)
    with constants.using() as used:
        again = positions.sine_positions(3, 5, 8, device)
        other = positions.sine_positions(4, 5, 8, device)
    positions.sine_positions(6, 5, 8, device)
    assert again is first
    assert [id(x) for x in used] == [id(first), id(other)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_graph_gives_what_eager_gives() -> None:
    """On a GPU: random inputs through a captured product and soft-max equal the eager ones, for two shapes in turn."""
    weight = torch.randn(64, 64, device="cuda")

    def function(x: Tensor) -> Tensor:
        return (x @ weight).softmax(-1)

    cache = GraphCache(function, warm_up=1)
    for turn in range(8):
        x = torch.randn(8 + turn % 2, 64, device="cuda")
        assert torch.equal(cache(x), function(x))
    assert len(cache._graphs) == 2
