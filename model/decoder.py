"""Transformer decoder with masked attention (Cheng et al., 2022, sections 3.2 and 3.3).

Unusual: the masks that limit the cross attention come from features pooled to each level's size, not from pooled
full-resolution masks (exact, because resizing is linear and acts on pixels, the product on channels). So a layer never
builds masks at stride 4, and inference builds them once, at the end.

Letters: B batch, Q queries, C channels, K classes, H W pixels at stride 4, S pixels of one level, h heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.pixel_decoder import LEVELS
from panoptile.model.positions import sine_positions
from panoptile.model.precision import at_least_fp32, without_autocast


@dataclass(frozen=True, slots=True)
class DecoderStates:
    """What the layers leave behind; entry 0 of each list belongs to the raw queries."""

    hidden_QBC: list[Tensor]
    """(Q, B, C) states, before the shared final norm; in this order, so that gradients pass through them."""
    normed: list[Tensor]
    """(B, Q, C) layer-normed states: the input of both heads, and the embedding of a query for tracking."""
    attentions: list[Tensor] | None = None
    """(B, h, Q, Q) weights of each layer's self attention, where they were asked for."""


class TransformerModule(nn.Module):
    """The queries, the levels' embeddings and the decoder."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.queries_embedder = nn.Embedding(config.num_queries, width)
        self.queries_features = nn.Embedding(config.num_queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        needs_projection = config.feature_size != width or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, width, 1) if needs_projection else nn.Sequential()
            for _ in range(LEVELS)
        )
        self.decoder = MaskedAttentionDecoder(config)
        for projection in self.input_projections:
            if isinstance(projection, nn.Conv2d):
                nn.init.xavier_uniform_(projection.weight, gain=config.init_xavier_std)
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type]

    def forward(
        self,
        levels: list[Tensor],
        features_BCHW: Tensor,
        mask_projection: nn.Conv2d,
        *,
        attentions: bool = False,
    ) -> DecoderStates:
        """``levels`` 1/32, 1/16, 1/8, and the stride-4 features before ``mask_projection``."""
        values, keys = [], []
        for i, (project, level) in enumerate(zip(self.input_projections, levels, strict=True)):
            value = project(level).flatten(2).transpose(1, 2) + self.level_embed.weight[i]
            position = sine_positions(level.shape[2], level.shape[3], value.shape[-1], value.device)
            values.append(value)
            keys.append(value + position.to(value.dtype))
        # The attention masks carry no gradient, so neither do the features that they are read from.
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        pooled = [pool_features(features_BCHW.detach(), size) for size in sizes]
        heads = [MaskHead.folded(mask_projection, features) for features in pooled]
        batch = features_BCHW.shape[0]
        queries = self.queries_features.weight.expand(batch, -1, -1)
        states: DecoderStates = self.decoder(
            queries, self.queries_embedder.weight, keys, values, heads, attentions=attentions
        )
        return states


@dataclass(frozen=True, slots=True)
class MaskHead:
    """Mask logits from query embeddings, with the pixel decoder's last 1x1 convolution folded into the queries.

    An fp32 island: in bf16 two probabilities near 1 are the same number, and the winner of a pixel would be a tie.
    """

    weight_MC: Tensor
    bias_M: Tensor
    features_BCHW: Tensor

    @classmethod
    def folded(cls, projection: nn.Conv2d, features_BCHW: Tensor) -> MaskHead:
        assert projection.bias is not None
        return cls(projection.weight.flatten(1), projection.bias, features_BCHW)

    def logits(self, embedding_BQM: Tensor) -> Tensor:
        """(B, Q, H, W): E·(W·F + b), computed as (E·W)·F + E·b."""
        features_BCHW, height, width = self.features_BCHW, *self.features_BCHW.shape[-2:]
        with without_autocast(features_BCHW.device):
            embedding_BQM = at_least_fp32(embedding_BQM)
            folded_BQC = embedding_BQM @ at_least_fp32(self.weight_MC)
            constant_BQ1 = (embedding_BQM @ at_least_fp32(self.bias_M))[..., None]
            logits = torch.baddbmm(constant_BQ1, folded_BQC, at_least_fp32(features_BCHW).flatten(2))
        return torch.unflatten(logits, 2, (height, width))


class MaskedAttentionDecoder(nn.Module):
    """``decoder_layers - 1`` layers that visit the levels 1/32, 1/16, 1/8 in turn."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers - 1))
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.mask_predictor = nn.Module()
        self.mask_predictor.mask_embedder = MaskEmbedder(config.hidden_dim, config.mask_feature_size)

    def forward(
        self,
        queries_BQC: Tensor,
        query_position_QC: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        pooled_heads: list[MaskHead],
        *,
        attentions: bool = False,
    ) -> DecoderStates:
        collected: list[Tensor] | None = [] if attentions else None
        hidden_QBC, normed = [queries_BQC.transpose(0, 1)], [self.layernorm(queries_BQC)]
        for i, layer in enumerate(self.layers):
            level = i % LEVELS
            with torch.no_grad():
                attend = self.attention_mask(normed[-1], pooled_heads[level])
            x_BQC = hidden_QBC[-1].transpose(0, 1)
            x_BQC = layer(x_BQC, query_position_QC, keys[level], values[level], attend, collected)
            hidden_QBC.append(x_BQC.transpose(0, 1))
            normed.append(self.layernorm(hidden_QBC[-1].transpose(0, 1)))
        return DecoderStates(hidden_QBC, normed, collected)

    def mask_embedding(self, normed_BQC: Tensor) -> Tensor:
        """(B, Q, mask_feature_size)."""
        embedding: Tensor = self.mask_predictor.mask_embedder(normed_BQC)  # type: ignore[operator]
        return embedding

    def attention_mask(self, normed_BQC: Tensor, pooled: MaskHead) -> Tensor:
        """(B, 1, Q, S) True where a query may look: inside its own mask, or everywhere if that is empty.

        The test is on the sigmoid, not on the logit's sign: logits in (-1.2e-7, 0) round to 0.5 and count as inside.
        """
        logits = pooled.logits(self.mask_embedding(normed_BQC)).flatten(2)
        inside = logits.sigmoid() >= 0.5
        return (inside | ~inside.any(dim=-1, keepdim=True))[:, None]


