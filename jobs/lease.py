"""The lease of an output folder: one run works on a job, the others follow it.

A lease saves work; it is not what keeps the result right. Commits are idempotent, and a holder that was taken for
dead and wakes up late asks before it removes or replaces anything, and again once it has: it sees the higher epoch,
stops, and has what it may have touched made anew. No clock is ever compared with another machine's: an observer counts
its own seconds without a change of the holder's beat.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from panoptile.jobs.time_limit import seconds_from
from panoptile.pipeline.fault_points import reach

if TYPE_CHECKING:
    from panoptile.pipeline.store import Store

PATIENCE_VARIABLE = "PANOPTILE_LEASE_SECONDS"
PATIENCE_SECONDS = 60.0
"""How long a beat may stay unchanged before its holder counts as dead."""
BEATS_PER_PATIENCE = 12

State = Literal["free", "alive", "dead", "unknown"]
Purpose = Literal["run", "upkeep"]
"""What a lease is held for: to work on the job, or to tidy the folder (``gc``)."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a holder said that it ended."""

    exit: int
    message: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What an observer sees of the lease at one moment."""

    epoch: int
    """The highest epoch; 0 where nobody ever held the lease."""
    state: State
    """``unknown``: held, but not watched for long enough to tell."""
    holder: str
    """Host and process of the holder, for messages; of the run before, where a holder that only tidied has left."""
    ending: Ending | None
    """Of a holder that released the lease."""
    purpose: Purpose = "run"

    @property
    def is_at_rest(self) -> bool:
        """Nobody holds the lease, and nobody who held it can still wake up and write."""
        return self.state in ("free", "dead")


def patience() -> float:
    """Seconds without a beat after which a lease is taken over. Raises :class:`JobError` (exit 2)."""
    return seconds_from(PATIENCE_VARIABLE, PATIENCE_SECONDS, 86_400)


class Observer:
    """Watches the lease of an output folder."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock, self._patience = store, clock, patience()
        self._seen: tuple[int, bytes] | None = None
        self._since = 0.0
        self._moved = False

    def look(self) -> Sight:
        """Look once; call it every second or so. Raises ``OSError`` of the store."""
        epoch = highest_epoch(self._store)
        if epoch == 0:
            return Sight(0, "free", "", None)
        holder = _read(self._store, lease_key(epoch))
        beat = _bytes(self._store, beat_key(epoch))
        name = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        purpose: Purpose = "upkeep" if holder.get("purpose") == "upkeep" else "run"
        fields = _json(beat)
        if fields.get("released"):
            ending = Ending(int(fields.get("exit", 1)), str(fields.get("message", "")))
            return Sight(epoch, "free", str(fields.get("holder", name)), ending, purpose)
        return Sight(epoch, self._judge(epoch, beat, holder), name, None, purpose)

    def _judge(self, epoch: int, beat: bytes, holder: dict[str, Any]) -> State:
        if _has_ended(holder):
            return "dead"
        now = self._clock()
        if self._seen != (epoch, beat):
            self._moved = _runs_here(holder) or (self._seen is not None and self._seen[0] == epoch)
            self._seen, self._since = (epoch, beat), now
        if now - self._since >= self._patience:
            return "dead"
        return "alive" if self._moved else "unknown"


