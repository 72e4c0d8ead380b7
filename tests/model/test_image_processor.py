"""The image processor against transformers', and where ours goes further or differs on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panoptile.model import (
    Mask2FormerImageProcessor,
    Mask2FormerImageProcessorFast,
    MaskFormerImageProcessor,
    MaskFormerImageProcessorFast,
)

GREY_LEVEL = 1 / 255 / 0.224
"""One grey level after normalisation, in the channel of the smallest deviation."""


def reference(kind: str = "Mask2Former", **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, f"{kind}ImageProcessorPil")(**settings)


def some_images(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]


def some_maps(*sizes: tuple[int, int], values: int = 6, seed: int = 1) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, values, (h // 8 + 1, w // 8 + 1)) for h, w in sizes]
    return [np.kron(c, np.ones((8, 8), int))[:h, :w] for c, (h, w) in zip(coarse, sizes, strict=True)]


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "edges": {"size": {"shortest_edge": 90, "longest_edge": 130}},
    "square": {"size": {"height": 64, "width": 96}},
    "within": {"size": {"max_height": 100, "max_width": 80}},
    "divisor 0": {"size": {"shortest_edge": 75, "longest_edge": 111}, "size_divisor": 0},
    "old size": {"size": 70, "max_size": 120},
    "bicubic": {"size": {"height": 80, "width": 70}, "resample": 3},
    "nearest": {"size": {"height": 80, "width": 70}, "resample": 0},
    "pad size": {"size": {"height": 64, "width": 64}, "pad_size": {"height": 100, "width": 120}},
    "untouched": {"do_resize": False, "do_rescale": False, "do_normalize": False},
    "no resize": {"do_resize": False},
    "no normalize": {"do_normalize": False, "size": {"height": 33, "width": 44}},
    "own mean": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "do_resize": False},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_inputs_equal_the_reference(case: str) -> None:
    """Shapes, padding and pixel masks are equal; values differ by one grey level at most, and few of them."""
    images, settings = some_images((60, 100), (113, 57)), SETTINGS[case]
    got = Mask2FormerImageProcessor(**settings)(images, return_tensors="pt")
    expected = reference(**settings)(images, return_tensors="pt")
    assert got.pixel_values.dtype == expected["pixel_values"].dtype or not settings.get("do_rescale", True)
    assert torch.equal(got.pixel_mask, expected["pixel_mask"])
    difference = (got.pixel_values - expected["pixel_values"]).abs()
    step = 1.0 if not settings.get("do_rescale", True) else GREY_LEVEL
    assert difference.shape == expected["pixel_values"].shape
    assert float(difference.max()) <= step * 1.01
    assert float(difference.mean()) <= step * 0.1, f"{difference.mean()} of {step}"


LABELS: dict[str, dict[str, Any]] = {
    "values are classes": {},
    "one table": {"instance_id_to_semantic_id": {i: i * 2 for i in range(6)}},
    "a table each": {
        "instance_id_to_semantic_id": [{i: 5 - i for i in range(6)}, dict.fromkeys(range(6), 0)]
    },
    "ignored": {"ignore_index": 3},
    "reduced": {"ignore_index": 255, "do_reduce_labels": True},
    "reduced table": {
        "ignore_index": 255,
        "do_reduce_labels": True,
        "instance_id_to_semantic_id": {i: 7 - i for i in range(6)},
    },
}


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("resize", [True, False], ids=["resized", "as is"])
def test_labels_equal_the_reference(case: str, resize: bool) -> None:
    """Masks and classes are equal inside the images; outside ours are 0, the reference's the ignored value."""
    sizes = (60, 100), (80, 72)
    images, maps = some_images(*sizes), some_maps(*sizes)
    options = LABELS[case] | {"do_resize": resize, "size": {"height": 64, "width": 64}}
    ids = options.pop("instance_id_to_semantic_id", None)
    # The reference cannot pad masks without a value to pad them with.
    padding = {} if "ignore_index" in options or resize else {"ignore_index": 254}
    got = Mask2FormerImageProcessor()(images, maps, ids, return_tensors="pt", **options)
    expected = reference()(images, maps, ids, return_tensors="pt", **(options | padding))
    for masks, classes, wanted, wanted_classes, inside in zip(
        got.mask_labels,
        got.class_labels,
        expected["mask_labels"],
        expected["class_labels"],
        got.pixel_mask.bool(),
        strict=True,
    ):
        assert classes.dtype == torch.int64
        assert torch.equal(classes, wanted_classes)
        assert masks.shape == wanted.shape
        assert masks.dtype == wanted.dtype
        assert torch.equal(masks[:, inside], wanted[:, inside])
        assert not masks[:, ~inside].any()


@pytest.mark.parametrize(
    "size", [(480, 640), (640, 480), (1, 999), (333, 333), (1333, 800), (799, 1400), (50, 3000)]
)
def test_sizes_equal_the_reference(size: tuple[int, int]) -> None:
    """The size of a resized image is the reference's for each form of ``size``, rounding included."""
    for settings in ({}, SETTINGS["edges"], SETTINGS["within"], SETTINGS["divisor 0"]):
        theirs = reference(**settings)
        image = np.zeros((3, *size), np.uint8)
        try:
            expected = theirs.resize(image, theirs.size, size_divisor=theirs.size_divisor).shape[1:]
        except ValueError:  # a side of 0 pixels
            continue
        assert Mask2FormerImageProcessor(**settings).settings.target_size(*size) == expected


