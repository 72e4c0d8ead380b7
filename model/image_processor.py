"""Images into network inputs, and the network's output into maps: the documented processors.

Unusual: it works on torch tensors throughout, on whatever device the images are, with neither Pillow nor torchvision
in the way (Pillow images are accepted). Resized values are within one grey level of Pillow's. The post-processing is
:mod:`panoptile.model.postprocess`, with the reference's rules unless the paper's are asked for.

Letters: B batch, C channels, H W pixels, N objects of one image.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from panoptile.model import postprocess
from panoptile.model.hub import resolve_folder, split_hub_options
from panoptile.model.image_batch import (
    BatchFeature,
    as_images,
    as_label_maps,
    as_rgb,
    binary_masks,
    normalised,
    padded,
    resized,
)
from panoptile.model.image_settings import ImageSettings
from panoptile.model.outputs import SemanticSegmentation
from panoptile.model.postprocess import HF_GRID, Semantics, Size

PROCESSOR_NAME = "preprocessor_config.json"

Ids = Mapping[int, int]


class Mask2FormerImageProcessor:
    """Prepares images and label maps for the network and reads its output; settings as in ``ImageSettings``."""

    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_mask")
    grid: ClassVar[Size | None] = HF_GRID
    """Size to which the reference's post-processing brings the masks first."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ImageSettings.from_keywords(settings)

    def __getattr__(self, name: str) -> Any:
        """Settings are attributes too, such as ``processor.size``."""
        settings = self.__dict__.get("settings")
        if settings is None or name not in settings.__dataclass_fields__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
        return getattr(settings, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __call__(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Ids | Sequence[Ids] | None = None,
        **changes: Any,
    ) -> BatchFeature:
        """The same as :meth:`preprocess`."""
        return self.preprocess(images, segmentation_maps, instance_id_to_semantic_id, **changes)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Ids | Sequence[Ids] | None = None,
        *,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        device: torch.device | str | None = None,
        **changes: Any,
    ) -> BatchFeature:
        """One image or several (tensors, arrays, Pillow; (H, W), (C, H, W), (H, W, C) or batches) to inputs.

        Returns ``pixel_values`` (B, C, H, W) and ``pixel_mask`` (B, H, W), 1 where there is image, both padded to the
        largest image or to ``pad_size``; with ``segmentation_maps`` (H, W) also ``mask_labels`` B of (N, H, W) and
        ``class_labels`` B of (N,). ``instance_id_to_semantic_id``, one for all or one an image, names the class of
        each value of the maps. ``changes`` override settings for this call. ``return_tensors`` is "pt" or "np";
        without it images stay in lists. Raises ``ValueError`` for what does not fit together.
        """
        settings = self.settings.changed(changes)
        prepared = as_images(images, input_data_format, device=device)
        if settings.do_convert_rgb:
            prepared = [as_rgb(image) for image in prepared]
        if settings.do_resize:
            prepared = [resized(image, settings) for image in prepared]
        size = settings.padded_size([(image.shape[-2], image.shape[-1]) for image in prepared])
        data: dict[str, Any] = {
            "pixel_values": [padded(normalised(image, settings), size, 0.0) for image in prepared],
            "pixel_mask": [
                padded(torch.ones_like(image[0], dtype=torch.int64), size, 0) for image in prepared
            ],
        }
        if segmentation_maps is not None:
            data |= self._labels(segmentation_maps, instance_id_to_semantic_id, settings, size, prepared)
        return BatchFeature.of(data, return_tensors)

    def _labels(
        self,
        maps: Any,
        ids: Ids | Sequence[Ids] | None,
        settings: ImageSettings,
        size: Size,
        images: list[Tensor],
    ) -> dict[str, list[Tensor]]:
        label_maps = as_label_maps(maps, device=images[0].device)
        if len(label_maps) != len(images):
            raise ValueError(f"There are {len(images)} images, but {len(label_maps)} segmentation maps.")
        each = list(ids) if isinstance(ids, Sequence) else [ids] * len(images)
        if len(each) != len(images):
            raise ValueError(f"There are {len(images)} images, but {len(each)} instance_id_to_semantic_id.")
        masks, classes = [], []
        for label_map, of_image in zip(label_maps, each, strict=True):
            if settings.do_resize:
                label_map = resized(label_map[None], settings, nearest=True)[0]
            found, labels = binary_masks(label_map, of_image, settings)
            # Not ignore_index, as the reference pads them with: a mask is 0 or 1, and padding is no part of it.
            masks.append(padded(found, size, 0.0))
            classes.append(labels)
        return {"mask_labels": masks, "class_labels": classes}

    def encode_inputs(
        self,
        pixel_values_list: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: Ids | Sequence[Ids] | None = None,
        ignore_index: int | None = None,
        do_reduce_labels: bool = False,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
    ) -> BatchFeature:
        """Pad and batch images that are ready for the network otherwise, and turn label maps into masks."""
        return self.preprocess(
            pixel_values_list,
            segmentation_maps,
            instance_id_to_semantic_id,
            ignore_index=ignore_index,
            do_reduce_labels=do_reduce_labels,
            do_resize=False,
            do_rescale=False,
            do_normalize=False,
            return_tensors=return_tensors,
            input_data_format=input_data_format,
        )

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size] | Tensor | None = None,
        return_segmentation_scores: bool = False,
        *,
        semantics: Semantics = "hf",
        pixel_mask: Tensor | None = None,
    ) -> list[Tensor] | list[SemanticSegmentation]:
        """See :func:`panoptile.model.postprocess.post_process_semantic_segmentation`."""
        return postprocess.post_process_semantic_segmentation(
            outputs,
            target_sizes,
            return_segmentation_scores,
            semantics=semantics,
            pixel_mask=pixel_mask,
            grid=self.grid,
        )

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sequence[Size] | Tensor | None = None,
        return_coco_annotation: bool | None = False,
        return_binary_maps: bool | None = False,
        *,
        semantics: Semantics = "hf",
        thing_label_ids: Collection[int] | None = None,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """See :func:`panoptile.model.postprocess.post_process_instance_segmentation`."""
        return postprocess.post_process_instance_segmentation(
            outputs,
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            target_sizes,
            return_coco_annotation,
            return_binary_maps,
            semantics=semantics,
            thing_label_ids=thing_label_ids,
            pixel_mask=pixel_mask,
            grid=self.grid,
        )

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sequence[Size] | Tensor | None = None,
        *,
        semantics: Semantics = "hf",
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """See :func:`panoptile.model.postprocess.post_process_panoptic_segmentation`."""
        return postprocess.post_process_panoptic_segmentation(
            outputs,
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            label_ids_to_fuse,
            target_sizes,
            semantics=semantics,
            pixel_mask=pixel_mask,
            grid=self.grid,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """Build from a parsed ``preprocessor_config.json``; ``changes`` override its values."""
        return cls(**(dict(values) | changes))

    @classmethod
    def from_pretrained(cls, source: str | Path, **changes: Any) -> Self:
        """Read ``preprocessor_config.json`` of a folder or of a model on the hub; ``changes`` override its values.

        The keywords of :func:`panoptile.model.hub.resolve_folder` are for the hub. Raises ``ValueError`` if there is no
        such file, or if it cannot be used.
        """
        options, changes = split_hub_options(changes)
        path = Path(source)
        if not path.is_file():
            path = resolve_folder(source, files=(PROCESSOR_NAME,), **options) / PROCESSOR_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ValueError(f"Cannot read the settings of the image processor {path}: {e}.") from e
        return cls.from_dict(values, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``preprocessor_config.json``, which transformers' ``AutoImageProcessor`` reads too."""
        name = type(self).__name__.removesuffix("Fast")
        return self.settings.to_dict() | {"image_processor_type": name}

    def to_json_string(self) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``preprocessor_config.json``; the folder is made if it is missing."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / PROCESSOR_NAME).write_text(self.to_json_string(), encoding="utf-8")

    def with_settings(self, **changes: Any) -> Self:
        """A processor with some settings changed."""
        other = type(self)()
        other.settings = replace(self.settings.changed(changes))
        return other


class Mask2FormerImageProcessorFast(Mask2FormerImageProcessor):
    """The same under the name that it had in transformers 4; ours has one implementation."""


class MaskFormerImageProcessor(Mask2FormerImageProcessor):
    """The same for MaskFormer, whose masks the reference's post-processing takes as they are."""

    grid = None


class MaskFormerImageProcessorFast(MaskFormerImageProcessor):
    """The same under the name that it had in transformers 4."""
