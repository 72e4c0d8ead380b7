"""How many floating point operations one forward pass takes; counted on tensors without memory.

Unusual: a multiply and an add are two operations. Counted are matrix products, convolutions, attention and the weighted
sums of the deformable attention; norms, activations and other element-wise steps are not, as is usual.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation


def forward_flops(config: Mask2FormerConfig, height: int, width: int) -> int:
    """Operations for one image of (height, width)."""
    with torch.device("meta"):
        network = Mask2FormerForUniversalSegmentation(config).eval().requires_grad_(False)
        image = torch.empty(1, config.num_channels, height, width)
    aten: Any = torch.ops.aten
    sums = {aten._embedding_bag: _weighted_sums, aten._embedding_bag_forward_only: _weighted_sums}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=sums) as counter:
        network(image)
    return int(counter.get_total_flops())


def _weighted_sums(
    table: tuple[int, ...], indices: tuple[int, ...], *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    """One multiply and one add per looked-up row and channel."""
    return 2 * math.prod(indices) * table[-1]
