"""A network as a replica: which of its errors mean what."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from panoptile.model.panoptic_map import PanopticMap, QueryStates
from panoptile.pipeline.grid import Tile
from panoptile.pipeline.replica import Frame, NetworkReplica, OutOfMemory, ReplicaBroken, TileBatch
from panoptile.pipeline.window import Window

BATCH = TileBatch(np.zeros((2, 3, 8, 8), np.uint8), (Tile(0, 0, Window(0, 0, 8, 8), Window(0, 0, 8, 8)),))


def replica(error: Exception) -> NetworkReplica:
    """A replica whose network raises ``error``."""

    def predict(*args: object, **kwargs: object) -> None:
        raise error

    segmenter = SimpleNamespace(
        predict=predict, classes=None, num_queries=1, mean_pixel=(0, 0, 0), queries_are_places=False
    )
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


@pytest.mark.parametrize("all_queries", [False, True])
@pytest.mark.parametrize("places", [False, True])
def test_queries_that_know_places_say_nothing_of_objects(places: bool, all_queries: bool) -> None:
    """Frames of a network that sees coordinates come without embeddings; all states are kept where they are asked for."""
    asked: list[str] = []
    states = QueryStates(np.ones((1, 4), np.float16), np.zeros((1, 2), np.float16))

    def predict(pixels: object, *, count: int, embeddings: str) -> list[PanopticMap]:
        asked.append(embeddings)
        kept = None if embeddings == "none" else np.ones((1, 4), np.float16)
        found = PanopticMap(
            np.ones((8, 8), np.int32),
            np.zeros(1, np.int32),
            np.ones(1, np.float32),
            1,
            queries=np.zeros(1, np.int32),
            embeddings=kept,
            states=states if embeddings == "queries" else None,
        )
        return [found] * count

    network = SimpleNamespace(
        predict=predict, classes=None, num_queries=1, mean_pixel=(0, 0, 0), queries_are_places=places
    )
    replica = NetworkReplica(network, all_queries=all_queries)  # type: ignore[arg-type]
    frames = TileBatch(BATCH.pixels, frames=(Frame(0, 0.0), Frame(1, 0.1)))
    for found in replica.segment(frames):
        assert (found.embeddings is None) == places
        assert (found.states is None) == (not all_queries)
        assert found.queries is not None
    assert asked == [("queries" if all_queries else "none" if places else "segments")]
