"""Give freed memory back to the system between stages, so that a stage's peak is its own."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time

import pyarrow as pa

EVERY_SECONDS = 1.0
_released = -math.inf

_M_ARENA_MAX = -8
"""glibc's name for "most arenas"; every thread that allocates may otherwise keep one of its own."""


def allocate_frugally() -> None:
    """Let allocations of this process be given back early; called once, where a job starts.

    Arrow's own pool keeps what it once had, and glibc opens an arena per thread: together some 60 MB at the
    end of a run with 262,144 segments (tests/benchmarks/memory.py).
    """
    pa.set_memory_pool(pa.system_memory_pool())
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 2)


def release_unused() -> None:
    """Return what Python, Arrow and the C library hold without using it.

    glibc keeps freed blocks for later; after a stage with large temporary arrays that is tens of megabytes.
    Elsewhere than on glibc only Arrow's pool is emptied. Not more than once in ``EVERY_SECONDS``: what gathers in less
    is little, and looking through all objects of a large process takes half a second.
    """
    global _released
    now = time.monotonic()
    if now - _released < EVERY_SECONDS:
        return
    _released = now
    gc.collect()
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
