"""Named places where a test may make the process fail: how "nothing lost, nothing torn" is proved.

``PANOPTILE_FAULT=NAME[:N][:ACTION]`` acts when the process reaches NAME for the N-th time (1). ACTION is ``kill``
(SIGKILL, the default), ``abort``, ``hang`` or ``raise`` (an OSError, as of a store). With
``PANOPTILE_FAULT_ONCE=FILE`` only the first process that gets there acts: FILE is made by whoever does. Without the
variable a place costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

VARIABLE = "PANOPTILE_FAULT"
ONCE_VARIABLE = "PANOPTILE_FAULT_ONCE"
HANG_SECONDS = 3600.0

WORKER_POINTS = (
    "reader.before",
    "replica.before",
    "replica.after",
    "encode.before",
    "fragment.before",
    "fragment.after",
    "commit.before",
    "commit.after",
)
"""Reached in a worker, for each item or each unit."""
DRIVER_POINTS = ("driver.before_submit", "driver.after_submit")
FINISH_POINTS = ("stitch.before", "stitch.after", "publish.before_file", "publish.after_file")
"""Reached once for each input, or for each of its files."""

_reached: Counter[str] = Counter()
_lock = threading.Lock()


def reach(name: str) -> None:
    """Say that the named place is reached."""
    fault = os.environ.get(VARIABLE)
    if fault is None:
        return
    wanted, _, rest = fault.partition(":")
    if wanted != name:
        return
    number, _, action = rest.partition(":") if rest[:1].isdigit() else ("1", "", rest)
    with _lock:
        _reached[name] += 1
        acts = _reached[name] == int(number) and _is_first()
    if acts:
        _act(action or "kill", name)


def _act(action: str, name: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "abort":
        os.abort()
    elif action == "hang":
        time.sleep(HANG_SECONDS)
    elif action == "raise":
        raise OSError(f"{VARIABLE} asked for an error at {name}")
    else:
        raise ValueError(f"{VARIABLE}: the action is kill, abort, hang or raise, got {action!r}.")


def _is_first() -> bool:
    path = os.environ.get(ONCE_VARIABLE)
    if path is None:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
