"""What the worker asks of an input, whatever its kind: read an item, cut a replica's answer, pack a fragment.

A raster's items are tiles, a video's are frames. The worker knows threads, queues, batches and commits; what
an item is, how it is read and what is kept of it stands behind these protocols. Items of one unit need not
have one shape: the worker batches those that do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.plan import Unit, kind_of
from panoptile.pipeline.replica import Place


@dataclass(frozen=True, slots=True, eq=False)
class ItemRead:
    """One item as the replica takes it."""

    place: Place
    """Where, or when, it lies: travels to the replica beside the pixels."""
    pixels: NDArray[np.uint8]
    """(C, H, W)."""
    valid: NDArray[np.bool_] | None
    """(h, w), at most the size of the pixels: which of them are input; None where all are. What is no input
    was painted with the replica's fill value."""

    @property
    def has_input(self) -> bool:
        """False for an item without any input: no replica sees it."""
        return self.valid is None or bool(self.valid.any())


class PackedItem(Protocol):
    """An item's part of a fragment, compressed: what a worker holds until the unit is done."""

    @property
    def pixels(self) -> int:
        """Pixels that count as this item's; 0 for an item without input."""
        ...

    @property
    def segments(self) -> int: ...

    @property
    def queries_used(self) -> int: ...

    @property
    def is_empty(self) -> bool:
        """True where the item had no input."""
        ...


class UnitItems(Protocol):
    """One attempt at the items of one unit, or at some of them.

    ``read`` runs on reader threads, ``encoding`` on the replica's thread in the order of the items, what it
    returns on encoder threads.
    """

    @property
    def readers(self) -> int:
        """How many reads may run at once; 1: reads come one after the other, in the order of the items."""
        ...

    def read(self, item: int) -> ItemRead:
        """Read one item. ``OSError`` or ``ValueError``: this item fails, the others do not."""
        ...

    def encoding(self, item: int, read: ItemRead, panoptic: PanopticMap) -> Callable[[], PackedItem]:
        """What is to be done with the replica's answer. Cheap; the work is in what it returns.

        Called in the order of the items, so it may keep the answer of the item before. An item that failed, or
        that another attempt does, is never seen here.
        """
        ...

    def empty(self, item: int, read: ItemRead) -> PackedItem:
        """The part of an item without input."""
        ...

    def fragment(self, packed: Sequence[PackedItem]) -> bytes:
        """The bytes of the fragment: equal content gives equal bytes. Items that failed are not among them."""
        ...

    def close(self) -> None:
        """Release what this attempt holds; no read is running."""
        ...


class UnitInput(Protocol):
    """An input that a worker has opened; its units may run at the same time."""

    def begin(self, unit: Unit, items: Sequence[int]) -> UnitItems:
        """Start an attempt at some items of a unit, in ascending order. Raises ``OSError`` or ``ValueError``."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class InputContext:
    """What a worker tells an input about itself."""

    classes: ClassTable
    """Of the replica."""
    fill: tuple[int, ...]
    """(C,) grey level of padding and of pixels without input."""
    channels: int
    readers: int
    """Reading threads of the worker."""


def open_input(plan: bytes, context: InputContext) -> UnitInput:
    """Open the input that a stored plan describes. Raises ``OSError`` or ``ValueError``."""
    kind = kind_of(plan)
    if kind == "raster":
        from panoptile.pipeline.raster_input import RasterInput

        return RasterInput(plan, context)
    if kind == "video":
        from panoptile.pipeline.video_input import VideoInput

        return VideoInput(plan, context)
    raise ValueError(
        f"The plan is for a {kind!r}, which this version does not know: use the version that made it."
    )
