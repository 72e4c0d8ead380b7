"""Tensors that follow from shapes alone (positions, masks of shifted windows), built once per shape and kept.

Unusual: a captured CUDA graph reads such a tensor by its address for as long as the graph lives, longer perhaps than a
bounded cache keeps it. So whoever captures asks with :func:`using` which constants were used, and holds on to them.
Under ``torch.compile`` they are part of the compiled code: its way to mark a result as constant does not take tensors
of one function for several shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import torch

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

_watching: list[list[Any]] = []


class Constant(Protocol[P, R_co]):
    """A function whose results are kept."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def cache_clear(self) -> None:
        """Forget all results."""
        ...


def constant(maxsize: int) -> Callable[[Callable[P, R]], Constant[P, R]]:
    """Keep the last ``maxsize`` results of a function of hashable arguments; also valid outside inference mode."""

    def decorate(build: Callable[P, R]) -> Constant[P, R]:
        kept: Any = lru_cache(maxsize)(build)

        @wraps(build)
        def function(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return build(*args, **kwargs)
            with torch.inference_mode(False):
                value: R = kept(*args, **kwargs)
            for used in _watching:
                used.append(value)
            return value

        function.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return cast("Constant[P, R]", function)

    return decorate


@contextmanager
def using() -> Iterator[list[Any]]:
    """Collects every constant that is asked for inside, in this process; keep the list as long as they are needed."""
    used: list[Any] = []
    _watching.append(used)
    try:
        yield used
    finally:
        _watching[:] = [other for other in _watching if other is not used]
