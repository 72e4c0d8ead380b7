"""Batches through two slots: whatever order a device chooses for its lanes, each batch gets its own result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.model.lanes import FakeDevice, FakeLane
from torch import Tensor

from panoptile.model.device_copies import CudaDevice, Device, DoubleBuffer, Ticket

Buffer = DoubleBuffer[NDArray[np.int32]]


def buffer_on(device: Device) -> Buffer:
    """Computes in a tensor that the next batch overwrites, as a CUDA graph does."""
    shared: dict[tuple[int, ...], Tensor] = {}

    def compute(batch: Tensor) -> Tensor:
        out = shared.setdefault(
            tuple(batch.shape), torch.empty(batch.shape, dtype=torch.int32, device=batch.device)
        )
        return torch.mul(batch.int(), 3, out=out)

    return DoubleBuffer(device, compute, lambda shape: shape)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    pauses=st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), min_size=1, max_size=12),
)
def test_every_batch_gets_its_own_result(seed: int, pauses: list[tuple[int, bool, bool]]) -> None:
    """Results asked for at once, late, or all at the end; the device ahead or behind; the caller reuses its array."""
    device = FakeDevice(seed)
    buffer = buffer_on(device)
    batch = np.zeros((2, 3), np.uint8)
    tickets: list[tuple[int, Ticket[NDArray[np.int32]]]] = []
    for i, (steps, ask_now, _) in enumerate(pauses):
        batch[:] = i + 1
        tickets.append((i + 1, buffer.start(batch, np.copy)))
        device.run_some(steps)
        if ask_now:
            assert (tickets[-1][1].result() == 3 * (i + 1)).all()
    for value, ticket in tickets:
        assert (ticket.result() == 3 * value).all()


def test_the_host_waits_once_per_batch() -> None:
    """Ten batches in a row, each read after the next was started: ten waits, and none while starting the second."""
    device = FakeDevice(0)
    buffer = buffer_on(device)
    before = None
    for i in range(10):
        ticket = buffer.start(np.full((1, 4), i, np.uint8), np.copy)
        if before is None:
            assert device.host_waits == 0
        else:
            assert (before.result() == 3 * (i - 1)).all()
        before = ticket
    assert before is not None
    before.result()
    before.result()
    assert device.host_waits == 10


def test_two_batches_are_in_flight() -> None:
    """The second batch's upload does not wait for the first one's computation."""
    device = FakeDevice(0)
    buffer = buffer_on(device)
    for value in (1, 2):
        buffer.start(np.full((1, 1), value, np.uint8), np.copy)
    upload = device.lanes[0]
    while upload.can_go_on():
        upload.step()
    assert [slot.input.item() for slot in buffer._slots if slot is not None] == [2, 1]


def test_batches_of_other_shapes_fit() -> None:
    """A slot is remade for another shape after its batch has been read."""
    buffer = buffer_on(FakeDevice(3))
    shapes = [(1, 2), (3, 2), (1, 2), (5,), (5,)]
    tickets = [buffer.start(np.full(shape, i, np.uint8), np.copy) for i, shape in enumerate(shapes)]
    for i, (shape, ticket) in enumerate(zip(shapes, tickets, strict=True)):
        assert ticket.result().shape == shape
        assert (ticket.result() == 3 * i).all()


def test_without_the_waits_between_lanes_results_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lanes above do run out of order: lanes that ignore marks mix batches up."""
    monkeypatch.setattr(FakeLane, "wait_for", lambda self, mark: None)
    wrong = 0
    for seed in range(20):
        ticket = buffer_on(FakeDevice(seed)).start(np.full((1, 1), 5, np.uint8), np.copy)
        wrong += bool((ticket.result() != 15).any())
    assert wrong > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_every_batch_gets_its_own_result_on_a_gpu() -> None:
    """Fifty batches, each read after the next was started, through streams, events and pinned memory."""
    buffer = buffer_on(CudaDevice(torch.device("cuda")))
    before: Ticket[NDArray[np.int32]] | None = None
    for i in range(50):
        ticket = buffer.start(np.full((64, 1024, 64), i, np.uint8), np.copy)
        if before is not None:
            assert (before.result() == 3 * (i - 1)).all()
        before = ticket
