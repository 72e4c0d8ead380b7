"""Batches to a GPU and results back, so that copying one batch overlaps with computing another.

Unusual: two slots of pinned memory take turns. The host waits only for the event behind the download of the batch that
it asks for; it never synchronises the device. What a slot holds is safe to overwrite once that event of its last batch
has passed, so no other bookkeeping is needed. Lanes and marks (on a GPU: streams and events) come from a
:class:`Device`, and the order of work is tested with lanes that run it in any order they are free to choose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
Shape = tuple[int, ...]


class Mark(Protocol):
    """A point in a lane's queue."""

    def wait(self) -> None:
        """Block the calling thread until all work before it is done."""
        ...


class Lane(Protocol):
    """A queue of work on the device; lanes run side by side."""

    def run(self, work: Callable[[], object]) -> None:
        """Queue the work, after all that this lane has been given."""
        ...

    def wait_for(self, mark: Mark) -> None:
        """What is queued after this starts only when the mark has been passed."""
        ...

    def mark(self) -> Mark: ...


class Device(Protocol):
    """Where memory and lanes come from."""

    def lane(self) -> Lane: ...

    def pinned(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Host memory that can be copied from and to while the host goes on."""
        ...

    def empty(self, shape: Shape, dtype: torch.dtype) -> Tensor: ...


class Ticket(Generic[T]):
    """A batch that was started."""

    def __init__(self, done: Mark, read: Callable[[], T]) -> None:
        self._done, self._read = done, read
        self._result: T | None = None

    def result(self) -> T:
        """Wait for the batch, once, and return what was read from it."""
        if self._result is None:
            self._done.wait()
            self._result = self._read()
        return self._result


class _Slot(Generic[T]):
    """The memory of one batch in flight."""

    def __init__(self, device: Device, shape: Shape, output_shape: Shape) -> None:
        self.shape = shape
        self.pinned_in = device.pinned(shape, torch.uint8)
        self.input = device.empty(shape, torch.uint8)
        self.output = device.empty(output_shape, torch.int32)
        self.pinned_out = device.pinned(output_shape, torch.int32)
        self.ticket: Ticket[T] | None = None


class DoubleBuffer(Generic[T]):
    """Runs ``compute`` on uint8 batches; at most two are in flight, one copying while the other computes."""

    def __init__(
        self,
        device: Device,
        compute: Callable[[Tensor], Tensor],
        output_shape: Callable[[Shape], Shape],
    ) -> None:
        """``compute`` turns a uint8 batch into an int32 tensor of ``output_shape(batch.shape)``, on the device."""
        self._device, self._compute, self._output_shape = device, compute, output_shape
        self._up, self._work, self._down = device.lane(), device.lane(), device.lane()
        self._slots: list[_Slot[T] | None] = [None, None]
        self._turn = 0

    def start(self, batch: NDArray[np.uint8], read: Callable[[NDArray[np.int32]], T]) -> Ticket[T]:
        """Queue one batch and return at once, unless the batch before the last is still under way.

        ``read`` is called with the result in pinned memory, at the latest when its slot is needed again; it must copy
        what it keeps. The batch may be changed by the caller afterwards.
        """
        self._turn = 1 - self._turn
        slot = self._free_slot(tuple(batch.shape))
        np.copyto(slot.pinned_in.numpy(), batch)
        self._up.run(lambda: slot.input.copy_(slot.pinned_in, non_blocking=True))
        self._work.wait_for(self._up.mark())
        # Into the slot's own memory: what a CUDA graph returns is overwritten by its next replay.
        self._work.run(lambda: slot.output.copy_(self._compute(slot.input)))
        self._down.wait_for(self._work.mark())
        self._down.run(lambda: slot.pinned_out.copy_(slot.output, non_blocking=True))
        slot.ticket = Ticket(self._down.mark(), lambda: read(slot.pinned_out.numpy()))
        return slot.ticket

    def _free_slot(self, shape: Shape) -> _Slot[T]:
        slot = self._slots[self._turn]
        if slot is not None and slot.ticket is not None:
            slot.ticket.result()
        if slot is None or slot.shape != shape:
            slot = self._slots[self._turn] = _Slot(self._device, shape, self._output_shape(shape))
        return slot


class CudaDevice:
    """Streams, events and pinned memory of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def lane(self) -> Lane:
        return _CudaLane(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]

    def pinned(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def empty(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)


class _CudaMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        self.event.synchronize()


class _CudaLane:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def run(self, work: Callable[[], object]) -> None:
        with torch.cuda.stream(self._stream):
            work()

    def wait_for(self, mark: Mark) -> None:
        assert isinstance(mark, _CudaMark)
        self._stream.wait_event(mark.event)

    def mark(self) -> Mark:
        # Blocking: a waiting thread sleeps and leaves its core to the threads that read and write.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _CudaMark(event)
