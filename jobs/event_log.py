"""What happened, as JSON lines beside the result: ``_state/events/<run>/<n>.jsonl``.

A store has no appending: lines are gathered and put as numbered pieces every few seconds, so that ``logs -f`` sees
them soon and a killed run loses only the last ones. Events tell of a run; nothing in the result depends on them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from panoptile.pipeline.redaction import redacted_json
from panoptile.pipeline.store import Store

FLUSH_SECONDS = 5.0
FLUSH_LINES = 2000
FOLDER = "_state/events"


class EventLog:
    """Events of one run. Any thread may use it."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._pieces = 0
        self._flushed = time.monotonic()

    def add(self, event: str, **fields: Any) -> None:
        """Note an event: ``unit``, ``worker``, ``input``, ``message`` and whatever else belongs to it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": now, "run": self._run, "event": event, **redacted_json(fields)}, default=str)
        with self._lock:
            self._lines.append(line)

    def flush_now_and_then(self) -> None:
        """Put what has gathered, where the last piece is old or much has come. Raises ``OSError`` of the store."""
        if len(self._lines) >= FLUSH_LINES or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put what has gathered as the next piece. Raises ``OSError`` of the store."""
        with self._lock:
            lines, self._lines = self._lines, []
            if not lines:
                return
            self._pieces += 1
            key = f"{FOLDER}/{self._run}/{self._pieces:06d}.jsonl"
        self._flushed = time.monotonic()
        self._store.put_bytes(key, ("\n".join(lines) + "\n").encode())


def read_events(store: Store, seen: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """All events of all runs, run by run in their order; with ``seen``, those of pieces that are not in it yet.

    Pieces that are read are added to ``seen``. Lines that cannot be read are left out. Raises ``OSError``.
    """
    for piece in store.walk(FOLDER):
        if seen is not None:
            if piece.key in seen:
                continue
            seen.add(piece.key)
        for line in store.read_bytes(piece.key).decode(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def event_text(event: dict[str, Any]) -> str:
    """One line for people."""
    rest = {
        k: v for k, v in event.items() if k not in ("at", "run", "event", "message") and v not in (None, "")
    }
    details = "  ".join(f"{k}={v}" for k, v in rest.items())
    time_of_day = str(event.get("at", ""))[:23].replace("T", " ")
    return "  ".join(
        p for p in (time_of_day, str(event.get("event", "")), details, str(event.get("message", ""))) if p
    )
