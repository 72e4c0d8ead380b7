"""Mask2Former (Cheng et al., 2022): backbone, pixel decoder, masked-attention decoder, class and mask heads.

Unusual: modules are named so that ``state_dict`` holds the keys of the public checkpoints. Masks at stride 4 are built
once, for the last layer, unless the loss or auxiliary logits are asked for.

Letters: B batch, Q queries, K classes, C channels, H W pixels of the input, N objects of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.decoder import DecoderStates, MaskHead, TransformerModule
from panoptile.model.outputs import (
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerModelOutput,
    Pending,
)
from panoptile.model.pixel_decoder import PixelDecoder
from panoptile.model.pretrained import PretrainedNetwork


class NetworkStates(NamedTuple):
    """What the network computes before its heads."""

    decoder: DecoderStates
    mask_head: MaskHead
    """At stride 4."""
    maps: list[Tensor]
    """The backbone's, at strides 4, 8, 16, 32."""
    levels: list[Tensor]
    """The pixel decoder's, at strides 32, 16, 8."""


class PixelLevelModule(nn.Module):
    """Backbone and pixel decoder."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.encoder = build_backbone(config)
        self.decoder = PixelDecoder(config, self.encoder.channels)  # type: ignore[arg-type]


class Mask2FormerModel(PretrainedNetwork):
    """The network without its class head."""

    key_prefix = "model."

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.pixel_level_module = PixelLevelModule(config)
        self.transformer_module = TransformerModule(config)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Mask2FormerModelOutput | tuple[Any, ...]:
        """States for ``pixel_values`` (B, C, H, W), normalised, any size.

        ``pixel_mask`` is accepted because callers pass it; this network, like the paper's, does not use it. The other
        arguments default to the configuration's fields of the same name.
        """
        config = self.config
        states = self.states(pixel_values, attentions=_chosen(output_attentions, config.output_attentions))
        output = Mask2FormerModelOutput(
            **self.common_fields(states, _chosen(output_hidden_states, config.output_hidden_states)),
            masks_queries_logits=Pending(
                lambda: tuple(map(self.mask_logits(states), states.decoder.normed)), pixel_values.device
            ),
        )
        if _chosen(output_hidden_states, config.output_hidden_states):
            output.transformer_decoder_intermediate_states = tuple(
                x.transpose(0, 1) for x in states.decoder.normed
            )
        return output if _chosen(return_dict, config.return_dict) else output.to_tuple()

    def states(self, pixels_BCHW: Tensor, *, attentions: bool = False) -> NetworkStates:
        """All but the heads: what both networks' outputs are made from."""
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != self.config.num_channels:
            raise ValueError(
                f"Expected images of shape (B, {self.config.num_channels}, H, W), got {tuple(pixels_BCHW.shape)}."
            )
        pixel_decoder = self.pixel_level_module.decoder
        maps: list[Tensor] = self.pixel_level_module.encoder(pixels_BCHW)
        features, levels = pixel_decoder(maps)
        decoder = self.transformer_module(
            levels, features, pixel_decoder.mask_projection, attentions=attentions
        )
        return NetworkStates(decoder, MaskHead.folded(pixel_decoder.mask_projection, features), maps, levels)

    def mask_logits(self, states: NetworkStates) -> Callable[[Tensor], Tensor]:
        """From layer-normed queries (B, Q, C) to mask logits (B, Q, ⌈H/4⌉, ⌈W/4⌉)."""
        embed = self.transformer_module.decoder.mask_embedding
        return lambda normed_BQC: states.mask_head.logits(embed(normed_BQC))

    def common_fields(self, states: NetworkStates, hidden_states: bool) -> dict[str, Any]:
        """The fields that the outputs of both networks have."""
        projection = self.pixel_level_module.decoder.mask_projection
        features = states.mask_head.features_BCHW
        fields: dict[str, Any] = {
            "encoder_last_hidden_state": states.maps[-1],
            "pixel_decoder_last_hidden_state": Pending(lambda: projection(features), features.device),
            "transformer_decoder_last_hidden_state": states.decoder.hidden_QBC[-1].transpose(0, 1),
        }
        if states.decoder.attentions is not None:
            fields["attentions"] = tuple(states.decoder.attentions)
        if hidden_states:
            fields["encoder_hidden_states"] = tuple(states.maps)
            fields["pixel_decoder_hidden_states"] = tuple(states.levels)
            fields["transformer_decoder_hidden_states"] = tuple(states.decoder.hidden_QBC)
        return fields


