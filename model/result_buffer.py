"""All that a batch gives, in one int32 buffer: one copy from the GPU brings it home.

Unusual: each row of the buffer holds a label map, then the table of its queries (fp64), then the query states and class
logits (half precision), which are a fiftieth of the map and come always, so that no option changes the shape.

Letters: B batch, R rows of the table, Q queries, C channels of a state, K classes, H W pixels of the tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from panoptile.model.batch_fusion import COLUMNS, Fused
from panoptile.model.fusion import Canvas
from panoptile.model.panoptic_map import PanopticMap, QueryStates

Embeddings = Literal["none", "segments", "queries"]
"""Which query states come with a map: none, those of its segments, or those of all queries with their class logits."""


@dataclass(frozen=True, slots=True)
class ResultBuffer:
    """Where things lie in a row."""

    canvas: Canvas
    queries: int
    width: int
    """Channels of a query's state."""
    labels: int
    """Classes, without the one for no object."""
    is_semantic: bool
    """The table has a row per class, and no single query stands behind a segment."""

    @property
    def _ends(self) -> tuple[int, int, int]:
        """Where map, table and states end, in int32 numbers."""
        pixels = self.canvas.height * self.canvas.width
        table = pixels + 2 * len(COLUMNS) * (self.labels if self.is_semantic else self.queries)
        return pixels, table, table + -(-self.queries * (self.width + self.labels + 1) // 2)

    @property
    def length(self) -> int:
        """Numbers per image."""
        return self._ends[-1]

    def pack(self, fused: Fused, normed_BQC: Tensor, class_logits_BQK: Tensor) -> Tensor:
        """(B, length) int32 on the device of the inputs."""
        halves = torch.cat([normed_BQC.half().flatten(1), class_logits_BQK.half().flatten(1)], dim=1)
        parts = [
            fused.labels_BHW.flatten(1),
            fused.table_BR5.contiguous().view(torch.int32).flatten(1),
            F.pad(halves, (0, halves.shape[1] % 2)).view(torch.int32),
        ]
        return torch.cat(parts, dim=1)

    def read(self, buffer: NDArray[np.int32], embeddings: Embeddings) -> list[PanopticMap]:
        """The maps of all images; they own their memory."""
        return [self._map(row, embeddings) for row in buffer]

    def _map(self, row: NDArray[np.int32], embeddings: Embeddings) -> PanopticMap:
        pixels, table_end, _ = self._ends
        table = row[pixels:table_end].copy().view(np.float64).reshape(-1, len(COLUMNS))
        number, label, score, visible, used = table.T
        segments = [np.flatnonzero(number == i) for i in range(1, int(number.max(initial=0)) + 1)]
        queries = np.array([s[visible[s].argmax()] for s in segments], dtype=np.int32)
        states = None if embeddings == "none" else self._states(row[table_end:])
        rows = None
        if states is not None:
            rows = states.embeddings[queries]
            if self.is_semantic:
                rows = np.zeros((len(segments), self.width), np.float16)
        return PanopticMap(
            labels=row[:pixels].reshape(self.canvas.height, self.canvas.width).copy(),
            label_ids=np.array([label[s[0]] for s in segments], dtype=np.int32),
            scores=np.array([(score[s] * visible[s]).sum() / visible[s].sum() for s in segments], np.float32),
            queries_used=int(used.sum()),
            queries=None if self.is_semantic else queries,
            embeddings=rows,
            states=states if embeddings == "queries" else None,
        )

    def _states(self, numbers: NDArray[np.int32]) -> QueryStates:
        halves = numbers.copy().view(np.float16)
        split = self.queries * self.width
        logits = halves[split : split + self.queries * (self.labels + 1)]
        return QueryStates(halves[:split].reshape(self.queries, -1), logits.reshape(self.queries, -1))