class DecoderLayer(nn.Module):
    """Masked cross attention, *then* self attention, then a feed-forward network, on (B, Q, C)."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        width, heads = config.hidden_dim, config.num_attention_heads
        self.pre_norm = config.pre_norm
        self.activation = F.gelu if config.activation_function == "gelu" else F.relu
        self.cross_attn = CrossAttention(width, heads, config.dropout)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, heads, config.dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.dim_feedforward)
        self.fc2 = nn.Linear(config.dim_feedforward, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, gain=config.init_xavier_std)

    def forward(
        self,
        x_BQC: Tensor,
        position_QC: Tensor,
        key: Tensor,
        value: Tensor,
        attend: Tensor,
        attentions: list[Tensor] | None = None,
    ) -> Tensor:
        """``key`` = value + position (B, S, C); ``attend`` (B, 1, Q, S), True where the query may look.

        The weights of the self attention are appended to ``attentions``, if there is such a list.
        """
        y = self._before(self.cross_attn_layer_norm, x_BQC)
        y = self.dropout(self.cross_attn(y + position_QC, key, value, attend))
        x_BQC = self._after(self.cross_attn_layer_norm, x_BQC + y)
        y = self._before(self.self_attn_layer_norm, x_BQC)
        y = self.dropout(self.self_attn(y, position_QC, attentions))
        x_BQC = self._after(self.self_attn_layer_norm, x_BQC + y)
        y = self._before(self.final_layer_norm, x_BQC)
        y = self.dropout(self.fc2(self.activation(self.fc1(y))))
        return self._after(self.final_layer_norm, x_BQC + y)

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.pre_norm else x

    def _after(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.pre_norm else norm(x)


class CrossAttention(nn.Module):
    """Attention from queries to pixels; the three projections share one matrix, as in the checkpoints."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        out: Tensor = self.out_proj(
            attention(q, k, v, self.heads, attend, self.dropout if self.training else 0.0)
        )
        return out


class SelfAttention(nn.Module):
    """Attention among the queries; their positions are added to queries and keys, not to values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, position: Tensor, attentions: list[Tensor] | None = None) -> Tensor:
        placed = x + position
        q, k, v = self.q_proj(placed), self.k_proj(placed), self.v_proj(x)
        dropout = self.dropout if self.training else 0.0
        if attentions is None:
            mixed = attention(q, k, v, self.heads, None, dropout)
        else:  # the plain way, so that gradients pass through the weights
            attentions.append(attention_weights(q, k, self.heads))
            values = torch.unflatten(v, -1, (self.heads, -1)).transpose(1, 2)
            mixed = (F.dropout(attentions[-1], dropout) @ values).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(mixed)
        return out


class MaskEmbedder(nn.ModuleList):
    """Three-layer perceptron from a query's state to its mask embedding."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.ModuleList([nn.Linear(width, n)]) for n in (width, width, out))

    def forward(self, x: Tensor) -> Tensor:
        for i, (linear,) in enumerate(self):  # type: ignore[misc]
            x = linear(x) if i == len(self) - 1 else F.relu(linear(x))  # type: ignore[has-type]
        return x


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, attend: Tensor | None, dropout: float) -> Tensor:
    """Multi-head attention of projected (B, Q, C) over (B, S, C); ``attend`` (B, 1, Q, S) serves all heads."""
    q, k, v = (torch.unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


def attention_weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """(B, h, Q, S) softmax weights with which projected (B, Q, C) attend to (B, S, C), before any dropout."""
    q, k = (torch.unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (q, k))
    logits: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(-1)


def pool_features(features_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Features at a level's size, sampled as the masks would be (bilinear, no antialias).

    Where the sizes divide evenly, each sample lies in the middle of a block, so it is the mean of the four pixels
    around: several times faster than the general case.
    """
    (height, width), ratio = features_BCHW.shape[-2:], features_BCHW.shape[-2] // size[0]
    if ratio % 2 == 0 and (height, width) == (size[0] * ratio, size[1] * ratio):
        low, high = slice(ratio // 2 - 1, None, ratio), slice(ratio // 2, None, ratio)
        lines = features_BCHW[:, :, low] + features_BCHW[:, :, high]
        return (lines[..., low] + lines[..., high]) * 0.25
    return F.interpolate(features_BCHW, size=size, mode="bilinear", align_corners=False)
