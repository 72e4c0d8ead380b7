"""The inputs that a worker has open: a few, and never one less than are in use."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from panoptile.pipeline.unit_input import UnitInput

KEPT = 4
"""Inputs that stay open; a worker walks through them, and old handles are not needed again."""


@dataclass(slots=True)
class _Entry:
    opened: Future[UnitInput] = field(default_factory=Future)
    users: int = 0
    failed: bool = False
    """A unit ended in an error: a handle of the input may be broken, so it is opened anew."""


class OpenInputs:
    """Opens inputs by key, once each, and closes those that were not used for longest."""

    def __init__(self, open_one: Callable[[str], UnitInput]) -> None:
        self._open_one = open_one
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    @contextlib.contextmanager
    def use(self, key: str) -> Iterator[UnitInput]:
        """The opened input; it stays open until the block ends. Raises what opening it raises."""
        with self._lock:
            is_new = key not in self._entries
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.users += 1
        try:
            if is_new:
                self._fill(key, entry)
            yield entry.opened.result()
        except BaseException:
            entry.failed = True
            raise
        finally:
            with self._lock:
                entry.users -= 1
                self._trim()

    def close(self) -> None:
        """Close everything; nothing may be in use."""
        with self._lock:
            for entry in self._entries.values():
                _close(entry)
            self._entries.clear()

    def _fill(self, key: str, entry: _Entry) -> None:
        try:
            entry.opened.set_result(self._open_one(key))
        except BaseException as e:  # noqa: BLE001  (whoever waits for the input gets it raised)
            entry.opened.set_exception(e)

    def _trim(self) -> None:
        surplus = len(self._entries) - KEPT
        for key, entry in list(self._entries.items()):
            if entry.users == 0 and (entry.failed or surplus > 0):
                _close(self._entries.pop(key))
                surplus -= 1


def _close(entry: _Entry) -> None:
    if entry.opened.done() and entry.opened.exception() is None:
        entry.opened.result().close()
