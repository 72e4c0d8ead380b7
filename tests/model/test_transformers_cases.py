"""The offline cases of transformers' own tests of Mask2Former, in our words, on our classes.

``docs/design/003-transformers-parity.md`` lists all cases of those files, with where each one is proven here or why it
does not apply. Sizes and settings are theirs; what is checked is at least what they check.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panoptile.model import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerImageProcessor,
    Mask2FormerImageProcessorFast,
    Mask2FormerModel,
)
from panoptile.model.rle import row_major_runs

PROCESSORS = [Mask2FormerImageProcessor, Mask2FormerImageProcessorFast]
SETTINGS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 32, "longest_edge": 1333},
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size_divisor": 0,
    "num_labels": 10,
    "do_reduce_labels": True,
    "ignore_index": 255,
    "pad_size": None,
}


def small_config(**changes: Any) -> Any:
    config: Any = Mask2FormerConfig(hidden_size=64, num_queries=10)
    config.num_labels = 4
    config.backbone_config.depths = [1, 1, 1, 1]
    config.encoder_feedforward_dim = 64
    config.dim_feedforward = 128
    config.mask_feature_size = config.feature_size = config.hidden_dim
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def small_inputs(size: int = 128) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.rand(2, 3, size, size, generator=generator),
        "pixel_mask": torch.ones(2, size, size),
        "mask_labels": (torch.rand(2, 4, size, size, generator=generator) > 0.5).float(),
        "class_labels": torch.randint(2, (2, 4), generator=generator),
    }


def fake_outputs(queries: int = 3) -> Any:
    generator = torch.Generator().manual_seed(queries)
    return Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=torch.randn(2, queries, 3, generator=generator),
        masks_queries_logits=torch.randn(2, queries, 3, 4, generator=generator),
    )


# --- processors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", PROCESSORS)
class TestProcessors:
    """Cases of the processors' test file."""

    def test_settings_are_attributes(self, processor: Any) -> None:
        """Every setting can be read from the processor, with the value that was given."""
        made = processor(**SETTINGS)
        for name, value in SETTINGS.items():
            given = tuple(value) if isinstance(value, list) else value
            assert getattr(made, name) == given
        assert not hasattr(made, "no_such_setting")

    def test_a_dict_with_keywords_takes_the_keywords(self, processor: Any) -> None:
        """Keywords win over the dict, old names of size and divisor included."""
        made = processor.from_dict(SETTINGS)
        assert (made.size, made.size_divisor) == ({"shortest_edge": 32, "longest_edge": 1333}, 0)
        changed = processor.from_dict(SETTINGS, size=42, max_size=84, size_divisibility=8)
        assert (changed.size, changed.size_divisor) == ({"shortest_edge": 42, "longest_edge": 84}, 8)

    def test_the_old_name_of_reduced_labels(self, processor: Any) -> None:
        """``reduce_labels`` is read as ``do_reduce_labels``, by the constructor and from a dict."""
        old = {k: v for k, v in SETTINGS.items() if k != "do_reduce_labels"} | {"reduce_labels": True}
        assert processor(**old).do_reduce_labels
        assert processor.from_dict(old).do_reduce_labels

    @pytest.mark.parametrize("divisor", [8, 16, 32])
    @pytest.mark.parametrize("size", [(407, 802), (582, 1094)])
    def test_sizes_are_multiples_of_the_divisor(
        self, processor: Any, divisor: int, size: tuple[int, int]
    ) -> None:
        """Both sides of the input are multiples of the divisor, for floating point images too."""
        made = processor(**(SETTINGS | {"size_divisor": divisor}))
        shape = made([np.ones((3, *size))], return_tensors="pt").pixel_values.shape
        assert shape[-1] % divisor == shape[-2] % divisor == 0

    @pytest.mark.parametrize("as_instances", [False, True])
    @pytest.mark.parametrize("kind", ["array", "pillow"])
    @pytest.mark.parametrize(
        ("channels", "data_format", "do_resize"),
        [
            (3, None, True),
            (1, None, True),
            (1, "channels_first", True),
            (2, "channels_last", True),
            (5, "channels_last", False),
            (5, "channels_first", False),
            (5, "channels_last", True),
        ],
    )
    def test_masks_are_padded_like_the_images(
        self,
        processor: Any,
        as_instances: bool,
        kind: str,
        channels: int,
        data_format: str | None,
        do_resize: bool,
    ) -> None:
        """As many classes as masks, masks as large as the inputs: for 1, 2, 3 and 5 channels in either order.

        The reference cannot resize five channels (a Pillow error is its expected outcome); ours can.
        """
        image_module = pytest.importorskip("PIL.Image")
        rng = np.random.default_rng(channels)
        sizes = [(60, 41), (33, 70)]
        images = [rng.integers(0, 255, (*size, channels), dtype=np.uint8) for size in sizes]
        maps: list[Any] = [rng.integers(0, 20, size).astype(np.uint8) for size in sizes]
        if data_format == "channels_first":
            images = [np.moveaxis(image, -1, 0) for image in images]
        if kind == "pillow":
            maps = [image_module.fromarray(m) for m in maps]
        ids = {i: i % 10 for i in range(21)} if as_instances else None
        settings = SETTINGS | {
            "do_resize": do_resize,
            "image_mean": [0.5] * channels,
            "image_std": [0.5] * channels,
        }
        inputs = processor(**settings)(
            images,
            maps,
            return_tensors="pt",
            instance_id_to_semantic_id=ids,
            pad_and_return_pixel_mask=True,
            input_data_format=data_format,
        )
        for masks, classes in zip(inputs["mask_labels"], inputs["class_labels"], strict=True):
            assert len(masks) == len(classes) > 0
            assert masks.shape[1:] == inputs["pixel_values"].shape[2:]

    def test_channels_that_cannot_be_told_are_an_error(self, processor: Any) -> None:
        """Five channels without a word on their axis are refused."""
        made = processor(image_mean=[0.5] * 5, image_std=[0.5] * 5, do_resize=False)
        with pytest.raises(ValueError, match="holds the channels"):
            made([np.zeros((20, 30, 5), np.uint8)], return_tensors="pt")

    def test_semantic_maps_have_the_documented_shapes(self, processor: Any) -> None:
        """One map per image, of 384x384 or of its target size."""
        made = processor(num_labels=2)
        found = made.post_process_semantic_segmentation(fake_outputs())
        assert [m.shape for m in found] == [(384, 384)] * 2
        found = made.post_process_semantic_segmentation(fake_outputs(), target_sizes=[(1, 4)] * 2)
        assert [m.shape for m in found] == [(1, 4)] * 2

    def test_instances_have_the_documented_shapes(self, processor: Any) -> None:
        """A map of 384x384 and a list of segments per image; as binary maps one more axis."""
        made = processor(num_labels=2)
        for found in made.post_process_instance_segmentation(fake_outputs(), threshold=0):
            assert found["segmentation"].shape == (384, 384)
            assert type(found["segments_info"]) is list
        maps = made.post_process_instance_segmentation(fake_outputs(), threshold=0, return_binary_maps=True)
        for found in maps:
            assert found["segmentation"].shape == (len(found["segments_info"]), 384, 384)

    def test_panoptic_maps_have_the_documented_shapes(self, processor: Any) -> None:
        """A map of 384x384 and a list of segments per image."""
        found = processor(num_labels=2).post_process_panoptic_segmentation(fake_outputs(), threshold=0)
        assert len(found) == 2
        for item in found:
            assert item["segmentation"].shape == (384, 384)
            assert type(item["segments_info"]) is list

    @pytest.mark.parametrize("semantics", ["hf", "original"])
    def test_fusing_takes_away_all_but_one_of_a_class(self, processor: Any, semantics: str) -> None:
        """Fusing a class leaves as many ids as there were, less its segments but one."""
        made = processor(num_labels=2)
        options: dict[str, Any] = {
            "threshold": 0,
            "mask_threshold": 0,
            "overlap_mask_area_threshold": 0,
            "semantics": semantics,
        }
        plain = made.post_process_panoptic_segmentation(fake_outputs(), **options)
        fused = made.post_process_panoptic_segmentation(fake_outputs(), label_ids_to_fuse={1}, **options)
        for before, after in zip(plain, fused, strict=True):
            ids = [s["id"] for s in before["segments_info"]]
            of_class = [s for s in before["segments_info"] if s["label_id"] == 1]
            expected = max(ids, default=0) - max(len(of_class) - 1, 0)
            assert max((s["id"] for s in after["segments_info"]), default=0) == expected

    def test_a_saved_processor_is_the_same(self, processor: Any, tmp_path: Path) -> None:
        """Saved and loaded, and made from its own dict, it has the same settings."""
        made = processor(**SETTINGS)
        made.save_pretrained(tmp_path)
        assert processor.from_pretrained(tmp_path).to_dict() == made.to_dict()
        assert processor.from_dict(made.to_dict()).to_dict() == made.to_dict()

    def test_every_input_type_gives_a_batch(self, processor: Any) -> None:
        """Pillow, arrays and tensors, one and several, give (B, C, H, W) of the expected size."""
        image_module = pytest.importorskip("PIL.Image")
        arrays = [np.zeros((64, 48, 3), np.uint8), np.zeros((50, 100, 3), np.uint8)]
        made = processor(**SETTINGS)
        for convert in (
            image_module.fromarray,
            lambda a: a,
            lambda a: torch.from_numpy(a).permute(2, 0, 1),
        ):
            one = made(convert(arrays[0]), return_tensors="pt").pixel_values
            several = made([convert(a) for a in arrays], return_tensors="pt").pixel_values
            assert one.shape == (1, 3, 42, 32)
            assert several.shape == (2, 3, 42, 64)

    def test_four_channels(self, processor: Any) -> None:
        """Images of four channels are read in either order, given as many means."""
        made = processor(**(SETTINGS | {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}))
        image = np.zeros((64, 48, 4), np.uint8)
        assert made(image, return_tensors="pt").pixel_values.shape == (1, 4, 42, 32)
        first = np.moveaxis(image, -1, 0)
        assert made(first, return_tensors="pt", input_data_format="channels_first").pixel_values.shape[1] == 4
        rgb = processor(**(SETTINGS | {"do_convert_rgb": True}))
        assert rgb(image, return_tensors="pt").pixel_values.shape[1] == 3

    def test_settings_of_one_call(self, processor: Any) -> None:
        """Keywords of a call change that call and not the processor; an unknown one is refused."""
        made = processor(**SETTINGS)
        image = np.zeros((64, 64, 3), np.uint8)
        assert made(image, size={"height": 16, "width": 24}, return_tensors="pt").pixel_values.shape[-2:] == (
            16,
            24,
        )
        assert made(image, return_tensors="pt").pixel_values.shape[-2:] == (32, 32)
        with pytest.raises(TypeError, match="extra_thing"):
            made(image, extra_thing=1)


