"""A function of one tensor as CUDA graphs, one per shape: a replay launches all of its kernels at once.

Unusual: the first calls of a shape run eagerly, so that kernels are chosen, constants built and nothing is captured for
a shape that comes once. Where capture fails, that shape stays eager for good, and the log says why, once. The cache is
bounded, because each graph owns the memory of all its intermediate tensors.

How graphs are kept is tested without a GPU, with a capture that records; the capture itself needs one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from panoptile.model.constants import using

log = logging.getLogger(__name__)

Function = Callable[[Tensor], Tensor]


class Captured(Protocol):
    """A function recorded for one shape."""

    def __call__(self, x: Tensor) -> Tensor:
        """The result for ``x``; it is overwritten by the next call, so copy it on the same stream."""
        ...

    def close(self) -> None:
        """Wait until the device has finished with it; no call may follow."""
        ...


class _Key(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class GraphCache:
    """``function``, captured once per shape and type of its input."""

    def __init__(
        self,
        function: Function,
        *,
        capture: Callable[[Function, Tensor], Captured] | None = None,
        warm_up: int = 2,
        limit: int = 4,
    ) -> None:
        """``warm_up`` eager calls come before the capture; at most ``limit`` graphs are kept, the last used."""
        self._function, self._capture = function, capture or CudaGraph
        self._warm_up, self._limit = warm_up, limit
        self._calls: dict[_Key, int] = {}
        self._graphs: OrderedDict[_Key, Captured] = OrderedDict()
        self._eager: set[_Key] = set()

    def __call__(self, x: Tensor) -> Tensor:
        """``function(x)``; see :class:`Captured` for how long the result lasts."""
        key = _Key(tuple(x.shape), x.dtype)
        if key in self._eager:
            return self._function(x)
        graph = self._graphs.get(key)
        if graph is None:
            seen = self._calls[key] = self._calls.get(key, 0) + 1
            graph = self._captured(key, x) if seen > self._warm_up else None
            if graph is None:
                return self._function(x)
        self._graphs.move_to_end(key)
        return graph(x)

    def _captured(self, key: _Key, x: Tensor) -> Captured | None:
        while len(self._graphs) >= self._limit:
            self._graphs.popitem(last=False)[1].close()
        try:
            graph = self._capture(self._function, x)
        except RuntimeError as e:  # what torch raises for whatever cannot be captured, and for lack of memory
            self._eager.add(key)
            log.warning(
                "No CUDA graph for batches of %s: %s. They run without one, with the same result but more launches.",
                "x".join(map(str, key.shape)),
                str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__,
            )
            return None
        self._graphs[key] = graph
        log.info("Captured a CUDA graph for batches of %s.", "x".join(map(str, key.shape)))
        return graph


class CudaGraph:
    """``function`` captured for the shape of ``example``; replayed on the stream that is current then."""

    def __init__(self, function: Function, example: Tensor) -> None:
        self._input = example.clone()
        with using() as constants:
            # Once more on another stream, as CUDA graphs ask for: libraries get their work space outside the capture.
            side = torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(example.device))
            with torch.cuda.stream(side):
                function(self._input)
            torch.cuda.current_stream(example.device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the GPU meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(self._input)
        self._constants = constants  # read by their addresses

    def __call__(self, x: Tensor) -> Tensor:
        self._input.copy_(x)
        self._graph.replay()
        return self._output

    def close(self) -> None:
        torch.cuda.synchronize(self._input.device)