class Lease:
    """A lease that this process holds; its beat is rewritten by a thread until it is released or lost."""

    def __init__(self, store: Store, epoch: int, token: str) -> None:
        self.epoch = epoch
        self.token = token
        self._store = store
        self._interval = min(5.0, patience() / BEATS_PER_PATIENCE)
        self._count = 0
        self._stop = threading.Event()
        self._superseded = threading.Event()
        self._on_beat: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to beat. Raises ``OSError`` of the store."""
        self._beat()
        self._thread.start()

    def each_beat(self, call: Callable[[], None]) -> None:
        """Have ``call`` run beside every beat, in the beating thread; its ``OSError`` is taken as a missed beat."""
        self._on_beat.append(call)

    @property
    def lost(self) -> bool:
        """True once another run has taken over."""
        return self._superseded.is_set()

    def still_held(self) -> bool:
        """Ask the store now. Raises ``OSError`` of the store."""
        if highest_epoch(self._store) > self.epoch:
            self._superseded.set()
        return not self.lost

    def release(self, exit_code: int, message: str = "", holder: str | None = None) -> None:
        """Stop beating and say how the run ended. Raises ``OSError`` of the store.

        ``holder``: whose ending it is; None: ours.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        if self.lost:
            return
        try:
            whose = {} if holder is None else {"holder": holder}
            self._put({"released": True, "exit": exit_code, "message": message, **whose})
        except OSError:
            self.withdraw()  # on a full disk nothing can be written, but removed
            raise

    def withdraw(self) -> None:
        """Remove every trace of this lease. Raises ``OSError`` of the store."""
        self._store.delete(beat_key(self.epoch))
        self._store.delete(lease_key(self.epoch))

    def _beat_on(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                if not self.still_held():
                    return
                self._beat()
                for call in self._on_beat:
                    call()
            except OSError:
                continue  # a missed beat: at worst another run takes over, which does no harm

    def _beat(self) -> None:
        reach("lease.beat")
        self._count += 1
        self._put({"count": self._count})

    def _put(self, fields: dict[str, object]) -> None:
        data = json.dumps({"token": self.token, **fields}).encode()
        self._store.put_bytes(beat_key(self.epoch), data)


def claim(store: Store, after: int, purpose: Purpose = "run") -> Lease | None:
    """Take the lease that follows epoch ``after``; None where another run was quicker.

    Raises ``OSError`` of the store.
    """
    epoch, token = after + 1, uuid.uuid4().hex
    holder = {"host": socket.gethostname(), "pid": os.getpid(), **_process_identity()}
    record = {"token": token, "purpose": purpose, **holder}
    if not store.put_if_absent(lease_key(epoch), json.dumps(record).encode()):
        return None
    reach("lease.claimed")
    lease = Lease(store, epoch, token)
    if not lease.still_held():
        return None  # we looked so long ago that higher epochs have come meanwhile
    try:
        lease.start()
    except OSError:
        lease.withdraw()
        raise
    return lease


def highest_epoch(store: Store) -> int:
    """The epoch of the newest lease; 0 where there is none. Raises ``OSError`` of the store."""
    return max((_epoch_of(key) for key in store.keys("_state/lease")), default=0)


def lease_key(epoch: int) -> str:
    return f"_state/lease/{epoch:08d}.json"


def beat_key(epoch: int) -> str:
    return f"_state/beat/{epoch:08d}.json"


def _epoch_of(key: str) -> int:
    stem = key.rsplit("/", 1)[-1].removesuffix(".json")
    return int(stem) if stem.isdecimal() else 0


# --- a holder on this machine: seen to be dead at once --------------------------------------------------


def _process_identity() -> dict[str, object]:
    """What tells this process from every other of the same kernel; empty where the system does not say."""
    machine = _machine()
    started = _started_at(os.getpid())
    return {} if machine is None or started is None else {"machine": machine, "started": started}


def _is_ours_to_see(holder: dict[str, Any]) -> bool:
    """True where the holder runs, or ran, on this very kernel and in this pid namespace."""
    return "started" in holder and holder.get("machine") == _machine()


def _has_ended(holder: dict[str, Any]) -> bool:
    return _is_ours_to_see(holder) and _started_at(int(holder["pid"])) != holder["started"]


def _runs_here(holder: dict[str, Any]) -> bool:
    return _is_ours_to_see(holder) and not _has_ended(holder)


@cache
def _machine() -> str | None:
    """One boot of one kernel and one pid namespace; None where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started_at(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None where it does not run (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie does nothing more


def _bytes(store: Store, key: str) -> bytes:
    try:
        return store.read_bytes(key)
    except FileNotFoundError:
        return b""


def _read(store: Store, key: str) -> dict[str, Any]:
    return _json(_bytes(store, key))


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
