"""What became of each thing between two label maps of the same pixels: kept, split, merged, gone, or new."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.contingency import Labels
from panoptile.pipeline.overlaps import Overlaps


class Change(StrEnum):
    """What became of a thing; each has exactly one. The first rule that holds decides."""

    SPLIT = "split"
    """Two or more things of its class lie mostly in it and cover most of it."""
    MERGED = "merged"
    """It and others of its class lie mostly in one thing and cover most of that."""
    MATCHED = "matched"
    """A thing of its class overlaps with IoU > 0.5."""
    RELABELLED = "relabelled"
    """A thing of another class overlaps with IoU > 0.5."""
    RESHAPED = "reshaped"
    """Things of its class cover more than half of it, but none matches."""
    VANISHED = "vanished"
    """Neither: in the old map alone. (``APPEARED``: in the new one alone.)"""
    APPEARED = "appeared"


@dataclass(frozen=True, slots=True)
class Changes:
    """Things of both maps with what became of them."""

    old: Labels
    """(A,)"""
    old_changes: NDArray[np.object_]
    """(A,) :class:`Change`"""
    new: Labels
    """(B,)"""
    new_changes: NDArray[np.object_]
    """(B,) seen from the new map: a part of a split thing is ``SPLIT``, a thing that several became is ``MERGED``."""

    def counts(self) -> dict[str, dict[str, int]]:
        """How many things of each map have each change."""
        return {
            side: {c.value: int(np.count_nonzero(changes == c)) for c in Change if c != other}
            for side, changes, other in (
                ("old", self.old_changes, Change.APPEARED),
                ("new", self.new_changes, Change.VANISHED),
            )
        }


def thing_changes(image: Overlaps, things: frozenset[int]) -> Changes:
    """Compare the things of two maps; ``truth`` of ``image`` is the old one."""
    old_thing, new_thing = (np.isin(s.class_ids, list(things)) for s in (image.truth, image.found))
    pair = old_thing[image.pair_truth] & new_thing[image.pair_found]
    a, b, pixels, iou = image.pair_truth[pair], image.pair_found[pair], image.pixels[pair], image.iou[pair]
    same = image.same_class[pair]
    a_inside_b = same & (2 * pixels > image.truth_areas[a])
    b_inside_a = same & (2 * pixels > image.found_areas[b])
    split = _gathers(a, b_inside_a, pixels, image.truth_areas)
    merged = _gathers(b, a_inside_b, pixels, image.found_areas)
    part_of_split, part_of_merged = b_inside_a & split[a], a_inside_b & merged[b]
    size_a, size_b = len(old_thing), len(new_thing)
    old = _decided(
        size_a,
        [
            (Change.SPLIT, split),
            (Change.MERGED, _marked(a[part_of_merged], size_a)),
            (Change.MATCHED, _marked(a[same & (iou > 0.5)], size_a)),
            (Change.RELABELLED, _marked(a[~same & (iou > 0.5)], size_a)),
            (Change.RESHAPED, 2 * _sums(a[same], pixels[same], size_a) > image.truth_areas),
        ],
        Change.VANISHED,
    )
    new = _decided(
        size_b,
        [
            (Change.SPLIT, _marked(b[part_of_split], size_b)),
            (Change.MERGED, merged),
            (Change.MATCHED, _marked(b[same & (iou > 0.5)], size_b)),
            (Change.RELABELLED, _marked(b[~same & (iou > 0.5)], size_b)),
            (Change.RESHAPED, 2 * _sums(b[same], pixels[same], size_b) > image.found_areas),
        ],
        Change.APPEARED,
    )
    return Changes(
        image.truth.labels[old_thing], old[old_thing], image.found.labels[new_thing], new[new_thing]
    )


def _gathers(
    whole: NDArray[np.int64], inside: NDArray[np.bool_], pixels: NDArray[np.int64], areas: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which segments hold two or more others that together cover most of them."""
    parts = np.bincount(whole[inside], minlength=len(areas))
    gathers: NDArray[np.bool_] = (parts >= 2) & (2 * _sums(whole[inside], pixels[inside], len(areas)) > areas)
    return gathers


def _sums(index: NDArray[np.int64], pixels: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    sums = np.zeros(size, np.int64)
    np.add.at(sums, index, pixels)
    return sums


def _marked(index: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    marks = np.zeros(size, np.bool_)
    marks[index] = True
    return marks


def _decided(
    size: int, rules: list[tuple[Change, NDArray[np.bool_]]], otherwise: Change
) -> NDArray[np.object_]:
    changes = np.full(size, otherwise, object)
    for change, holds in reversed(rules):
        changes[holds] = change
    return changes
