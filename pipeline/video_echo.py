"""A replica that returns the true masks of each frame of a video: it proves decoding, linking and writing around it.

``--model echo:LABELS.npy[,CLASSES.npy]``: arrays of (frames of the video, H, W). Local ids are shuffled per frame, as
a network's queries would be, so only linking can tell an object again. Embeddings are a direction of each object's
own; ``noise`` bends them. What a frame gives depends on its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.replica import TileBatch
from panoptile.pipeline.video_fragment import fitted

CHANNELS = 256


@dataclass(frozen=True, slots=True)
class VideoEchoFactory:
    """Maps the arrays inside the worker."""

    labels_path: str
    classes_path: str | None = None
    classes: ClassTable | None = None
    """None: one thing class, or all values of the class array as things."""
    noise: float = 0.0
    """Length of the random part of an embedding, against 1 of the object's own."""

    def __call__(self) -> VideoEchoReplica:
        return VideoEchoReplica(self)

    def class_table(self) -> ClassTable:
        """The classes of this echo; reads the class array once where no table is given."""
        if self.classes is not None:
            return self.classes
        if self.classes_path is None:
            return ClassTable.from_names(["thing"], {0})
        highest = max((int(frame.max()) for frame in _mapped(self.classes_path)), default=1)
        names = [f"class {i}" for i in range(1, max(1, highest) + 1)]
        return ClassTable.from_names(names, set(range(len(names))))

    def check(self, frames: int, height: int, width: int) -> None:
        """Raise ``ValueError`` unless the arrays have the size of the input."""
        for path in filter(None, (self.labels_path, self.classes_path)):
            array = _mapped(path)
            if array.shape != (frames, height, width):
                raise ValueError(
                    f"The echo array {path} has the shape {array.shape}, the video has {frames} frames of "
                    f"{height}x{width}: they must agree."
                )


class VideoEchoReplica:
    """Answers with the truth, in shuffled local ids, with embeddings that tell objects apart."""

    max_queries = 0
    fill = (0, 0, 0)

    def __init__(self, factory: VideoEchoFactory) -> None:
        self.classes = factory.class_table()
        self._labels = _mapped(factory.labels_path)
        self._classes = _mapped(factory.classes_path) if factory.classes_path else None
        self._noise = factory.noise

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        if not batch.frames:
            raise ValueError("This echo holds the frames of a video; it cannot answer for a raster.")
        return [self._echo(frame.number, batch.pixels.shape[-2:]) for frame in batch.frames]

    def _echo(self, frame: int, shape: tuple[int, ...]) -> PanopticMap:
        truth = np.asarray(self._labels[frame])
        classes = None if self._classes is None else np.asarray(self._classes[frame])
        return echo_frame(truth, classes, (shape[0], shape[1]), frame, self._noise)


def echo_frame(
    truth: NDArray[np.integer],
    classes: NDArray[np.integer] | None,
    shape: tuple[int, int],
    frame: int,
    noise: float = 0.0,
    *,
    same_as: Callable[[int], int] = int,
) -> PanopticMap:
    """The true ids (H, W) of one frame as a replica would give them at ``shape``: 1…n in random order, 0 is void.

    Ids for which ``same_as`` gives one number share the direction of their embeddings.
    """
    truth = fitted(truth.astype(np.int32), shape)
    rng = np.random.default_rng([17, frame])
    ids, first, compact = np.unique(truth, return_index=True, return_inverse=True)
    named = ids != 0
    n = int(np.count_nonzero(named))
    order = np.zeros(len(ids), np.int32)
    order[named] = rng.permutation(n) + 1
    label_ids = np.zeros(n, np.int32)
    embeddings = np.zeros((n, CHANNELS), np.float16)
    for true_id, local in zip(ids[named].tolist(), order[named].tolist(), strict=True):
        embeddings[local - 1] = _direction(same_as(true_id)) + noise * _unit(rng)
    if classes is not None:
        at_first = fitted(classes.astype(np.int32), shape).ravel()[first[named]]
        label_ids[order[named] - 1] = at_first - 1
    labels = order[compact].reshape(truth.shape)
    return PanopticMap(labels, label_ids, np.ones(n, np.float32), n, embeddings=embeddings)


@lru_cache(maxsize=4096)
def _direction(true_id: int) -> NDArray[np.float64]:
    return _unit(np.random.default_rng([23, true_id]))


def _unit(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.normal(size=CHANNELS)
    return vector / float(np.linalg.norm(vector))


def _mapped(path: str) -> NDArray[np.integer]:
    """The array of a ``.npy`` file, not read yet. Raises ``ValueError`` where it holds no labels of frames."""
    try:
        array: NDArray[np.integer] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as e:
        raise ValueError(f"Cannot read the echo array {path}: {e}. Expected a .npy file.") from e
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"The echo array {path} must hold integers (frames, H, W), got {array.dtype} {array.shape}."
        )
    return array
