"""Content hashes of local inputs: they tell a file that was merely touched from one that changed.

Hashing runs beside the units, in one thread; where it does not get ready, a later touch costs a second run of the
input, never a wrong result.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from panoptile.pipeline.plan import InputPlan
from panoptile.pipeline.remote_uri import scheme_of
from panoptile.pipeline.store import Store

_PIECE = 4 << 20


def content_key(key: str) -> str:
    """Where the store keeps the content hash of an input."""
    return f"_state/inputs/{key}.json"


def is_same_content(store: Store, plan: InputPlan) -> bool:
    """True where the file has the very bytes that were hashed when it was first planned, whatever its time."""
    if scheme_of(plan.uri) is not None:
        return False
    try:
        record = json.loads(store.read_bytes(content_key(plan.key)))
        status = os.stat(plan.uri)
        if record["size_bytes"] != status.st_size:
            return False
        same: bool = _digest(plan.uri, status.st_size, status.st_mtime_ns) == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same


class ContentHashes:
    """Hashes the local inputs of a job in a thread and stores what it finds."""

    def __init__(self, store: Store, plans: Iterable[InputPlan]) -> None:
        self._store = store
        self._plans = [p for p in plans if scheme_of(p.uri) is None]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hash-inputs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, grace: float = 10.0) -> None:
        """Let it finish within ``grace`` seconds, else give up what is not hashed yet."""
        self._thread.join(grace)
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        for plan in self._plans:
            if self._stop.is_set():
                return
            try:
                self._hash(plan)
            except OSError:
                continue  # an input or a store in trouble is found, and told, by those who need it

    def _hash(self, plan: InputPlan) -> None:
        planned = _planned_version(plan)
        status = os.stat(plan.uri)
        version = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        if version != planned or _version_on_record(self._store, plan.key) == version:
            return
        digest = hashlib.sha256()
        with open(plan.uri, "rb") as file:
            while piece := file.read(_PIECE):
                if self._stop.is_set():
                    return
                digest.update(piece)
        after = os.stat(plan.uri)
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            return  # it changed while it was read: the run will refuse it
        record = {**version, "sha256": digest.hexdigest()}
        self._store.put_bytes(content_key(plan.key), json.dumps(record).encode())


def _planned_version(plan: InputPlan) -> dict[str, Any]:
    fields = json.loads(plan.to_json())
    info = fields.get("info", fields)
    return {name: info.get(name) for name in ("size_bytes", "mtime_ns")}


def _version_on_record(store: Store, key: str) -> dict[str, Any] | None:
    try:
        record = json.loads(store.read_bytes(content_key(key)))
        return {name: record[name] for name in ("size_bytes", "mtime_ns")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """sha256 of a file in that version; asked for twice within a run."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
