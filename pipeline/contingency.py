"""How many pixels two labellings of the same pixels share, pair by pair of labels, counted block by block.

Every figure of an evaluation is a function of these counts, so ground truth of any size fits in memory: a pair takes
24 bytes, a pixel nothing. Counts are whole numbers kept in order of their labels, so blocks of any size and order
give the same table, and with it the same figures to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]

VOID = 0
"""In a ground truth: neither right nor wrong. In a prediction: nothing claimed."""
BACKGROUND = -1
"""Ground-truth pixels that are known to hold none of the scored classes: what is claimed there is wrong."""

_MERGE_AT = 1 << 18
"""Pending pairs that are kept unmerged, at least."""


@dataclass(frozen=True, slots=True)
class Contingency:
    """``N`` pairs of labels that share pixels, ascending by (truth, found)."""

    truth: Labels
    """(N,) labels of the ground truth."""
    found: Labels
    """(N,) labels of the prediction."""
    pixels: NDArray[np.int64]
    """(N,) shared pixels, always positive."""

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def merged(cls, parts: Iterable[Contingency]) -> Contingency:
        """The sum of several tables."""
        tables = list(parts)
        if not tables:
            empty = np.zeros(0, np.int64)
            return cls(empty, empty, empty)
        return _summed(
            *(np.concatenate([getattr(t, n) for t in tables]) for n in ("truth", "found", "pixels"))
        )

    def truth_areas(self) -> tuple[Labels, NDArray[np.int64]]:
        """Labels of the ground truth, ascending, and their pixels."""
        return _areas(self.truth, self.pixels)

    def found_areas(self) -> tuple[Labels, NDArray[np.int64]]:
        """Labels of the prediction, ascending, and their pixels."""
        return _areas(self.found, self.pixels)


class PairCounter:
    """Accumulates a contingency table; memory follows the number of pairs."""

    def __init__(self) -> None:
        self._merged = Contingency.merged([])
        self._pending: list[Contingency] = []
        self._waiting = 0

    def add(self, truth: NDArray[np.integer], found: NDArray[np.integer]) -> None:
        """Count the labels of the same pixels, two arrays of one shape. Raises ``ValueError`` for other shapes."""
        if truth.shape != found.shape:
            raise ValueError(f"Both labellings need one shape, got {truth.shape = } and {found.shape = }.")
        if truth.size == 0:
            return
        self.include(_summed(*_runs(truth.ravel(), found.ravel())))

    def include(self, block: Contingency) -> None:
        """Add pairs that were counted elsewhere."""
        self._pending.append(block)
        self._waiting += len(block)
        if self._waiting > max(_MERGE_AT, len(self._merged)):
            self._merge()

    def result(self) -> Contingency:
        """All pairs so far."""
        self._merge()
        return self._merged

    def _merge(self) -> None:
        self._merged = Contingency.merged([self._merged, *self._pending])
        self._pending, self._waiting = [], 0


def segments_of(labels: Labels) -> Labels:
    """``labels`` without ``VOID`` and ``BACKGROUND``."""
    segments: Labels = labels[(labels != VOID) & (labels != BACKGROUND)]
    return segments


def _runs(truth: NDArray[np.integer], found: NDArray[np.integer]) -> tuple[Labels, Labels, Labels]:
    """(labels, labels, length) of the runs of equal pairs: label maps hold some twenty times fewer runs than pixels."""
    change = np.empty(len(truth), np.bool_)
    change[0] = True
    np.not_equal(truth[1:], truth[:-1], out=change[1:])
    change[1:] |= found[1:] != found[:-1]
    starts = np.flatnonzero(change)
    return (
        truth[starts].astype(np.int64),
        found[starts].astype(np.int64),
        np.diff(starts, append=len(truth)),
    )


def _summed(truth: Labels, found: Labels, pixels: NDArray[np.int64]) -> Contingency:
    """Equal pairs added up, in order."""
    if len(truth) == 0:
        return Contingency(truth, found, pixels)
    order = np.lexsort((found, truth))
    truth, found, pixels = truth[order], found[order], pixels[order]
    first = np.flatnonzero(np.concatenate([[True], (truth[1:] != truth[:-1]) | (found[1:] != found[:-1])]))
    return Contingency(truth[first], found[first], np.add.reduceat(pixels, first))


def _areas(labels: Labels, pixels: NDArray[np.int64]) -> tuple[Labels, NDArray[np.int64]]:
    unique, index = np.unique(labels, return_inverse=True)
    areas = np.zeros(len(unique), np.int64)
    np.add.at(areas, index, pixels)
    return unique, areas