def test_runs_of_a_mask() -> None:
    """A run over the end of a row is one run: starts count from one, pairs are (start, length)."""
    mask = torch.zeros(20, 50)
    mask[0, 20:] = 1
    mask[1, :15] = 1
    mask[5, :10] = 1
    assert row_major_runs(mask) == [21, 45, 251, 10]


# --- network -----------------------------------------------------------------------------------------------------


def test_the_model_gives_all_last_states() -> None:
    """With and without a pixel mask: the decoder's shape, and the two other last states; hidden ones on request."""
    config, inputs = small_config(), small_inputs()
    network = Mask2FormerModel(config).eval()
    with torch.no_grad():
        output = network(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
        asked = network(inputs["pixel_values"], output_hidden_states=True)
    for found in (output, asked):
        assert found.transformer_decoder_last_hidden_state.shape == (2, 10, 64)
        assert found.pixel_decoder_last_hidden_state is not None
        assert found.encoder_last_hidden_state is not None
    assert output.encoder_hidden_states is None
    assert len(asked.encoder_hidden_states) == len(config.backbone_config.depths)
    assert len(asked.pixel_decoder_hidden_states) == 3
    assert len(asked.transformer_decoder_hidden_states) == config.decoder_layers


def test_the_network_with_a_head_gives_logits_and_a_loss() -> None:
    """Masks are a quarter of the input, classes one more than the labels; with labels there is a scalar loss."""
    inputs = small_inputs()
    network = Mask2FormerForUniversalSegmentation(small_config()).eval()
    with torch.no_grad():
        plain = network(inputs["pixel_values"])
        result = network(**inputs)
    for found in (plain, result):
        assert found.masks_queries_logits.shape == (2, 10, 32, 32)
        assert found.class_queries_logits.shape == (2, 10, 5)
        assert found.transformer_decoder_last_hidden_state is not None
        assert found.pixel_decoder_last_hidden_state is not None
        assert found.encoder_last_hidden_state is not None
    assert plain.loss is None
    assert result.loss.shape == ()


@pytest.mark.parametrize("network", [Mask2FormerModel, Mask2FormerForUniversalSegmentation])
def test_attentions_on_request(network: Any) -> None:
    """Both networks give attentions when asked, one for each decoder layer."""
    inputs = small_inputs()
    with torch.no_grad():
        found = network(small_config()).eval()(inputs["pixel_values"], output_attentions=True)
    assert [a.shape for a in found.attentions] == [(2, 8, 10, 10)] * 9


def test_labels_of_many_and_of_any_value_have_a_loss() -> None:
    """More masks than the labels can tell apart, and real numbers in place of 0 and 1, still give a loss."""
    generator = torch.Generator().manual_seed(1)
    output = Mask2FormerForUniversalSegmentation(small_config(train_num_points=200))(
        pixel_values=torch.randn(2, 3, 64, 64, generator=generator),
        mask_labels=torch.randn(2, 10, 64, 64, generator=generator),
        class_labels=torch.zeros(2, 10, dtype=torch.int64),
    )
    assert output.loss is not None


def test_training_has_gradients() -> None:
    """In training mode the loss can be differentiated."""
    network = Mask2FormerForUniversalSegmentation(small_config(train_num_points=200)).train()
    inputs = small_inputs()
    network(
        inputs["pixel_values"], mask_labels=inputs["mask_labels"], class_labels=inputs["class_labels"]
    ).loss.backward()
    assert network.class_predictor.weight.grad is not None


def test_states_keep_their_gradients() -> None:
    """The first hidden state of each kind and the first attentions are part of the loss's graph."""
    config = small_config(output_hidden_states=True, output_attentions=True, train_num_points=200)
    network = Mask2FormerForUniversalSegmentation(config).train()
    inputs = small_inputs()
    output = network(
        inputs["pixel_values"], mask_labels=inputs["mask_labels"], class_labels=inputs["class_labels"]
    )
    states = [
        output.encoder_hidden_states[0],
        output.pixel_decoder_hidden_states[0],
        output.transformer_decoder_hidden_states[0],
        output.attentions[0],
    ]
    for state in states:
        state.retain_grad()
    output.loss.backward()
    for state in states:
        assert state.grad is not None


def test_the_first_argument_is_the_pixels() -> None:
    """``forward`` begins with ``pixel_values``; a tuple and an output hold the same values."""
    inputs = small_inputs()
    network = Mask2FormerForUniversalSegmentation(small_config()).eval()
    with torch.no_grad():
        named = network(inputs["pixel_values"])
        plain = network(inputs["pixel_values"], return_dict=False)
    assert len(plain) == len(named)
    for a, b in zip(plain, named.to_tuple(), strict=True):
        assert torch.equal(a, b)


def test_a_saved_network_is_the_same(tmp_path: Path) -> None:
    """Saved and loaded again the outputs are the same bits, for both networks; the configuration too."""
    pixels = small_inputs(64)["pixel_values"]
    for cls in (Mask2FormerModel, Mask2FormerForUniversalSegmentation):
        network = cls(small_config()).eval()
        network.save_pretrained(tmp_path / cls.__name__)
        again = cls.from_pretrained(tmp_path / cls.__name__)
        assert again.config == network.config
        with torch.no_grad():
            assert torch.equal(network(pixels)[0], again(pixels)[0])


def test_two_runs_are_the_same() -> None:
    """In eval mode the same pixels give the same bits."""
    network = Mask2FormerForUniversalSegmentation(small_config()).eval()
    pixels = small_inputs(64)["pixel_values"]
    with torch.no_grad():
        assert torch.equal(network(pixels).masks_queries_logits, network(pixels).masks_queries_logits)
