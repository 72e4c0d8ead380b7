"""What a replica returns for one tile or frame: a label map and a small table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class QueryStates:
    """What the network says of all ``Q`` queries of one image, over ``K`` classes."""

    embeddings: NDArray[np.float16]
    """(Q, C) layer-normed last states."""
    logits: NDArray[np.float16]
    """(Q, K + 1) class logits; the last is "no object"."""


@dataclass(frozen=True, slots=True)
class PanopticMap:
    """The panoptic segmentation of one image of ``H`` x ``W`` pixels with ``N`` segments."""

    labels: NDArray[np.int32]
    """(H, W); 0 is void, ``i + 1`` is row ``i`` of the table below."""
    label_ids: NDArray[np.int32]
    """(N,) class of each segment as the model's label id, from 0."""
    scores: NDArray[np.float32]
    """(N,) score of each segment, 0-1."""
    queries_used: int
    """Queries that passed the score threshold; near the network's maximum the tile is saturated."""
    queries: NDArray[np.int32] | None = None
    """(N,) the query behind each segment, of several that were fused the one with most visible pixels; None where no
    single query stands behind a segment."""
    embeddings: NDArray[np.float16] | None = None
    """(N, C) layer-normed last state of each segment's query, for tracking; None where nobody asked."""
    states: QueryStates | None = None
    """All queries, kept or not; None where nobody asked."""

    def __post_init__(self) -> None:
        if self.label_ids.shape != self.scores.shape or self.label_ids.ndim != 1:
            raise ValueError(
                f"One class and one score per segment: {self.label_ids.shape=} {self.scores.shape=}."
            )
        for rows in (self.queries, self.embeddings):
            if rows is not None and len(rows) != len(self.label_ids):
                raise ValueError(f"One row per segment: {self.label_ids.shape=}, got {rows.shape}.")
