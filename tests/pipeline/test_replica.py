"""A network as a replica: which of its errors mean what."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from panoptile.pipeline.grid import Tile
from panoptile.pipeline.replica import NetworkReplica, OutOfMemory, ReplicaBroken, TileBatch
from panoptile.pipeline.window import Window

BATCH = TileBatch(np.zeros((2, 3, 8, 8), np.uint8), (Tile(0, 0, Window(0, 0, 8, 8), Window(0, 0, 8, 8)),))


def replica(error: Exception) -> NetworkReplica:
    """A replica whose network raises ``error``."""

    def predict(*args: object, **kwargs: object) -> None:
        raise error

    segmenter = SimpleNamespace(predict=predict, classes=None, num_queries=1, mean_pixel=(0, 0, 0))
    return NetworkReplica(segmenter)  # type: ignore[arg-type]


def test_cuda_out_of_memory_asks_for_a_smaller_batch() -> None:
    """torch's error becomes ours, without a traceback that keeps the tensors alive."""
    import torch

    with pytest.raises(OutOfMemory, match="tried to allocate") as e:
        replica(torch.cuda.OutOfMemoryError("CUDA out of memory: tried to allocate 2 GiB")).segment(BATCH)
    assert e.value.__cause__ is None
    assert e.value.__context__ is None


def test_a_sticky_cuda_error_asks_for_a_new_process() -> None:
    """After a device-side assert every call fails: no tile is to blame for the next ones."""
    with pytest.raises(ReplicaBroken, match="device-side assert"):
        replica(RuntimeError("CUDA error: device-side assert triggered")).segment(BATCH)


def test_any_other_error_is_the_images_own() -> None:
    """A shape error is neither."""
    with pytest.raises(RuntimeError, match="shapes do not match") as e:
        replica(RuntimeError("shapes do not match")).segment(BATCH)
    assert type(e.value) is RuntimeError
