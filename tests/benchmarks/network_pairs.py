"""One thread, and a Swin-T with COCO's classes in both implementations with the same random weights."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import tempfile
from typing import Any, NamedTuple

import torch

from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

torch.set_num_threads(1)


class Pair(NamedTuple):
    """The same network twice."""

    ours: Any
    reference: Any


def swin_tiny(*, seed: int = 0, num_labels: int = 133) -> Pair:
    """47 M parameters, 100 queries; deformable offsets depend on the pixels, as in a trained network."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = transformers.SwinConfig(depths=[2, 2, 6, 2], out_features=stages)
    config = transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=num_labels)
    torch.manual_seed(seed)
    reference = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                parameter.normal_(std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        ours = Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    return Pair(ours, reference)
