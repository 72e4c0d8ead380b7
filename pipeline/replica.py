"""What a worker asks of a network: one method, so that any replica can be put in its place.

A replica is stateless: what it returns for an image depends on that image alone, never on its batch-mates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.grid import Tile
from panoptile.pipeline.terms import Precision, Task

if TYPE_CHECKING:  # torch is imported by the worker alone, when it builds the replica
    from panoptile.model.result_buffer import Embeddings
    from panoptile.model.segmenter import Segmenter


class OutOfMemory(RuntimeError):
    """The batch did not fit into the device's memory: the worker tries again with half of it.

    Raise it from outside the handler of the original error, whose traceback keeps the tensors alive.
    """


class ReplicaBroken(RuntimeError):
    """The replica will not answer any more, whatever it is asked: its process must be replaced."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video."""

    number: int
    """Its number in the video, in the order of presentation, from 0."""
    pts_seconds: float
    """Presentation time in the video."""


Place = Tile | Frame
"""Where or when an image lies; pixels never travel without it."""


@dataclass(frozen=True, slots=True)
class TileBatch:
    """A batch of fixed shape: ``count`` real images, tiles of a raster or frames of a video, then padding."""

    pixels: NDArray[np.uint8]
    """(B, C, H, W); tiles smaller than T x T are padded on the right and at the bottom."""
    tiles: tuple[Tile, ...] = ()
    """Where the first images of the batch lie, for a raster."""
    frames: tuple[Frame, ...] = ()
    """When they are, for a video."""

    @property
    def count(self) -> int:
        """Real images."""
        return len(self.tiles) or len(self.frames)


class Replica(Protocol):
    """One copy of a network (or of what stands in for it)."""

    @property
    def classes(self) -> ClassTable: ...

    @property
    def max_queries(self) -> int:
        """The most segments that one tile can have; 0 where there is no such limit."""
        ...

    @property
    def fill(self) -> tuple[int, ...]:
        """(C,) grey level, 0-255, of padding and of pixels without input: what the network ignores best."""
        ...

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        """One map of (H, W) per real image, in order. Raises :class:`OutOfMemory` where a smaller batch may fit."""
        ...


class ReplicaFactory(Protocol):
    """Builds a replica inside the worker that will own it; must be picklable and cheap to pickle."""

    def __call__(self) -> Replica: ...


@dataclass(frozen=True, slots=True)
class NetworkFactory:
    """Loads a Mask2Former checkpoint folder as a replica."""

    path: str
    task: Task | None = None
    """None: the checkpoint's own."""
    labels: str | None = None
    """File with the thing/stuff table; None: the checkpoint's own."""
    fuse: tuple[str, ...] = ()
    """Classes whose segments are fused into one per tile; empty: all stuff classes."""
    score_threshold: float | None = None
    device: str = "auto"
    threads: int = 1
    """Threads per replica on a CPU."""
    precision: Precision = "auto"
    compiled: bool = False
    """Through torch.compile."""
    all_queries: bool = False
    """Frames of a video come with the states of all queries, not only with those of their segments."""

    def __call__(self) -> Replica:
        from panoptile.model.segmenter import Segmenter

        return NetworkReplica(
            Segmenter.load(
                self.path,
                task=self.task,
                labels=self.labels,
                fuse=self.fuse,
                score_threshold=self.score_threshold,
                device=self.device,
                threads=self.threads,
                precision=self.precision,
                compiled=self.compiled,
            ),
            all_queries=self.all_queries,
        )


class NetworkReplica:
    """A Segmenter as a replica; the batch's shape is fixed, maps of its padding are not wanted."""

    def __init__(self, segmenter: Segmenter, *, all_queries: bool = False) -> None:
        self._segmenter = segmenter
        self._of_frames: Embeddings = "queries" if all_queries else "segments"
        if segmenter.queries_are_places and not all_queries:
            self._of_frames = "none"
        self.classes = segmenter.classes
        self.max_queries = segmenter.num_queries
        self.fill = segmenter.mean_pixel

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        import torch

        embeddings = self._of_frames if batch.frames else "none"
        try:
            maps = self._segmenter.predict(batch.pixels, count=batch.count, embeddings=embeddings)
            return self._linkable(maps) if batch.frames else maps
        except torch.cuda.OutOfMemoryError as e:
            message = str(e)
        except RuntimeError as e:
            if "CUDA error" in str(e):  # sticky: every later call in this process fails the same way
                raise ReplicaBroken(str(e)) from e
            raise
        torch.cuda.empty_cache()
        raise OutOfMemory(message)

    def _linkable(self, maps: Sequence[PanopticMap]) -> Sequence[PanopticMap]:
        """Maps of frames without embeddings that would join what stood at one place: overlap links them then."""
        if not self._segmenter.queries_are_places:
            return maps
        return [replace(panoptic, embeddings=None) for panoptic in maps]
