"""Named places where a test may kill the process: how "nothing lost, nothing torn" is proved.

``PANOPTILE_FAULT=NAME[:N]`` kills the process with SIGKILL when it reaches NAME for the N-th time (1). With
``PANOPTILE_FAULT_ONCE=FILE`` only the first process that gets there dies: FILE is made by whoever does.
Without the variable a place costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

VARIABLE = "PANOPTILE_FAULT"
ONCE_VARIABLE = "PANOPTILE_FAULT_ONCE"

_reached: Counter[str] = Counter()
_lock = threading.Lock()


def reach(name: str) -> None:
    """Say that the named place is reached."""
    fault = os.environ.get(VARIABLE)
    if fault is None:
        return
    wanted, _, number = fault.partition(":")
    if wanted != name:
        return
    with _lock:
        _reached[name] += 1
        if _reached[name] == int(number or 1) and _is_first():
            os.kill(os.getpid(), signal.SIGKILL)


def _is_first() -> bool:
    path = os.environ.get(ONCE_VARIABLE)
    if path is None:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
