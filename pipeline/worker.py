"""The worker: pulls units, reads, runs its replica, writes fragments, commits.

A plain class; the Ray actor is a thin shell around it. Reading and encoding happen in threads beside the
replica, with bounded queues, so no pixel passes through Ray and memory does not grow with the raster. Two
units may be in flight: while one holds the replica, the next one's first tiles are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.fragment import PackedTile, empty_tile, encode_fragment, pack_tile, tile_fragment
from panoptile.pipeline.grid import Tile
from panoptile.pipeline.layout import commit_key, fragment_key, plan_key
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.raster_source import RasterSource, RasterTile
from panoptile.pipeline.replica import ReplicaFactory, TileBatch
from panoptile.pipeline.store import open_store

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker needs to start; small and picklable."""

    store_root: str
    replica: ReplicaFactory
    batch: int = 1
    """Tiles per forward pass; the last batch of a unit is padded, so the shape is always the same."""
    channels: int = 3
    readers: int = 2
    """Reading threads."""
    encoders: int = 2
    """Threads that cut, compress and write."""
    threads: int = 1
    """Threads of torch, BLAS, GDAL and Arrow inside this worker."""


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What a finished unit cost; goes to metrics, never into the published tree."""

    unit: Unit
    worker: str
    tiles: int
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
    """Clock readings of one worker: comparable within that worker alone."""
    already_done: bool = False


class UnitError(RuntimeError):
    """A unit failed; says in which stage and on which tile."""

    def __init__(self, stage: str, message: str, tile_id: int | None = None) -> None:
        super().__init__(stage, message, tile_id)  # all three: the error travels by pickle
        self.stage = stage
        self.message = message
        self.tile_id = tile_id

    def __str__(self) -> str:
        where = "" if self.tile_id is None else f" at tile {self.tile_id}"
        return f"{self.stage}{where}: {self.message}"


def bound_threads(threads: int) -> None:
    """Bound the threads of everything that computes in this process: torch, BLAS, GDAL, Arrow.

    Call it before numpy or torch are imported where that can be had; OpenMP reads its variable once.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["GDAL_NUM_THREADS"] = str(threads)
    import pyarrow as pa

    pa.set_cpu_count(threads)
    pa.set_io_thread_count(max(1, threads))


@dataclass(slots=True)
class _Clock:
    """Seconds spent in a stage, summed over threads."""

    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, since: float) -> None:
        with self._lock:
            self.seconds += time.perf_counter() - since


class Worker:
    """Hosts one replica and segments units with it."""

    def __init__(self, spec: WorkerSpec, name: str = "worker-0") -> None:
        bound_threads(spec.threads)
        self.name = name
        self._spec = spec
        self._store = open_store(spec.store_root)
        self._replica = spec.replica()
        self._replica_lock = threading.Lock()
        self._plans_lock = threading.Lock()
        self._plans: dict[str, tuple[RasterPlan, RasterSource]] = {}
        self._readers = ThreadPoolExecutor(spec.readers, f"{name}-read")
        self._encoders = ThreadPoolExecutor(spec.encoders, f"{name}-encode")

    def run(self, unit: Unit) -> UnitReport:
        """Segment one unit and commit it. Raises :class:`UnitError`; calling it again is harmless."""
        return _UnitRun(self, unit).execute()

    def close(self) -> None:
        """Stop the threads and close all rasters."""
        self._readers.shutdown(cancel_futures=True)
        self._encoders.shutdown(cancel_futures=True)
        with self._plans_lock:
            for _, source in self._plans.values():
                source.close()
            self._plans.clear()

    def _input(self, key: str) -> tuple[RasterPlan, RasterSource]:
        with self._plans_lock:
            if key not in self._plans:
                while (
                    len(self._plans) >= 4
                ):  # a worker walks through inputs: old handles are not needed again
                    self._plans.pop(next(iter(self._plans)))[1].close()
                plan = RasterPlan.from_json(self._store.read_bytes(plan_key(key)))
                self._plans[key] = (plan, RasterSource(plan.info))
            return self._plans[key]


