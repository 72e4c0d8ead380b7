"""What passes between the driver and a worker: one attempt at a unit, and what came of it. Small values."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass

from panoptile.pipeline.plan import Unit


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one unit."""

    unit: Unit
    skip: tuple[int, ...] = ()
    """Items that are known to fail: they are left out, and named by the commit."""
    only: tuple[int, ...] | None = None
    """A probe: these items alone are tried, and nothing is written."""
    tolerant: bool = False
    """Commit what could be done though items failed; else the driver decides what to do with them."""
    alone: bool = False
    """Nothing else may run on the same worker: whatever kills it is in this attempt."""
    seconds: float = math.inf
    """After so long the worker is taken for hung, and killed."""

    @property
    def items(self) -> tuple[int, ...]:
        """Items to try, ascending."""
        if self.only is not None:
            return self.only
        return tuple(i for i in self.unit.items if i not in self.skip)


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why one item could not be done."""

    item: int
    stage: str
    """open, read, infer, encode, commit; worker or timeout where the worker was lost with it."""
    error_type: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class FragmentRef:
    """A fragment in the store."""

    key: str
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What an attempt cost; goes to metrics, never into the published tree."""

    unit: Unit
    worker: str
    tiles: int
    """Items that were done."""
    empty_tiles: int
    pixels: int
    """Pixels of the owned cores, without tiles that have no input."""
    segments: int
    queries_used_max: int
    queries_used_sum: int
    read_seconds: float
    infer_seconds: float
    encode_seconds: float
    infer_started: float
    infer_ended: float
    """First and last forward pass, seconds since 1970: a worker that was lost may go on on another machine."""
    already_done: bool = False
    committed: bool = True
    """False after a probe, and where items failed that the attempt was not to tolerate."""
    failures: tuple[ItemFailure, ...] = ()
    fragment: FragmentRef | None = None
    """What was put without being committed: all items but the failed ones."""
    batch: int = 0
    """Images per forward pass at the end: less than asked for where memory was short."""


class UnitError(RuntimeError):
    """A unit failed as a whole; says in which stage, and on which item where one is known."""

    def __init__(
        self,
        stage: str,
        message: str,
        tile_id: int | None = None,
        error_type: str | None = None,
        trace: str | None = None,
    ) -> None:
        super().__init__(stage, message, tile_id, error_type, trace)  # all: the error travels by pickle
        self.stage, self.message, self.tile_id = stage, message, tile_id
        self.error_type, self.trace = error_type, trace
        """Of the error behind it, where that is not the cause of this one."""

    def __str__(self) -> str:
        where = "" if self.tile_id is None else f" at tile {self.tile_id}"
        return f"{self.stage}{where}: {self.message}"


def item_failure(item: int, stage: str, error: BaseException) -> ItemFailure:
    """The record of an exception that concerns one item."""
    text = "".join(traceback.format_exception(error))
    return ItemFailure(item, stage, type(error).__name__, str(error), text)
