"""One attempt at one unit inside a worker: read, infer, encode, commit.

An item that fails is set aside and named, the others go on. A batch that fails is halved until the guilty item
is found; one that does not fit into memory is halved too, without blame, and the smaller batch is kept for all
that follows.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.attempt import Attempt, FragmentRef, ItemFailure, UnitError, UnitReport, item_failure
from panoptile.pipeline.commit import commit_unit
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.grid import Tile
from panoptile.pipeline.layout import fragment_key
from panoptile.pipeline.prefetch import Prefetch
from panoptile.pipeline.replica import Frame, OutOfMemory, Replica, ReplicaBroken, TileBatch
from panoptile.pipeline.store import Store
from panoptile.pipeline.unit_input import ItemRead, PackedItem, UnitItems

Group = list[tuple[int, ItemRead]]


class BatchSize:
    """Images per forward pass; shrinks where memory is short, and stays so while the worker lives."""

    def __init__(self, images: int) -> None:
        self.images = images

    def halve(self, failed: int) -> bool:
        """Go below the ``failed`` size; False where it cannot be any smaller."""
        self.images = min(self.images, max(1, failed // 2))
        return failed > 1


@dataclass(slots=True)
class Clock:
    """Seconds spent in a stage, summed over threads."""

    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, since: float) -> None:
        with self._lock:
            self.seconds += time.perf_counter() - since


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker's attempts share."""

    name: str
    store: Store
    replica: Replica
    replica_lock: threading.Lock
    batch: BatchSize
    readers: ThreadPoolExecutor
    encoders: ThreadPoolExecutor
    encoder_count: int
    reader_count: int


