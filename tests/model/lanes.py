"""Lanes without a GPU: queued work runs only when somebody waits, in any order that the marks allow."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from panoptile.model.device_copies import Lane, Mark, Shape


class FakeDevice:
    """Work of all its lanes, run one step at a time as late as possible; ``seed`` picks among lanes that may go on."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.lanes: list[FakeLane] = []
        self.host_waits = 0

    def lane(self) -> Lane:
        self.lanes.append(FakeLane(self))
        return self.lanes[-1]

    def pinned(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, 77, dtype=dtype)

    empty = pinned

    def run_some(self, steps: int) -> None:
        """The device goes on by itself for up to this many steps."""
        for _ in range(steps):
            if not self._step():
                return

    def run_until(self, mark: FakeMark) -> None:
        self.host_waits += 1
        while not mark.passed:
            assert self._step(), "the host waits for a mark that no lane can reach"

    def _step(self) -> bool:
        ready = [lane for lane in self.lanes if lane.can_go_on()]
        if not ready:
            return False
        self._random.choice(ready).step()
        return True


class FakeMark:
    def __init__(self, device: FakeDevice) -> None:
        self._device, self.passed = device, False

    def wait(self) -> None:
        self._device.run_until(self)


class FakeLane:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._queue: deque[tuple[str, Callable[[], object] | FakeMark]] = deque()

    def run(self, work: Callable[[], object]) -> None:
        self._queue.append(("run", work))

    def wait_for(self, mark: Mark) -> None:
        assert isinstance(mark, FakeMark)
        self._queue.append(("wait", mark))

    def mark(self) -> Mark:
        mark = FakeMark(self._device)
        self._queue.append(("mark", mark))
        return mark

    def can_go_on(self) -> bool:
        if not self._queue:
            return False
        kind, thing = self._queue[0]
        return kind != "wait" or (isinstance(thing, FakeMark) and thing.passed)

    def step(self) -> None:
        kind, thing = self._queue.popleft()
        if isinstance(thing, FakeMark):
            thing.passed = thing.passed or kind == "mark"
        else:
            thing()
