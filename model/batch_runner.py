"""Batches of tiles through a network on a GPU: pinned copies, one CUDA graph from pixels to buffer, one copy back.

Unusual: everything between the uint8 batch and the packed result is one function of fixed shapes, so that a captured
graph holds all of it. Nothing here asks the device for a value; the host waits once per batch, for the result's copy.
Measured on no GPU yet; ``tests/benchmarks/forward_cuda.py`` does that. On a CPU the same code is tested with lanes and
graphs that stand in for CUDA's.

Letters: B batch, C channels, H W pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panoptile.model.batch_fusion import fuse_batch
from panoptile.model.device_copies import Device, DoubleBuffer, Shape, Ticket
from panoptile.model.fusion import FusionRules
from panoptile.model.panoptic_map import PanopticMap
from panoptile.model.result_buffer import Embeddings, ResultBuffer

Forward = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""From normalised, padded pixels to class logits, mask logits and layer-normed query states."""
Wrap = Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]


class BatchRunner:
    """Starts batches and gives their maps; two batches may be in flight."""

    def __init__(
        self,
        forward: Forward,
        prepare: Callable[[Tensor], Tensor],
        rules: FusionRules,
        layout: Callable[[int, int], ResultBuffer],
        device: Device,
        wrap: Wrap = lambda function: function,
    ) -> None:
        """``prepare`` normalises and pads uint8 pixels; ``layout`` is that of tiles of (H, W).

        ``wrap`` may put graphs around the whole, see ``GraphCache``.
        """
        self._forward, self._prepare, self._rules, self._layout = forward, prepare, rules, layout
        self._buffer: DoubleBuffer[list[PanopticMap]] = DoubleBuffer(
            device, wrap(self.run), lambda shape: (shape[0], self._layout_of(shape).length)
        )

    def start(self, pixels_BCHW: NDArray[np.uint8], embeddings: Embeddings) -> Ticket[list[PanopticMap]]:
        """Queue a batch; its maps come in order when the ticket is asked."""
        layout = self._layout_of(tuple(pixels_BCHW.shape))
        return self._buffer.start(pixels_BCHW, lambda buffer: layout.read(buffer, embeddings))

    @torch.inference_mode()
    def run(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 pixels on the device to the packed (B, n) int32 buffer there."""
        x_BCHW = self._prepare(pixels_BCHW)
        class_logits, mask_logits, normed = self._forward(x_BCHW)
        layout = self._layout_of(tuple(pixels_BCHW.shape))
        fused = fuse_batch(class_logits, mask_logits, layout.canvas, self._rules)
        return layout.pack(fused, normed, class_logits)

    def _layout_of(self, shape: Shape) -> ResultBuffer:
        height, width = shape[-2:]
        return self._layout(height, width)
