"""EfficientNet-Lite0: shapes, frozen statistics, and the renaming of the published weights."""

from __future__ import annotations

import pytest
import torch

from panoptile.model.efficientnet import EfficientNetLite0, SameConv2d, backbone_state_from_imagenet


@pytest.mark.parametrize("height_width", [(64, 64), (65, 97), (33, 100)])
def test_maps_have_the_documented_channels_and_strides(height_width: tuple[int, int]) -> None:
    """Every map has ``ceil(size / stride)`` pixels a side, odd sizes too."""
    backbone = EfficientNetLite0().eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, *height_width))
    expected = [
        (2, channels, *(-(-size // stride) for size in height_width))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [7, 8])
def test_strided_convolutions_pad_as_tensorflow_does(kernel: int, size: int) -> None:
    """The first output of a stride-2 convolution is centred as TensorFlow's "same" has it: odd padding goes last."""
    conv = SameConv2d(1, 1, kernel, stride=2)
    torch.nn.init.ones_(conv.weight)
    total = max((-(-size // 2) - 1) * 2 + kernel - size, 0)
    first = torch.arange(size) + total // 2 < kernel
    ramp = 10.0 ** torch.arange(size).float()
    expected = ramp[first].sum()
    image = torch.zeros(1, 1, size, size)
    image[0, 0, 0] = ramp
    assert float(conv(image)[0, 0, 0, 0].detach()) == pytest.approx(float(expected))


def test_training_leaves_the_batch_statistics_alone() -> None:
    """A forward pass in training mode changes no running mean and equals the one in evaluation mode."""
    backbone = EfficientNetLite0().train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        trained = backbone(pixels)[-1]
        evaluated = backbone.eval()(pixels)[-1]
    assert torch.equal(trained, evaluated)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def published_state() -> dict[str, torch.Tensor]:
    """The names and shapes of the published file, derived from its documented layout, with random values."""
    state: dict[str, torch.Tensor] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(channels) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    state["_conv_stem.weight"] = torch.randn(32, 3, 3, 3)
    norm("_bn0", 32)
    table = [
        (1, 16, 1, 3),
        (6, 24, 2, 3),
        (6, 40, 2, 5),
        (6, 80, 3, 3),
        (6, 112, 3, 5),
        (6, 192, 4, 5),
        (6, 320, 1, 3),
    ]
    block, inputs = 0, 32
    for expand, channels, repeats, kernel in table:
        for _ in range(repeats):
            name, wide = f"_blocks.{block}", inputs * expand
            if expand > 1:
                state[f"{name}._expand_conv.weight"] = torch.randn(wide, inputs, 1, 1)
                norm(f"{name}._bn0", wide)
            state[f"{name}._depthwise_conv.weight"] = torch.randn(wide, 1, kernel, kernel)
            norm(f"{name}._bn1", wide)
            state[f"{name}._project_conv.weight"] = torch.randn(channels, wide, 1, 1)
            norm(f"{name}._bn2", channels)
            block, inputs = block + 1, channels
    state["_conv_head.weight"] = torch.randn(1280, 320, 1, 1)
    norm("_bn1", 1280)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(1000, 1280), torch.randn(1000)
    return state


def test_published_weights_fill_the_backbone_exactly() -> None:
    """Renamed, the classifier's file has every key of the backbone in its shape, and none besides."""
    EfficientNetLite0().load_state_dict(backbone_state_from_imagenet(published_state()), strict=True)


def test_foreign_weights_are_named() -> None:
    """A file of another network stops with the first of its keys."""
    with pytest.raises(ValueError, match="layer4"):
        backbone_state_from_imagenet({"layer4.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="swin"):
        EfficientNetLite0({"model_type": "swin"})


def test_coordinates_tell_every_place_apart() -> None:
    """With coordinate channels each map has 4 per frequency more, and no two of its pixels share their values."""
    backbone = EfficientNetLite0({"model_type": "efficientnet_lite0", "coordinate_frequencies": 3}).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert tuple(m.shape[1] for m in maps) == backbone.channels == (36, 52, 124, 332)
    places = maps[0][0, -12:].flatten(1).T
    assert float(torch.pdist(places).min()) > 0.05
    assert EfficientNetLite0().channels == (24, 40, 112, 320)


def test_an_input_stride_is_a_mean_of_pixels() -> None:
    """With an input stride of 2 the maps are those of the image averaged over 2 × 2 pixels, at twice the strides."""
    torch.manual_seed(0)
    fine = EfficientNetLite0({"model_type": "efficientnet_lite0", "input_stride": 2}).eval()
    plain = EfficientNetLite0().eval()
    plain.load_state_dict(fine.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    means = pixels.view(1, 3, 32, 2, 48, 2).mean(dim=(3, 5))
    with torch.no_grad():
        for a, b in zip(fine(pixels), plain(means), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert fine.strides == (8, 16, 32, 64)
    with pytest.raises(ValueError, match="input_stride >= 1"):
        EfficientNetLite0({"input_stride": 0})