class UnitRun:
    """One attempt at one unit."""

    def __init__(self, equipment: Equipment, attempt: Attempt, items: UnitItems) -> None:
        self._with, self._attempt, self._items = equipment, attempt, items
        self._read_clock, self._encode_clock = Clock(), Clock()
        self._infer_seconds = self._infer_started = self._infer_ended = 0.0
        self._failures: list[ItemFailure] = []
        self._encoding: list[tuple[int, Future[PackedItem]]] = []
        self._room = threading.BoundedSemaphore(2 * equipment.batch.images + equipment.encoder_count)

    def execute(self) -> UnitReport:
        """Segment the items and commit them. Raises :class:`UnitError` where nothing could be done."""
        batch = self._with.batch.images
        reads = Prefetch(
            self._with.readers,
            self._attempt.items,
            self._read,
            at_once=self._items.readers,
            ahead=2 * batch + self._with.reader_count,
        )
        try:
            with self._with.replica_lock:
                self._segment_all(reads)
        finally:
            reads.close()
        packed = self._packed()
        self._failures.sort(key=lambda f: f.item)
        if self._failures and not packed:
            raise self._nothing_done()
        if self._attempt.only is not None:
            return self._report(packed, committed=False)
        fragment = self._put(packed)
        committed = not self._failures or self._attempt.tolerant
        if committed:
            failed = {*self._attempt.skip, *(f.item for f in self._failures)}
            self._commit(fragment, sorted(failed))
        return self._report(packed, committed=committed, fragment=None if committed else fragment)

    # --- read ---

    def _read(self, item: int) -> ItemRead:
        started = time.perf_counter()
        reach("reader.before")
        read = self._items.read(item)
        self._read_clock.add(started)
        return read

    # --- infer ---

    def _segment_all(self, reads: Prefetch) -> None:
        waiting: Group = []
        for item, future in reads:
            try:
                read = future.result()
            except (OSError, RuntimeError, ValueError, MemoryError) as e:
                self._failures.append(item_failure(item, "read", e))
                continue
            if not read.has_input:
                self._encoding.append((item, _done(self._items.empty(item, read))))
                continue
            if waiting and waiting[0][1].pixels.shape != read.pixels.shape:
                self._segment(waiting)
                waiting = []
            waiting.append((item, read))
            if len(waiting) >= self._with.batch.images:
                self._segment(waiting)
                waiting = []
        if waiting:
            self._segment(waiting)

    def _segment(self, group: Group) -> None:
        """Run a group through the replica; one above the batch size is cut, a failing one is halved."""
        size = self._with.batch.images
        if len(group) > size:
            for start in range(0, len(group), size):
                self._segment(group[start : start + size])
            return
        answer = self._infer([read for _, read in group], size)
        if not isinstance(answer, Exception):
            for (item, read), panoptic in zip(group, answer, strict=True):
                self._encode(item, read, panoptic)
        elif isinstance(answer, OutOfMemory) and self._with.batch.halve(size):
            self._segment(group)
        elif len(group) == 1:
            self._failures.append(item_failure(group[0][0], "infer", answer))
        else:
            middle = len(group) // 2
            self._segment(group[:middle])
            self._segment(group[middle:])

    def _infer(self, reads: list[ItemRead], size: int) -> Sequence[PanopticMap] | Exception:
        """The replica's answer; its error is returned, so that no handler keeps tensors alive meanwhile."""
        batch = _batch(reads, size)
        reach("replica.before")
        started = time.perf_counter()
        try:
            maps = self._with.replica.segment(batch)
        except ReplicaBroken:
            raise
        except Exception as e:  # noqa: BLE001  (a replica is anybody's code; what it raises is its images' failure)
            return e
        ended = time.perf_counter()
        reach("replica.after")
        self._infer_seconds += ended - started
        self._infer_ended = time.time()
        self._infer_started = self._infer_started or self._infer_ended - (ended - started)
        if len(maps) != len(reads):
            return ValueError(f"The replica gave {len(maps)} maps for {len(reads)} images.")
        return maps

    # --- encode ---

    def _encode(self, item: int, read: ItemRead, panoptic: PanopticMap) -> None:
        """Hand the answer to an encoder thread; waits while too many are waiting there."""
        work = self._items.encoding(item, read, panoptic)
        self._room.acquire()

        def encode() -> PackedItem:
            began = time.perf_counter()
            try:
                reach("encode.before")
                return work()
            finally:
                self._encode_clock.add(began)
                self._room.release()

        self._encoding.append((item, self._with.encoders.submit(encode)))

    def _packed(self) -> list[PackedItem]:
        packed = []
        for item, future in self._encoding:
            try:
                packed.append(future.result())
            except (OSError, RuntimeError, ValueError, MemoryError) as e:
                self._failures.append(item_failure(item, "encode", e))
        return packed

    # --- commit ---

    def _put(self, packed: Sequence[PackedItem]) -> FragmentRef:
        """Put the fragment under a key of its content: any number of times, to no effect until committed."""
        started = time.perf_counter()
        data = self._items.fragment(packed)
        digest = hashlib.sha256(data).hexdigest()
        key = fragment_key(self._attempt.unit, digest)
        reach("fragment.before")
        try:
            self._with.store.put_bytes(key, data)
        except OSError as e:
            raise UnitError("commit", f"{type(e).__name__}: {e}") from e
        reach("fragment.after")
        self._encode_clock.add(started)
        return FragmentRef(key, digest, len(data))

    def _commit(self, fragment: FragmentRef, failed: Sequence[int]) -> None:
        started = time.perf_counter()
        try:
            commit_unit(self._with.store, self._attempt.unit, fragment, failed)
        except OSError as e:
            raise UnitError("commit", f"{type(e).__name__}: {e}") from e
        self._encode_clock.add(started)

    def _nothing_done(self) -> UnitError:
        first, n = self._failures[0], len(self._failures)
        if n == 1:
            return UnitError(first.stage, first.message, first.item, first.error_type, first.traceback)
        message = f"all {n} items failed; the first: {first.error_type}: {first.message}"
        return UnitError(first.stage, message, first.item, first.error_type, first.traceback)

    def _report(
        self, packed: Sequence[PackedItem], *, committed: bool, fragment: FragmentRef | None = None
    ) -> UnitReport:
        used = [p.queries_used for p in packed]
        return UnitReport(
            unit=self._attempt.unit,
            worker=self._with.name,
            tiles=len(packed),
            empty_tiles=sum(p.is_empty for p in packed),
            pixels=sum(p.pixels for p in packed),
            segments=sum(p.segments for p in packed),
            queries_used_max=max(used, default=0),
            queries_used_sum=sum(used),
            read_seconds=self._read_clock.seconds,
            infer_seconds=self._infer_seconds,
            encode_seconds=self._encode_clock.seconds,
            infer_started=self._infer_started,
            infer_ended=self._infer_ended,
            committed=committed,
            failures=tuple(self._failures),
            fragment=fragment,
            batch=self._with.batch.images,
        )


def _batch(reads: list[ItemRead], size: int) -> TileBatch:
    """The images in a batch of fixed shape (size, C, H, W); those that are missing at the end are blank."""
    if len(reads) == size == 1:
        pixels = reads[0].pixels[None]
    else:
        blank = np.zeros_like(reads[0].pixels)
        pixels = np.stack([r.pixels for r in reads] + [blank] * (size - len(reads)))
    places = [r.place for r in reads]
    return TileBatch(
        pixels,
        tuple(p for p in places if isinstance(p, Tile)),
        tuple(p for p in places if isinstance(p, Frame)),
    )


def _done(packed: PackedItem) -> Future[PackedItem]:
    future: Future[PackedItem] = Future()
    future.set_result(packed)
    return future
