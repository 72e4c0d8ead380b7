"""Reading ahead: items in order, a bounded number of them, some at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from panoptile.pipeline.unit_input import ItemRead

CLOSE_SECONDS = 60.0
"""How long the end waits for reads that are still running."""


class Prefetch:
    """Reads of ``items`` on a thread pool, delivered in their order.

    At most ``at_once`` run at the same time (1: one after the other, in order) and ``ahead`` are waiting or
    running. No thread is held while the consumer is slow, so several of these may share a pool. Reading starts
    at once.
    """

    def __init__(
        self,
        threads: ThreadPoolExecutor,
        items: Sequence[int],
        read: Callable[[int], ItemRead],
        *,
        at_once: int,
        ahead: int,
    ) -> None:
        self._threads, self._read, self._at_once, self._ahead = threads, read, at_once, ahead
        self._todo = deque(items)
        self._reading: deque[tuple[int, Future[ItemRead]]] = deque()
        self._running = 0
        self._lock = threading.Lock()
        self._refill()

    def __iter__(self) -> Iterator[tuple[int, Future[ItemRead]]]:
        """(item, its read, finished or not) in order."""
        while True:
            with self._lock:
                if not self._reading:
                    return
                item, future = self._reading[0]
            wait([future])
            with self._lock:
                self._reading.popleft()
            self._refill()
            yield item, future

    def close(self) -> None:
        """Read nothing more; waits a while for what is being read."""
        with self._lock:
            self._todo.clear()
            left = [future for _, future in self._reading]
            self._reading.clear()
        for future in left:
            future.cancel()
        wait(left, CLOSE_SECONDS)

    def _refill(self) -> None:
        with self._lock:
            while self._todo and self._running < self._at_once and len(self._reading) < self._ahead:
                item = self._todo.popleft()
                self._running += 1
                self._reading.append((item, self._threads.submit(self._one, item)))

    def _one(self, item: int) -> ItemRead:
        try:
            return self._read(item)
        finally:
            with self._lock:
                self._running -= 1
            self._refill()
