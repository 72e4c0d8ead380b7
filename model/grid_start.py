"""A start for short trainings: queries that are a grid of places, instead of 100 alike.

From a random start a set predictor needs thousands of steps until its queries have shared out the image. Nothing in
the network's equations is changed here, only the point from which training sets out: the queries know a place each,
their first masks are fitted to soft discs around these places, coordinates reach the mask features undiluted, and
every decoder layer begins as the identity. One more query per stuff class has no place. While training,
:class:`~panoptile.model.loss.QueryRoles` lets objects meet the queries that are near them.

Letters: ``B`` batch, ``Q`` queries, ``C`` channels, ``H W`` pixels, ``h w`` pixels at stride 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoptile.model.decoder import DecoderLayer, MaskHead
from panoptile.model.efficientnet import coordinate_channels
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.positions import sine_positions

DISC_RADIUS = 0.055
"""Standard deviation of the first masks, relative to the image's side: a tenth of the side across."""


def grid_places(side: int) -> Tensor:
    """Middles (side², 2) of the cells of a square grid, row by row; x first, 0…1."""
    middles = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def start_as_grid(
    model: Mask2FormerForUniversalSegmentation, pixels_BCHW: Tensor, *, side: int, iterations: int = 300
) -> float:
    """Give the first ``side²`` queries their places; ``pixels_BCHW`` are some normalised training images.

    The backbone must have ``coordinate_frequencies``. Returns the last loss of fitting the first masks (mean binary
    cross-entropy to the discs), for the log.
    """
    frequencies = int(model.config.backbone_config.get("coordinate_frequencies", 0))
    if frequencies < 1 or side * side > model.config.num_queries:
        raise ValueError(
            f"A grid start needs coordinate channels and {side * side} queries, "
            f"got {frequencies = } and {model.config.num_queries = }."
        )
    with torch.no_grad():
        _place_queries(model, side, frequencies)
        _keep_coordinates(model, frequencies)
        for layer in model.model.transformer_module.decoder.layers:
            assert isinstance(layer, DecoderLayer)
            for branch in (layer.cross_attn.out_proj, layer.self_attn.out_proj, layer.fc2):
                branch.weight.zero_()
                nn.init.zeros_(branch.bias)
    return _fit_discs(model, pixels_BCHW, grid_places(side), iterations)


def _place_queries(model: Mask2FormerForUniversalSegmentation, side: int, frequencies: int) -> None:
    """Positions get the code of the pixels' positions, features that of the coordinate channels.

    Equal projections of queries and pixels make the product of their positions fall off with the distance.
    """
    transformer, width = model.model.transformer_module, model.config.hidden_dim
    placed = side * side
    positions = sine_positions(side, side, width, torch.device("cpu"))
    transformer.queries_embedder.weight[:placed] = positions
    code_QC = coordinate_channels(side, side, frequencies).flatten(1).T
    features_QC = transformer.queries_features.weight[:placed].mul_(0.1)
    features_QC[:, : code_QC.shape[1]] += code_QC
    for layer in transformer.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        projections = layer.cross_attn.in_proj_weight
        projections[:width] = projections[width : 2 * width]


def _keep_coordinates(model: Mask2FormerForUniversalSegmentation, frequencies: int) -> None:
    """The last channels of the pixel decoder's last two convolutions copy the coordinates, in both signs.

    A random start drowns them among the colours, and a short training does not dig them out.
    """
    decoder = model.model.pixel_level_module.decoder
    lateral, lateral_norm = decoder.adapter_1.children()
    output = next(decoder.layer_1.children())
    assert isinstance(lateral, nn.Conv2d)
    assert isinstance(lateral_norm, nn.GroupNorm)
    assert isinstance(output, nn.Conv2d)
    places = 4 * frequencies
    first = lateral.out_channels - 2 * places
    if first < 0:
        raise ValueError(f"{lateral.out_channels} channels cannot hold {2 * places} of coordinates.")
    lateral.weight[first:] = 0.0
    output.weight[first:] = 0.0
    for i in range(places):
        source = lateral.in_channels - places + i
        lateral.weight[first + i, source] = 1.0
        lateral.weight[first + places + i, source] = -1.0
    for channel in range(first, lateral.out_channels):
        output.weight[channel, channel, 1, 1] = 1.0
    lateral_norm.weight[first:] = 3.0  # against the features of the coarser levels, which are added next


def _fit_discs(
    model: Mask2FormerForUniversalSegmentation, pixels_BCHW: Tensor, places_Q2: Tensor, iterations: int
) -> float:
    """Fit the mask embedding alone, on fixed pixel features, to soft discs around the places."""
    decoder = model.model.pixel_level_module.decoder
    transformer = model.model.transformer_module
    with torch.no_grad():
        features_BChw, _ = decoder(model.model.pixel_level_module.encoder(pixels_BCHW))
        normed_QC = transformer.decoder.layernorm(transformer.queries_features.weight)[: len(places_Q2)]
    height, width = features_BChw.shape[-2:]
    y_h, x_w = ((torch.arange(n) + 0.5) / n for n in (height, width))
    square_Qhw = (y_h[None, :, None] - places_Q2[:, 1, None, None]) ** 2 + (
        x_w[None, None, :] - places_Q2[:, 0, None, None]
    ) ** 2
    discs_Qhw = (-square_Qhw / (2 * DISC_RADIUS**2)).exp()
    fitted = [*transformer.decoder.mask_predictor.parameters(), *decoder.mask_projection.parameters()]
    optimiser = torch.optim.Adam(fitted, lr=3e-3)
    loss = torch.zeros(())
    for _ in range(iterations):
        head = MaskHead.folded(decoder.mask_projection, features_BChw)
        embedding_QC = transformer.decoder.mask_embedding(normed_QC)
        logits_BQhw = head.logits(embedding_QC.expand(len(pixels_BCHW), -1, -1))
        loss = F.binary_cross_entropy_with_logits(logits_BQhw, discs_Qhw.expand_as(logits_BQhw))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())
