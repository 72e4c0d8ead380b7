"""A loaded network that turns uint8 tiles into label maps: what each replica computes.

Unusual: the result of a tile never depends on its batch-mates. On a CPU the images of a batch go through one by one,
because matrix products round differently for different batch sizes, and batches gain nothing there. On a GPU callers
keep the batch shape fixed.

Letters: B batch, C channels, H W pixels of a tile.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from panoptile.model.checkpoint import CheckpointSettings, Task, read_settings
from panoptile.model.classes import ClassTable
from panoptile.model.fusion import Canvas, FusionRules, fuse_logits
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.panoptic_map import PanopticMap, QueryStates

log = logging.getLogger(__name__)

Embeddings = Literal["none", "segments", "queries"]
"""Which query states come with a map: none, those of its segments, or those of all queries with their class logits."""

_SIZE_DIVISOR = 32


class Segmenter:
    """A network with its preprocessing and fusion; build it with :meth:`load`."""

    classes: ClassTable
    num_queries: int
    """The most segments that one tile can have."""
    channels: int
    device: torch.device
    mean_pixel: tuple[int, ...]
    """(C,) grey level that the network ignores best: for padding and pixels without input."""

    def __init__(
        self, network: Mask2FormerForUniversalSegmentation, settings: CheckpointSettings, device: torch.device
    ) -> None:
        self.classes = settings.classes
        self.num_queries = settings.config.num_queries
        self.channels = settings.config.num_channels
        self.device = device
        self.mean_pixel = settings.normalisation.mean_pixel
        self.rules = FusionRules(
            task=settings.task,
            thing_label_ids=settings.classes.thing_label_ids,
            label_ids_to_fuse=settings.label_ids_to_fuse,
            score_threshold=settings.score_threshold,
            overlap_threshold=settings.overlap_threshold,
        )
        self._network = network.eval().to(device)
        norm = settings.normalisation
        self._scale = _per_channel([norm.rescale / s for s in norm.std], device)
        self._shift = _per_channel([-m / s for m, s in zip(norm.mean, norm.std, strict=True)], device)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        task: Task | None = None,
        labels: str | None = None,
        fuse: Sequence[str] = (),
        score_threshold: float | None = None,
        device: Literal["auto", "cpu", "cuda"] | str = "auto",
        threads: int | None = None,
    ) -> Segmenter:
        """Load a checkpoint folder, or a file of weights (a Detectron2 ``.pkl`` needs nothing beside it).

        ``task``, ``labels`` (a class table, see ``ClassTable.from_file``) and ``score_threshold`` default to the
        checkpoint's; ``fuse`` names the classes that get one segment per tile, by default all stuff. ``threads`` sets
        torch's threads on a CPU, for the whole process. Raises ``ValueError`` with one clear sentence.
        """
        settings = read_settings(path, task=task, labels=labels, fuse=fuse, score_threshold=score_threshold)
        chosen = choose_device(device)
        if chosen.type == "cpu" and threads is not None:
            torch.set_num_threads(threads)
        return cls(
            Mask2FormerForUniversalSegmentation.from_pretrained(path, config=settings.config),
            settings,
            chosen,
        )

    def predict(
        self, pixels_BCHW: NDArray[np.uint8], *, count: int | None = None, embeddings: Embeddings = "none"
    ) -> list[PanopticMap]:
        """One map of (H, W) per tile, in order; tiles are not resized.

        ``count``: only the first ``count`` tiles are wanted, the rest is padding of a fixed batch (a CPU skips it).
        ``embeddings``: the query states that come with each map; see :data:`Embeddings`.
        """
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != self.channels or pixels_BCHW.dtype != np.uint8:
            raise ValueError(
                f"Expected uint8 tiles of shape (B, {self.channels}, H, W), "
                f"got {pixels_BCHW.dtype} of shape {pixels_BCHW.shape}."
            )
        wanted = len(pixels_BCHW) if count is None else count
        if self.device.type == "cpu":
            return [m for i in range(wanted) for m in self._predict(pixels_BCHW[i : i + 1], embeddings)]
        return self._predict(pixels_BCHW, embeddings)[:wanted]

    @torch.inference_mode()
    def _predict(self, pixels: NDArray[np.uint8], embeddings: Embeddings) -> list[PanopticMap]:
        height, width = pixels.shape[-2:]
        # A copy: torch takes neither negative strides nor read-only arrays.
        x_BCHW = self.prepare(torch.from_numpy(pixels.copy()).to(self.device))
        class_logits, mask_logits, normed = self._network.logits_and_embeddings(x_BCHW)
        canvas = Canvas(height, width, x_BCHW.shape[-2], x_BCHW.shape[-1])
        maps = fuse_logits(class_logits, mask_logits, canvas, self.rules)
        if embeddings == "none":
            return maps
        return _with_states(maps, normed, class_logits, embeddings)

    def prepare(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 to normalised fp32, padded right and at the bottom with zeros to a multiple of 32."""
        height, width = pixels_BCHW.shape[-2:]
        x = torch.addcmul(self._shift, pixels_BCHW.float(), self._scale)
        return F.pad(x, (0, -width % _SIZE_DIVISOR, 0, -height % _SIZE_DIVISOR))


def _with_states(
    maps: list[PanopticMap], normed_BQC: Tensor, class_logits_BQK: Tensor, embeddings: Embeddings
) -> list[PanopticMap]:
    """The maps with the query states that were asked for; one copy to the host for the batch."""
    states_BQC = normed_BQC.half().cpu().numpy()
    logits_BQK = class_logits_BQK.half().cpu().numpy() if embeddings == "queries" else None
    found = []
    for i, panoptic in enumerate(maps):
        queries = panoptic.queries
        rows = np.zeros((len(panoptic.label_ids), states_BQC.shape[2]), np.float16)
        if queries is not None:
            rows = states_BQC[i][queries]
        states = None if logits_BQK is None else QueryStates(states_BQC[i].copy(), logits_BQK[i].copy())
        found.append(replace(panoptic, embeddings=rows, states=states))
    return found


def choose_device(device: str) -> torch.device:
    """``auto``: a GPU if there is one, else the CPU. Raises ``ValueError`` if a GPU is asked for and missing."""
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        log.info(
            "The network runs on %s (%s).", kind, "a GPU was found" if kind == "cuda" else "no GPU was found"
        )
        return torch.device(kind)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("The device cuda was asked for, but torch finds no CUDA GPU: use cpu or auto.")
    return torch.device(device)


def _per_channel(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
