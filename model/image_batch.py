"""From images of any kind to a padded batch of tensors, and from label maps to masks.

Unusual: uint8 images stay uint8 until they are resized, as in Pillow: its results are rounded to grey levels too.
Images on a GPU are resized in fp32 and rounded there.

Letters: C channels, H W pixels, N objects of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptile.model.image_settings import ImageSettings, Size

_CHANNELS = (1, 3, 4)
_FILTERS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


class BatchFeature(dict[str, Any]):
    """Network inputs by name, also as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"These inputs have no {name}; they have {', '.join(self)}.")
        return self[name]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move all tensors (and those in lists) as ``Tensor.to`` does; a dtype applies to floating point ones."""
        dtype = kwargs.pop("dtype", None) or next((a for a in args if isinstance(a, torch.dtype)), None)
        places = tuple(a for a in args if not isinstance(a, torch.dtype))

        def move(value: Any) -> Any:
            if isinstance(value, list):
                return [move(v) for v in value]
            if not isinstance(value, Tensor):
                return value
            moved = value.to(*places, **kwargs) if places or kwargs else value
            return moved.to(dtype) if dtype is not None and moved.is_floating_point() else moved

        for name, value in self.items():
            self[name] = move(value)
        return self

    @classmethod
    def of(cls, data: Mapping[str, list[Tensor]], kind: str | None) -> Self:
        """Lists of tensors as batches: torch for "pt", numpy for "np"; None leaves the lists.

        Masks and classes stay lists, because images differ in their number.
        """
        name = getattr(kind, "value", kind)
        if name not in ("pt", "np", None):
            raise ValueError(f'return_tensors must be "pt", "np" or None, got {kind!r}.')
        found: dict[str, Any] = {}
        for key, tensors in data.items():
            batched = key.startswith("pixel")
            if name == "np":
                arrays = [t.cpu().numpy() for t in tensors]
                found[key] = np.stack(arrays) if batched else arrays
            else:
                found[key] = torch.stack(tensors) if batched and name == "pt" else tensors
        return cls(found)


def as_images(images: Any, data_format: str | None, *, device: torch.device | str | None) -> list[Tensor]:
    """Images as (C, H, W) tensors. A batch (B, …) counts as B images; a grey image gets one channel.

    ``data_format`` is "channels_first" or "channels_last"; without it the axis of 1, 3 or 4 values is the channels',
    the first one in doubt.
    """
    found = []
    for image in _flat(images, ndim=3):
        pixels = _as_tensor(image, device, as_colours=True)
        if pixels.ndim == 2:
            found.append(pixels[None])
            continue
        if pixels.ndim != 3:
            raise ValueError(f"An image has 2 or 3 axes, got one of shape {tuple(pixels.shape)}.")
        if _is_channels_last(image, pixels, data_format):
            pixels = pixels.permute(2, 0, 1)
        found.append(pixels.contiguous())
    if not found:
        raise ValueError("There are no images.")
    return found


def as_rgb(image_CHW: Tensor) -> Tensor:
    """Three channels: of one, three copies; of four, without the last; ``ValueError`` for other numbers."""
    channels = len(image_CHW)
    if channels not in _CHANNELS:
        raise ValueError(f"An image of {channels} channels cannot be made RGB.")
    return image_CHW.expand(3, -1, -1) if channels == 1 else image_CHW[:3]


def as_label_maps(maps: Any, *, device: torch.device | str | None) -> list[Tensor]:
    """Label maps as int64 (H, W) tensors."""
    found = [_as_tensor(label_map, device).long() for label_map in _flat(maps, ndim=2)]
    found = [m[0] if m.ndim == 3 and m.shape[0] == 1 else m for m in found]
    for label_map in found:
        if label_map.ndim != 2:
            raise ValueError(f"A segmentation map has the axes (H, W), got {tuple(label_map.shape)}.")
    return found


def resized(image_CHW: Tensor, settings: ImageSettings, *, nearest: bool = False) -> Tensor:
    """An image at the size of the settings, antialiased, in its own dtype; label maps ask for ``nearest``."""
    size = settings.target_size(image_CHW.shape[-2], image_CHW.shape[-1])
    if tuple(image_CHW.shape[-2:]) == size:
        return image_CHW
    mode = _FILTERS[0 if nearest else settings.resample]
    if mode == "nearest-exact":
        return _nearest(image_CHW, size)
    # Pillow rounds between its two passes, and its order is that: rows first only where that makes less to do.
    (height, width), (rows, cols) = image_CHW.shape[-2:], size
    vertical_first = rows < height and rows * width < height * cols
    middle = (rows, width) if vertical_first else (height, cols)
    return _smooth(_smooth(image_CHW, middle, mode), size, mode)


def _smooth(image_CHW: Tensor, size: Size, mode: str) -> Tensor:
    """Antialiased resize; uint8 stays uint8 (torch has that kernel on CPUs only), anything else becomes fp32."""
    is_grey_levels = image_CHW.dtype == torch.uint8
    pixels = image_CHW if is_grey_levels and image_CHW.device.type == "cpu" else image_CHW.float()
    smooth = F.interpolate(pixels[None], size=size, mode=mode, antialias=True)[0]
    if is_grey_levels and smooth.dtype != torch.uint8:
        return smooth.round_().clamp_(0, 255).to(torch.uint8)
    return smooth


def _nearest(image_CHW: Tensor, size: Size) -> Tensor:
    """Nearest pixel by its centre, for any dtype (label ids beyond 2^24 must not pass through fp32)."""
    rows, cols = (
        ((torch.arange(n, device=image_CHW.device, dtype=torch.float64) + 0.5) * (old / n))
        .long()
        .clamp(max=old - 1)
        for n, old in zip(size, image_CHW.shape[-2:], strict=True)
    )
    return image_CHW[:, rows[:, None], cols]


def normalised(image_CHW: Tensor, settings: ImageSettings) -> Tensor:
    """fp32 pixels, rescaled and normalised as far as the settings say; raises ``ValueError`` on other channels."""
    pixels = image_CHW.float()
    if settings.do_rescale:
        pixels = pixels * settings.rescale_factor
    if settings.do_normalize:
        count = len(pixels)
        mean, std = (_per_channel(v, count, pixels) for v in (settings.image_mean, settings.image_std))
        pixels = (pixels - mean) / std
    return pixels


def _per_channel(values: tuple[float, ...], channels: int, like: Tensor) -> Tensor:
    if len(values) not in (1, channels):
        raise ValueError(
            f"The image has {channels} channels, but mean and deviation are given for {len(values)}: "
            "pass image_mean and image_std of as many values."
        )
    return like.new_tensor(values)[:, None, None]


def padded(pixels: Tensor, size: Size, fill: float) -> Tensor:
    """(…, H, W) with ``fill`` added on the right and at the bottom."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, size[1] - width, 0, size[0] - height), value=fill)