class _UnitRun:
    """One attempt at one unit."""

    def __init__(self, worker: Worker, unit: Unit) -> None:
        self._worker = worker
        self._unit = unit
        self._spec = worker._spec
        self._read_clock, self._encode_clock = _Clock(), _Clock()
        self._infer_seconds = 0.0
        self._infer_started = self._infer_ended = 0.0
        self._in_encoding = threading.BoundedSemaphore(2 * self._spec.batch + self._spec.encoders)

    def execute(self) -> UnitReport:
        worker, unit = self._worker, self._unit
        if worker._store.exists(commit_key(unit)):
            return self._report([], already_done=True)
        try:
            self._plan, self._source = worker._input(unit.key)
        except (OSError, ValueError) as e:
            raise UnitError("open", f"{type(e).__name__}: {e}") from e
        self._grid = self._plan.grid
        reads = self._prefetch()
        with worker._replica_lock:
            encoding = self._segment_all(reads)
        fragments = [self._finished(future, "write") for future in encoding]
        self._commit(fragments)
        return self._report(fragments)

    # --- read ---

    def _prefetch(self) -> Iterator[tuple[Tile, RasterTile]]:
        """Tiles of the unit in order; up to two batches ahead are being read. Reading starts at once."""
        ahead = 2 * self._spec.batch + self._spec.readers
        todo = deque(tile for _, tile in self._plan.tiles_of(self._unit))
        reading: deque[tuple[Tile, Future[RasterTile]]] = deque()

        def refill() -> None:
            while todo and len(reading) < ahead:
                tile = todo.popleft()
                reading.append((tile, self._worker._readers.submit(self._read, tile)))

        def deliver() -> Iterator[tuple[Tile, RasterTile]]:
            while reading:
                tile, future = reading.popleft()
                result = self._finished(future, "read", tile)
                refill()
                yield tile, result

        refill()
        return deliver()

    def _read(self, tile: Tile) -> RasterTile:
        """The tile as the replica wants it: (C, T, T), padding and pixels without input hold its fill value.

        ``valid`` keeps the window's own shape.
        """
        started = time.perf_counter()
        read = self._source.read(tile.window)
        height, width = read.valid.shape
        fill = np.array(self._worker._replica.fill, np.uint8)[:, None, None]
        side = self._plan.tile
        if (height, width) == (side, side) and read.valid.all():
            pixels = read.pixels
        else:
            pixels = np.empty((self._spec.channels, side, side), np.uint8)
            pixels[:] = fill
            np.copyto(pixels[:, :height, :width], read.pixels, where=read.valid)
        self._read_clock.add(started)
        return RasterTile(pixels, read.valid)

    # --- infer ---

    def _segment_all(self, reads: Iterator[tuple[Tile, RasterTile]]) -> list[Future[PackedTile]]:
        encoding: list[Future[PackedTile]] = []
        waiting: list[tuple[Tile, RasterTile]] = []
        for tile, read in reads:
            if not read.valid.any():
                encoding.append(_done(empty_tile(self._grid.tile_id(tile.row, tile.col))))
                continue
            waiting.append((tile, read))
            if len(waiting) == self._spec.batch:
                encoding += self._segment(waiting)
                waiting = []
        if waiting:
            encoding += self._segment(waiting)
        return encoding

    def _segment(self, group: list[tuple[Tile, RasterTile]]) -> list[Future[PackedTile]]:
        batch = TileBatch(self._stacked([read for _, read in group]), tuple(tile for tile, _ in group))
        started = time.perf_counter()
        try:
            maps = self._worker._replica.segment(batch)
        except Exception as e:  # a replica is anybody's code: whatever it raises is this unit's failure
            first = group[0][0]
            where = self._grid.tile_id(first.row, first.col)
            raise UnitError("infer", f"{type(e).__name__}: {e}", where) from e
        ended = time.perf_counter()
        self._infer_seconds += ended - started
        self._infer_started = self._infer_started or started
        self._infer_ended = ended
        futures = []
        for (tile, read), panoptic in zip(group, maps, strict=True):
            self._in_encoding.acquire()

            def encode(tile: Tile = tile, read: RasterTile = read, panoptic=panoptic) -> PackedTile:  # type: ignore[no-untyped-def]
                began = time.perf_counter()
                try:
                    classes = self._worker._replica.classes
                    return pack_tile(tile_fragment(self._grid, tile, panoptic, read.valid, classes))
                finally:
                    self._encode_clock.add(began)
                    self._in_encoding.release()

            futures.append(self._worker._encoders.submit(encode))
        return futures

    def _stacked(self, reads: list[RasterTile]) -> NDArray[np.uint8]:
        """(B, C, T, T): the batch in its fixed shape; images that are missing at the end are blank."""
        if len(reads) == self._spec.batch == 1:
            return reads[0].pixels[None]
        blank = np.zeros_like(reads[0].pixels)
        return np.stack([r.pixels for r in reads] + [blank] * (self._spec.batch - len(reads)))

    # --- commit ---

    def _commit(self, fragments: list[PackedTile]) -> None:
        """Put the fragment under a key of its content, then commit the unit by put-if-absent."""
        started = time.perf_counter()
        store, unit = self._worker._store, self._unit
        data = encode_fragment(fragments)
        digest = hashlib.sha256(data).hexdigest()
        key = fragment_key(unit, digest)
        commit = {
            "unit": unit.id,
            "fragment": key,
            "sha256": digest,
            "size": len(data),
            "token": uuid.uuid4().hex,
            "failed_tiles": [],
        }
        try:
            store.put_bytes(key, data)
            store.put_if_absent(commit_key(unit), json.dumps(commit, sort_keys=True).encode())
        except OSError as e:
            raise UnitError("commit", f"{type(e).__name__}: {e}") from e
        self._encode_clock.add(started)

    def _finished(self, future: Future, stage: str, tile: Tile | None = None):  # type: ignore[no-untyped-def,type-arg]
        """The future's result; its error becomes a UnitError of that stage."""
        try:
            return future.result()
        except UnitError:
            raise
        except (OSError, RuntimeError, ValueError, MemoryError) as e:
            where = None if tile is None else self._grid.tile_id(tile.row, tile.col)
            raise UnitError(stage, f"{type(e).__name__}: {e}", where) from e

    def _report(self, fragments: list[PackedTile], already_done: bool = False) -> UnitReport:
        used = [f.queries_used for f in fragments]
        return UnitReport(
            unit=self._unit,
            worker=self._worker.name,
            tiles=len(fragments),
            empty_tiles=sum(f.itemsize == 0 for f in fragments),
            pixels=sum(f.pixels for f in fragments),
            segments=sum(len(f.nodes) for f in fragments),
            queries_used_max=max(used, default=0),
            queries_used_sum=sum(used),
            read_seconds=self._read_clock.seconds,
            infer_seconds=self._infer_seconds,
            encode_seconds=self._encode_clock.seconds,
            infer_started=self._infer_started,
            infer_ended=self._infer_ended,
            already_done=already_done,
        )


def _done(fragment: PackedTile) -> Future[PackedTile]:
    future: Future[PackedTile] = Future()
    future.set_result(fragment)
    return future
