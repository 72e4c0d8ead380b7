"""Run-length encodings of binary masks: COCO's, which reads down the columns, and one that reads along the rows.

Unusual: the row-wise one gives (start, length) pairs with starts from 1, as the reference library's processors do. It
is not COCO's, whatever its users call it; it is here for those who rely on it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_major_runs(mask_HW: Tensor) -> list[int]:
    """Start (from 1) and length of each run of ones, alternating, with pixels counted along the rows."""
    starts, stops = _edges(mask_HW.flatten())
    runs: list[int] = torch.stack([starts + 1, stops - starts], dim=1).flatten().tolist()
    return runs


def coco_counts(mask_HW: Tensor) -> list[int]:
    """COCO's uncompressed counts: zeros, ones, zeros, … with pixels counted down the columns; the first may be 0."""
    starts, stops = _edges(mask_HW.T.flatten())
    edges = torch.stack([starts, stops], dim=1).flatten()
    bounds = torch.cat([edges.new_zeros(1), edges, edges.new_tensor([mask_HW.numel()])])
    counts: list[int] = bounds.diff().tolist()
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def _edges(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """First pixel of each run of ones, and the one after its last."""
    padded = torch.cat([pixels.new_zeros(1), pixels, pixels.new_zeros(1)]).to(torch.int8)
    steps = padded.diff()
    return (steps == 1).nonzero()[:, 0], (steps == -1).nonzero()[:, 0]
