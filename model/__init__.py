"""The network: what a replica computes. Pure PyTorch; knows neither Ray nor storage.

Unusual: the names below are found on first use, so that importing this package imports no torch. They are the
documented names of transformers' classes: changing one import is enough to use these instead.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panoptile.model.config import Mask2FormerConfig
    from panoptile.model.image_processor import (
        Mask2FormerImageProcessor,
        Mask2FormerImageProcessorFast,
        MaskFormerImageProcessor,
        MaskFormerImageProcessorFast,
    )
    from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation, Mask2FormerModel
    from panoptile.model.outputs import Mask2FormerForUniversalSegmentationOutput, Mask2FormerModelOutput

_MODULE_OF = {
    "Mask2FormerConfig": "config",
    "Mask2FormerForUniversalSegmentation": "mask2former",
    "Mask2FormerForUniversalSegmentationOutput": "outputs",
    "Mask2FormerImageProcessor": "image_processor",
    "Mask2FormerImageProcessorFast": "image_processor",
    "Mask2FormerModel": "mask2former",
    "Mask2FormerModelOutput": "outputs",
    "MaskFormerImageProcessor": "image_processor",
    "MaskFormerImageProcessorFast": "image_processor",
}

__all__ = [
    "Mask2FormerConfig",
    "Mask2FormerForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentationOutput",
    "Mask2FormerImageProcessor",
    "Mask2FormerImageProcessorFast",
    "Mask2FormerModel",
    "Mask2FormerModelOutput",
    "MaskFormerImageProcessor",
    "MaskFormerImageProcessorFast",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"The package {__name__} has no attribute {name!r}.")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