def binary_masks(
    label_map: Tensor, ids: Mapping[int, int] | None, settings: ImageSettings
) -> tuple[Tensor, Tensor]:
    """Masks (N, H, W) fp32 of the values of a label map, in ascending order, and their classes (N,) int64.

    ``ids`` gives the class of each value as it stands in the map; without it the value is the class. With
    ``do_reduce_labels`` both count from one in the map and from zero in the result.
    """
    ignored = settings.ignore_index
    if settings.do_reduce_labels:
        assert ignored is not None
        label_map = torch.where(label_map == 0, ignored, label_map - 1)
    values = torch.unique(label_map)
    if ignored is not None:
        values = values[values != ignored]
    masks = (label_map == values[:, None, None]).float()
    if ids is None:
        return masks, values
    shift = int(settings.do_reduce_labels)
    missing = [v + shift for v in values.tolist() if v + shift not in ids]
    if missing:
        raise ValueError(
            f"instance_id_to_semantic_id has no class for {missing[:8]} of the segmentation map."
        )
    classes = [int(ids[v + shift]) - shift for v in values.tolist()]
    return masks, torch.tensor(classes, dtype=torch.int64, device=masks.device)


def _flat(images: Any, *, ndim: int) -> list[Any]:
    """Single images out of one image, a batch, or nested lists of them."""
    if isinstance(images, list | tuple):
        return [single for item in images for single in _flat(item, ndim=ndim)]
    shape = getattr(images, "shape", None)
    if shape is not None and len(shape) > max(ndim, 3):
        return [single for item in images for single in _flat(item, ndim=ndim)]
    if shape is not None and ndim == 2 and len(shape) == 3:
        return list(images)
    return [images]


def _as_tensor(image: Any, device: torch.device | str | None, *, as_colours: bool = False) -> Tensor:
    if isinstance(image, Tensor):
        return image if device is None else image.to(device)
    if getattr(image, "mode", None) == "P":  # numbers of a palette, not grey levels
        image = image.convert("RGB") if as_colours else image
    array = np.asarray(image)
    if array.dtype == object or array.ndim < 2:
        raise ValueError(f"Expected a tensor, an array or a Pillow image, got {type(image).__name__}.")
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    # A copy: torch takes neither negative strides nor read-only arrays.
    return torch.from_numpy(array.copy()).to(device or "cpu")


def _is_channels_last(image: Any, pixels: Tensor, data_format: str | None) -> bool:
    if data_format is not None:
        name = getattr(data_format, "value", data_format)
        if name not in ("channels_first", "channels_last"):
            raise ValueError(
                f'input_data_format must be "channels_first" or "channels_last", got {data_format!r}.'
            )
        return bool(name == "channels_last")
    if hasattr(image, "getbands"):  # Pillow's
        return True
    if pixels.shape[0] in _CHANNELS:
        return False
    if pixels.shape[-1] in _CHANNELS:
        return True
    raise ValueError(
        f"Which axis of {tuple(pixels.shape)} holds the channels? Pass input_data_format, "
        '"channels_first" or "channels_last".'
    )