class Mask2FormerForUniversalSegmentation(PretrainedNetwork):
    """The whole network; initialised as in the paper until weights are loaded."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Mask2FormerForUniversalSegmentationOutput | tuple[Any, ...]:
        """Predict classes and masks of ``pixel_values`` (B, C, H, W), normalised, any size.

        With ``mask_labels`` (B of (N, H, W), 0 or 1) and ``class_labels`` (B of (N,)) the output has a ``loss``.
        ``pixel_mask`` is accepted because callers pass it; this network, like the paper's, does not use it. The other
        arguments default to the configuration's fields of the same name.
        """
        config = self.config
        states = self.model.states(
            pixel_values, attentions=_chosen(output_attentions, config.output_attentions)
        )
        output = Mask2FormerForUniversalSegmentationOutput(
            **self._predict(states, states.decoder.normed[-1]),
            **self.model.common_fields(states, _chosen(output_hidden_states, config.output_hidden_states)),
        )
        labels = (
            zip(mask_labels, class_labels, strict=True)
            if mask_labels is not None and class_labels is not None
            else None
        )
        wants_auxiliary = _chosen(output_auxiliary_logits, bool(config.output_auxiliary_logits))
        layers = [{k: output[k] for k in ("class_queries_logits", "masks_queries_logits")}]
        if wants_auxiliary or (labels is not None and config.use_auxiliary_loss):
            layers = [*(self._predict(states, normed) for normed in states.decoder.normed[:-1]), *layers]
        if wants_auxiliary:
            output.auxiliary_logits = layers[:-1]
        if labels is not None:
            output.loss = self._loss(layers if config.use_auxiliary_loss else layers[-1:], labels)
        return output if _chosen(return_dict, config.return_dict) else output.to_tuple()

    def logits_and_embeddings(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, Q, K + 1), mask logits (B, Q, ⌈H/4⌉, ⌈W/4⌉) and the queries' layer-normed last states (B, Q, C).

        The states are what both heads read, and what tells an object again in another frame.
        """
        states = self.model.states(pixel_values)
        normed = states.decoder.normed[-1]
        heads = self._predict(states, normed)
        return heads["class_queries_logits"], heads["masks_queries_logits"], normed

    def _predict(self, states: NetworkStates, normed_BQC: Tensor) -> dict[str, Tensor]:
        return {
            "class_queries_logits": self.class_predictor(normed_BQC),
            "masks_queries_logits": self.model.mask_logits(states)(normed_BQC),
        }

    def _loss(self, layers: list[dict[str, Tensor]], labels: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Weighted sum over ``layers`` of the losses against (masks (N, H, W), classes (N,)) of each image."""
        from panoptile.model.loss import (
            ImageTargets,
            LayerLosses,
            LossWeights,
            Mask2FormerCriterion,
            PointSampling,
        )

        config = self.config
        criterion = Mask2FormerCriterion(
            num_labels=config.num_labels,
            weights=LossWeights(
                config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight
            ),
            sampling=PointSampling(
                config.train_num_points, config.oversample_ratio, config.importance_sample_ratio
            ),
        ).to(layers[-1]["class_queries_logits"].device)
        losses: LayerLosses = criterion(
            [layer["class_queries_logits"] for layer in layers],
            [layer["masks_queries_logits"] for layer in layers],
            [ImageTargets(masks, classes) for masks, classes in labels],
        )
        return losses.total

    def _extra_weights(self) -> dict[str, Tensor]:
        empty_weight = torch.ones(self.config.num_labels + 1)
        empty_weight[-1] = self.config.no_object_weight
        return {"criterion.empty_weight": empty_weight}  # a buffer of the public checkpoints


def _chosen(asked: bool | None, configured: bool) -> bool:
    return configured if asked is None else asked


def build_backbone(config: Mask2FormerConfig) -> nn.Module:
    """The backbone of ``config.backbone_type``: ``forward(pixels)`` gives 4 maps, ``channels`` their channels."""
    kind = config.backbone_type
    if kind == "swin":
        from panoptile.model.swin import SwinBackbone

        return SwinBackbone(config.backbone_config)
    if kind == "resnet":
        from panoptile.model.resnet import ResNetBackbone

        return ResNetBackbone(config.backbone_config)
    if kind == "timm_backbone":
        from panoptile.model.resnet import ResNetBackbone
        from panoptile.model.timm_resnet import resnet_config

        return ResNetBackbone(resnet_config(config.backbone_config))
    if kind == "efficientnet_lite0":
        from panoptile.model.efficientnet import EfficientNetLite0

        return EfficientNetLite0(config.backbone_config)
    raise ValueError(
        f"Unknown backbone {kind!r}; there are swin, resnet, timm_backbone and efficientnet_lite0."
    )
