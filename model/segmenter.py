"""A loaded network that turns uint8 tiles into label maps: what each replica computes.

Unusual: the result of a tile never depends on its batch-mates. On a CPU the images of a batch go through one by one,
because matrix products round differently for different batch sizes, and batches gain nothing there. On a GPU callers
keep the batch shape fixed; there batches go through ``batch_runner.py``, and :meth:`Segmenter.start` lets the caller
prepare the next one meanwhile.

Letters: B batch, C channels, H W pixels of a tile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from panoptile.model.batch_runner import BatchRunner, Forward
from panoptile.model.checkpoint import CheckpointSettings, Task, queries_are_places, read_settings
from panoptile.model.classes import ClassTable
from panoptile.model.compiled import compile_forward
from panoptile.model.cuda_graph import GraphCache
from panoptile.model.device_copies import CudaDevice, Device
from panoptile.model.fusion import Canvas, FusionRules, fuse_logits
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.panoptic_map import PanopticMap, QueryStates
from panoptile.model.precision import choose_precision
from panoptile.model.result_buffer import Embeddings, ResultBuffer

log = logging.getLogger(__name__)

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

    dtype: torch.dtype
    """Of the network's weights and activations."""

    def __init__(
        self,
        network: Mask2FormerForUniversalSegmentation,
        settings: CheckpointSettings,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.classes = settings.classes
        self.num_queries = settings.config.num_queries
        self.queries_are_places = queries_are_places(settings.config)
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
        self.dtype = dtype
        self._network = network.eval().requires_grad_(False).to(device, dtype)
        self._forward: Forward = self._network.logits_and_embeddings
        if compiled:
            self._forward = compile_forward(self._forward, device)
        norm = settings.normalisation
        self._scale = _per_channel([norm.rescale / s for s in norm.std], device)
        self._shift = _per_channel([-m / s for m, s in zip(norm.mean, norm.std, strict=True)], device)
        self._width = settings.config.hidden_dim
        self._runner: BatchRunner | None = None
        if device.type == "cuda":
            self._runner = self._runner_on(CudaDevice(device), GraphCache)
            torch.cuda.synchronize(device)  # the weights are there before the runner's own streams read them

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
        precision: str = "auto",
        compiled: bool = False,
    ) -> Segmenter:
        """Load a checkpoint folder, or a file of weights (a Detectron2 ``.pkl`` needs nothing beside it).

        ``task``, ``labels`` (a class table, see ``ClassTable.from_file``) and ``score_threshold`` default to the
        checkpoint's; ``fuse`` names the classes that get one segment per tile, by default all stuff. ``threads`` sets
        torch's threads on a CPU, for the whole process. ``precision`` is fp32, bf16 or auto (see
        :func:`choose_precision`); ``compiled`` runs the network through ``torch.compile`` (see
        :func:`compile_forward`). Raises ``ValueError`` with one clear sentence.
        """
        settings = read_settings(path, task=task, labels=labels, fuse=fuse, score_threshold=score_threshold)
        chosen = choose_device(device)
        if chosen.type == "cpu" and threads is not None:
            torch.set_num_threads(threads)
        return cls(
            Mask2FormerForUniversalSegmentation.from_pretrained(path, config=settings.config),
            settings,
            chosen,
            dtype=choose_precision(precision, chosen),
            compiled=compiled,
        )

    def predict(
        self, pixels_BCHW: NDArray[np.uint8], *, count: int | None = None, embeddings: Embeddings = "none"
    ) -> list[PanopticMap]:
        """One map of (H, W) per tile, in order; tiles are not resized.

        ``count``: only the first ``count`` tiles are wanted, the rest is padding of a fixed batch (a CPU skips it).
        ``embeddings``: the query states that come with each map; see :data:`Embeddings`.
        """
        return self.start(pixels_BCHW, count=count, embeddings=embeddings)()

    def start(
        self, pixels_BCHW: NDArray[np.uint8], *, count: int | None = None, embeddings: Embeddings = "none"
    ) -> Callable[[], list[PanopticMap]]:
        """Begin what :meth:`predict` does and return a function that waits for the maps.

        On a GPU this returns while the batch is under way: start the next batch before asking for this one's maps, and
        copies overlap with the network. At most two batches are in flight; a third waits. On a CPU the work is done
        here.
        """
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != self.channels or pixels_BCHW.dtype != np.uint8:
            raise ValueError(
                f"Expected uint8 tiles of shape (B, {self.channels}, H, W), "
                f"got {pixels_BCHW.dtype} of shape {pixels_BCHW.shape}."
            )
        wanted = len(pixels_BCHW) if count is None else count
        if self._runner is not None:
            ticket = self._runner.start(pixels_BCHW, embeddings)
            return lambda: ticket.result()[:wanted]
        maps = [m for i in range(wanted) for m in self._predict(pixels_BCHW[i : i + 1], embeddings)]
        return lambda: maps

    @torch.inference_mode()
    def _predict(self, pixels: NDArray[np.uint8], embeddings: Embeddings) -> list[PanopticMap]:
        # A copy: torch takes neither negative strides nor read-only arrays.
        x_BCHW = self.prepare(torch.from_numpy(pixels.copy()).to(self.device))
        class_logits, mask_logits, normed = self._forward(x_BCHW)
        maps = fuse_logits(class_logits, mask_logits, _canvas(*pixels.shape[-2:]), self.rules)
        if embeddings == "none":
            return maps
        return _with_states(maps, normed, class_logits, embeddings)

    def prepare(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 to normalised, padded right and at the bottom with zeros to a multiple of 32; rounded to dtype last."""
        canvas = _canvas(*pixels_BCHW.shape[-2:])
        x = torch.addcmul(self._shift, pixels_BCHW.float(), self._scale)
        x = F.pad(x, (0, canvas.padded_width - canvas.width, 0, canvas.padded_height - canvas.height))
        return x.to(self.dtype)

    def _runner_on(
        self, device: Device, wrap: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]
    ) -> BatchRunner:
        def layout(height: int, width: int) -> ResultBuffer:
            is_semantic = self.rules.task == "semantic"
            return ResultBuffer(
                _canvas(height, width), self.num_queries, self._width, len(self.classes), is_semantic
            )

        return BatchRunner(self._forward, self.prepare, self.rules, layout, device, wrap)


def _canvas(height: int, width: int) -> Canvas:
    """Padded right and at the bottom to a multiple of 32."""
    return Canvas(height, width, height + -height % _SIZE_DIVISOR, width + -width % _SIZE_DIVISOR)


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
