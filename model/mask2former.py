"""Mask2Former (Cheng et al., 2022): backbone, pixel decoder, masked-attention decoder, class and mask heads.

Unusual: modules are named so that ``state_dict`` holds the keys of the public checkpoints. Masks at stride 4 are built
once, for the last layer, unless auxiliary logits are asked for.

Letters: B batch, Q queries, K classes, C channels, H W pixels of the input.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.decoder import DecoderStates, MaskHead, TransformerModule
from panoptile.model.pixel_decoder import PixelDecoder


@dataclass
class Mask2FormerForUniversalSegmentationOutput:
    """Logits and, where asked for, the states behind them."""

    class_queries_logits: Tensor
    """(B, Q, K + 1); the last class is "no object"."""
    masks_queries_logits: Tensor
    """(B, Q, ⌈H/4⌉, ⌈W/4⌉)."""
    transformer_decoder_last_hidden_state: Tensor
    """(B, Q, hidden_dim) of the last layer."""
    encoder_last_hidden_state: Tensor
    """(B, C4, ⌈H/32⌉, ⌈W/32⌉), the backbone's last map."""
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    """The two logits above of each earlier layer, the raw queries first."""
    pixel_decoder_last_hidden_state: Tensor | None = None
    """(B, mask_feature_size, ⌈H/4⌉, ⌈W/4⌉) mask features."""
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    """The backbone's four maps."""
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    """Levels at strides 32, 16, 8."""
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    """(Q, B, hidden_dim) after each layer, the raw queries first."""
    transformer_decoder_intermediate_states: tuple[Tensor, ...] | None = None
    """The same, layer-normed."""


class PixelLevelModule(nn.Module):
    """Backbone and pixel decoder."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.encoder = build_backbone(config)
        self.decoder = PixelDecoder(config, self.encoder.channels)  # type: ignore[arg-type]


class Mask2FormerModel(nn.Module):
    """The network without its class head."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_level_module = PixelLevelModule(config)
        self.transformer_module = TransformerModule(config)

    def forward(self, pixel_values: Tensor) -> tuple[DecoderStates, MaskHead, list[Tensor], list[Tensor]]:
        """Decoder states, the mask head at stride 4, the backbone's maps, the pixel decoder's levels."""
        pixel_decoder = self.pixel_level_module.decoder
        maps: list[Tensor] = self.pixel_level_module.encoder(pixel_values)
        features, levels = pixel_decoder(maps)
        states = self.transformer_module(levels, features, pixel_decoder.mask_projection)
        return states, MaskHead.folded(pixel_decoder.mask_projection, features), maps, levels


class Mask2FormerForUniversalSegmentation(nn.Module):
    """The whole network; initialised as in the paper until weights are loaded."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        *,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool = False,
    ) -> Mask2FormerForUniversalSegmentationOutput:
        """Predict classes and masks of ``pixel_values`` (B, C, H, W), normalised, any size.

        ``pixel_mask`` is accepted because callers pass it; this network, like the paper's, does not use it.
        ``output_auxiliary_logits`` defaults to the configuration's value, else to training mode.
        """
        self._check_pixels(pixel_values)
        states, mask_head, maps, levels = self.model(pixel_values)
        if output_auxiliary_logits is None:
            configured = self.config.output_auxiliary_logits
            output_auxiliary_logits = self.training if configured is None else configured
        last = self._predict(states.normed[-1], mask_head)
        output = Mask2FormerForUniversalSegmentationOutput(
            class_queries_logits=last["class_queries_logits"],
            masks_queries_logits=last["masks_queries_logits"],
            transformer_decoder_last_hidden_state=states.hidden[-1],
            encoder_last_hidden_state=maps[-1],
        )
        if output_auxiliary_logits:
            output.auxiliary_logits = [self._predict(normed, mask_head) for normed in states.normed[:-1]]
        if output_hidden_states:
            projection = self.model.pixel_level_module.decoder.mask_projection
            output.pixel_decoder_last_hidden_state = projection(mask_head.features_BCHW)
            output.encoder_hidden_states = tuple(maps)
            output.pixel_decoder_hidden_states = tuple(levels)
            output.transformer_decoder_hidden_states = tuple(x.transpose(0, 1) for x in states.hidden)
            output.transformer_decoder_intermediate_states = tuple(x.transpose(0, 1) for x in states.normed)
        return output

    def _predict(self, normed_BQC: Tensor, mask_head: MaskHead) -> dict[str, Tensor]:
        embedding = self.model.transformer_module.decoder.mask_embedding(normed_BQC)
        return {
            "class_queries_logits": self.class_predictor(normed_BQC),
            "masks_queries_logits": mask_head.logits(embedding),
        }

    def _check_pixels(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != self.config.num_channels:
            raise ValueError(
                f"Expected images of shape (B, {self.config.num_channels}, H, W), got {tuple(pixels.shape)}."
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Mask2FormerForUniversalSegmentation:
        """Load a checkpoint folder on the CPU, in fp32 and eval mode; ``ValueError`` names what does not fit."""
        from panoptile.model.weights import read_weights

        config = Mask2FormerConfig.from_json_file(Path(folder) / "config.json")
        with torch.device("meta"):  # no time for an initialisation that is overwritten at once
            model = cls(config)
        model.load_state_dict(read_weights(folder, model.state_dict()), assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, which transformers loads too (Swin and ResNet)."""
        from safetensors.torch import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        empty_weight = torch.ones(self.config.num_labels + 1)
        empty_weight[-1] = self.config.no_object_weight
        state["criterion.empty_weight"] = empty_weight  # a buffer of the public checkpoints
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(self.config.to_dict(), indent=2)
        (target / "config.json").write_text(text + "\n", encoding="utf-8")


def build_backbone(config: Mask2FormerConfig) -> nn.Module:
    """The backbone of ``config.backbone_type``: ``forward(pixels)`` gives 4 maps, ``channels`` their channels."""
    kind = config.backbone_type
    if kind == "swin":
        from panoptile.model.swin import SwinBackbone

        return SwinBackbone(config.backbone_config)
    if kind == "resnet":
        from panoptile.model.resnet import ResNetBackbone

        return ResNetBackbone(config.backbone_config)
    if kind == "efficientnet_lite0":
        from panoptile.model.efficientnet import EfficientNetLite0

        return EfficientNetLite0(config.backbone_config)
    raise ValueError(f"Unknown backbone {kind!r}; there are swin, resnet and efficientnet_lite0.")
