"""The public weights give their published slices; for users who have them.

Runs where the variable PANOPTILE_TEST_WEIGHTS names a folder that holds ``mask2former-swin-small-coco-instance`` (a
checkpoint folder) and the picture that the slices were taken from, ``000000039769`` of COCO's validation set, as
``000000039769.png`` or ``.jpg``. It has not run where this was written: neither is there.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from panoptile.model import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

NAME = "mask2former-swin-small-coco-instance"
SIZE = {"height": 384, "width": 384}
TOLERANCE = 1e-4
ENCODER_ROW = (-0.2790, -1.0717, -1.1668)
"""First row and three columns of the first channel of the backbone's last map."""
MASK_ROW = (-8.7839, -9.0056, -8.8121)
"""The same of the first query's mask logits."""
CLASS_ROW = (1.8324, -8.0835, -4.1922)
"""The first query's logits of the first three classes."""


@pytest.fixture(scope="module")
def pixels_and_folder() -> tuple[Tensor, Path]:
    """The picture as the network's input, and the checkpoint."""
    root = Path(os.environ.get("PANOPTILE_TEST_WEIGHTS", ""))
    pictures = [p for p in (root / f"000000039769{s}" for s in (".png", ".jpg")) if p.is_file()]
    if not os.environ.get("PANOPTILE_TEST_WEIGHTS") or not (root / NAME).is_dir() or not pictures:
        pytest.skip(
            f"PANOPTILE_TEST_WEIGHTS names no folder with {NAME} and 000000039769.png: public weights are NOT tested"
        )
    image = pytest.importorskip("PIL.Image").open(pictures[0]).convert("RGB")
    processor = Mask2FormerImageProcessor(size=SIZE)
    pixels = processor.preprocess(np.asarray(image), return_tensors="pt")["pixel_values"]
    return pixels, root / NAME


def test_slices_are_the_published_ones(pixels_and_folder: tuple[Tensor, Path]) -> None:
    """Backbone map, mask logits and class logits of the small Swin agree to 1e-4 with the public figures."""
    pixels, folder = pixels_and_folder
    network = Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    with torch.inference_mode():
        output = network(pixels)
    slices = {
        "encoder": (output.encoder_last_hidden_state[0, 0, 0, :3], ENCODER_ROW),
        "masks": (output.masks_queries_logits[0, 0, 0, :3], MASK_ROW),
        "classes": (output.class_queries_logits[0, 0, :3], CLASS_ROW),
    }
    for name, (got, expected) in slices.items():
        difference = float((got - torch.tensor(expected)).abs().max())
        assert difference <= TOLERANCE, f"{name}: {got.tolist()} differs by {difference} from {expected}"
