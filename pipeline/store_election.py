"""Put-if-absent on a store that ignores it: writers put attempts, wait, and all elect the same one.

Fischer's timed mutual exclusion (Lamport, "A Fast Mutual Exclusion Algorithm", 1987, section 2): write, wait longer
than a write may take, look, decide. An attempt is an object with a name of its own, so nothing is overwritten before
the decision; the smallest name among those listed wins; whoever decides puts the winner's bytes under the key, so a
writer that died in between does no harm. Readers look at the key alone.

It holds while listing the attempts and putting the key together take less than :data:`SETTLE`. Where that breaks, two
writers may both believe that they won; what a unit commits is named by its content, so even then no result is doubled.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Protocol

ATTEMPTS = "_state/attempts"
SETTLE = 2.0
"""Seconds between an attempt and the decision."""


class _Place(Protocol):
    def put_bytes(self, key: str, data: bytes) -> None: ...
    def read_bytes(self, key: str) -> bytes: ...
    def keys(self, prefix: str) -> list[str]: ...
    def exists(self, key: str) -> bool: ...
    def delete(self, key: str) -> None: ...


def elect(store: _Place, key: str, data: bytes) -> bool:
    """Put ``data`` under ``key`` unless another writer's bytes are there or win; True if they are ``data``."""
    if store.exists(key):
        return _is_there(store, key, data)
    store.put_bytes(f"{_folder(key)}/{uuid.uuid4().hex}", data)
    time.sleep(SETTLE)
    attempts = store.keys(_folder(key))
    if store.exists(
        key
    ):  # looked at after the list: a decision removes the attempts only once the key is there
        return _is_there(store, key, data)
    with contextlib.suppress(FileNotFoundError):  # removed by another who decided: then the key is there
        store.put_bytes(key, store.read_bytes(attempts[0]))
    _remove(store, attempts)
    return _is_there(store, key, data)


def withdraw(store: _Place, key: str) -> None:
    """Remove the attempts at ``key``: a later election must not find them."""
    if not key.startswith(ATTEMPTS):
        _remove(store, store.keys(_folder(key)))


def _is_there(store: _Place, key: str, data: bytes) -> bool:
    try:
        return store.read_bytes(key) == data
    except FileNotFoundError:
        return False


def _remove(store: _Place, attempts: list[str]) -> None:
    for attempt in attempts:
        store.delete(attempt)


def _folder(key: str) -> str:
    return f"{ATTEMPTS}/{key}"