def test_every_kind_of_image_gives_the_same_inputs() -> None:
    """Pillow, arrays and tensors, channels first or last, alone, in lists and in batches, are all read."""
    image_module = pytest.importorskip("PIL.Image")
    (array,) = some_images((40, 52))
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    processor = Mask2FormerImageProcessor(size={"height": 32, "width": 32})
    expected = processor(array, return_tensors="pt").pixel_values
    kinds: list[Any] = [
        image_module.fromarray(array),
        first,
        torch.from_numpy(first),
        [array],
        [[array]],
        array[None],
        torch.from_numpy(first)[None],
        first[:, ::-1][:, ::-1],
    ]
    for kind in kinds:
        assert torch.equal(processor(kind, return_tensors="pt").pixel_values, expected)
    assert torch.equal(processor.preprocess(array, return_tensors="pt")["pixel_values"], expected)
    as_numpy = processor(array, return_tensors="np").pixel_values
    assert isinstance(as_numpy, np.ndarray)
    assert isinstance(processor(array)["pixel_values"], list)
    with pytest.raises(ValueError, match="channels_first"):
        processor(np.zeros((7, 9, 5), np.uint8))
    five = Mask2FormerImageProcessor(image_mean=[0.5] * 5, image_std=[0.5] * 5, do_resize=False)
    shape = five(np.zeros((7, 9, 5), np.uint8), input_data_format="channels_last", return_tensors="pt")
    assert shape.pixel_values.shape == (1, 5, 7, 9)


def test_encode_inputs_pads_and_masks_alone() -> None:
    """Images that are ready otherwise are only padded; label maps become masks."""
    pixels = [torch.randn(3, 20, 30), torch.randn(3, 24, 10)]
    maps = [torch.randint(0, 3, (20, 30)), torch.randint(0, 3, (24, 10))]
    batch = Mask2FormerImageProcessor().encode_inputs(pixels, maps, ignore_index=0, return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 24, 30)
    assert torch.equal(batch.pixel_values[1, :, :, :10], pixels[1])
    assert not batch.pixel_values[1, :, :, 10:].any()
    assert [c.tolist() for c in batch.class_labels] == [[1, 2], [1, 2]]
    assert [m.shape for m in batch.mask_labels] == [(2, 24, 30), (2, 24, 30)]


def test_an_image_without_objects_gets_no_masks() -> None:
    """A map that holds the ignored value alone gives masks of shape (0, H, W), which the loss accepts."""
    batch = Mask2FormerImageProcessor(do_resize=False)(
        some_images((16, 16)), [np.full((16, 16), 255)], ignore_index=255, return_tensors="pt"
    )
    assert batch.mask_labels[0].shape == (0, 16, 16)
    assert batch.class_labels[0].shape == (0,)


@pytest.mark.parametrize(
    "ours",
    [
        Mask2FormerImageProcessor,
        Mask2FormerImageProcessorFast,
        MaskFormerImageProcessor,
        MaskFormerImageProcessorFast,
    ],
)
def test_a_saved_folder_loads_in_transformers_and_here(ours: Any, tmp_path: Path) -> None:
    """``AutoImageProcessor`` finds its class and the same settings; so do we, in what transformers saves."""
    transformers = pytest.importorskip("transformers")
    settings = {"size": {"height": 48, "width": 80}, "ignore_index": 255, "do_reduce_labels": True}
    processor = ours(**settings)
    processor.save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert type(theirs).__name__.startswith(ours.__name__.removesuffix("Fast"))
    (image,) = some_images((60, 60))
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    assert float((processor(image, return_tensors="pt").pixel_values - expected).abs().max()) <= GREY_LEVEL
    theirs.save_pretrained(tmp_path / "theirs")
    again = ours.from_pretrained(tmp_path / "theirs")
    assert again.to_dict() == processor.to_dict()
    assert ours.from_pretrained(tmp_path / "ours", size_divisor=8).size_divisor == 8


def test_old_files_are_read(tmp_path: Path) -> None:
    """The settings of the public checkpoints, with the names of earlier versions, mean what they meant."""
    values = {
        "_max_size": 2048,
        "feature_extractor_type": "MaskFormerFeatureExtractor",
        "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
        "max_size": 1333,
        "reduce_labels": True,
        "ignore_index": 255,
        "resample": 2,
        "size": 800,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"shortest_edge": 800, "longest_edge": 1333}
    assert processor.do_reduce_labels


def test_contradictions_are_refused() -> None:
    """What does not fit together is named: counts, sizes, channels, tables, settings."""
    images, maps = some_images((16, 16), (16, 16)), some_maps((16, 16), (16, 16))
    processor = Mask2FormerImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match="2 images, but 1 segmentation maps"):
        processor(images, maps[:1])
    with pytest.raises(ValueError, match="no class for"):
        processor(images, maps, {0: 1})
    with pytest.raises(ValueError, match="smaller than an image of 16x16"):
        processor(images, pad_size={"height": 8, "width": 99})
    with pytest.raises(ValueError, match="needs an ignore_index"):
        Mask2FormerImageProcessor(do_reduce_labels=True)
    with pytest.raises(ValueError, match="4 channels"):
        processor(np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="size needs"):
        Mask2FormerImageProcessor(size={"depth": 3})
    with pytest.raises(ValueError, match='"pt", "np" or None'):
        processor(images, return_tensors="tf")
    with pytest.raises(TypeError, match="flux"):
        processor(images, flux=1)
    with pytest.raises(ValueError, match="no folder"):
        Mask2FormerImageProcessor.from_pretrained(Path("nowhere"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_images_on_a_gpu_stay_there() -> None:
    """Inputs are where the images are, within one grey level of the CPU's."""
    (image,) = some_images((60, 70))
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    processor = Mask2FormerImageProcessor(size={"height": 32, "width": 64})
    got = processor(pixels.cuda(), return_tensors="pt").pixel_values
    assert got.is_cuda
    assert float((got.cpu() - processor(pixels, return_tensors="pt").pixel_values).abs().max()) <= GREY_LEVEL
