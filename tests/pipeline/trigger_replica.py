"""A replica that answers like any other, until the content of a tile tells it to misbehave."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.replica import OutOfMemory, ReplicaBroken, TileBatch

CLASSES = ClassTable.from_names(["object", "ground"], {0})
ABORT, HANG, RAISE, BREAK = 251, 252, 253, 254
"""Grey levels of a tile's first pixel that make the replica abort, hang, raise, or break for good."""


@dataclass(frozen=True)
class TriggerFactory:
    """Makes replicas; the fields say what else goes wrong."""

    largest_batch: int = 99
    """More images than this do not fit into memory."""
    fails_to_load: bool = False
    seconds: float = 0.0
    """Per batch."""

    def __call__(self) -> TriggerReplica:
        if self.fails_to_load:
            raise ValueError("the checkpoint is torn")
        return TriggerReplica(self)


class TriggerReplica:
    """One square object per tile, on ground."""

    classes = CLASSES
    max_queries = 0
    fill = (0, 0, 0)

    def __init__(self, factory: TriggerFactory) -> None:
        self._factory = factory
        self._is_broken = False
        self.sizes: list[int] = []
        """Images of each batch, padding included."""

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        if self._is_broken:
            raise ReplicaBroken("still broken")
        if len(batch.pixels) > self._factory.largest_batch:
            raise OutOfMemory(f"{len(batch.pixels)} images do not fit")
        self.sizes.append(len(batch.pixels))
        for image in batch.pixels[: batch.count]:
            self._obey(int(image[0, 0, 0]))
        time.sleep(self._factory.seconds)
        return [self._map(image) for image in batch.pixels[: batch.count]]

    def _obey(self, trigger: int) -> None:
        if trigger == ABORT:
            os.abort()
        if trigger == HANG:
            time.sleep(3600)
        if trigger == RAISE:
            raise ValueError("this tile is too ugly")
        if trigger == BREAK:
            self._is_broken = True
            raise ReplicaBroken("CUDA error: device-side assert triggered")

    def _map(self, image: np.ndarray) -> PanopticMap:
        labels = np.full(image.shape[1:], 2, np.int32)
        labels[8:24, 8:24] = 1
        return PanopticMap(labels, np.array([0, 1], np.int32), np.ones(2, np.float32), 2)
