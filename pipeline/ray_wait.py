"""Waiting for Ray, such that a signal's exception comes through.

A signal handler may raise while Ray's compiled code waits. Ray then returns a result *with* that exception, which Python
reports as a ``SystemError``: a job that was told to end would look like one that broke.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray


def wait_for(refs: Sequence[Any], *, count: int, timeout: float) -> list[Any]:
    """Those of ``refs`` that are there once ``count`` are, or after ``timeout`` seconds."""
    try:
        done: list[Any] = ray.wait(list(refs), num_returns=count, timeout=timeout)[0]
    except SystemError as e:
        if e.__cause__ is None:
            raise
        raise e.__cause__ from None
    return done
