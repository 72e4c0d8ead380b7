"""A time limit for work on the main thread that may hang in a library's code, where no exception reaches it.

Nothing can be saved then but the word of it: the process ends. What is done lies in the store.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator

from panoptile.jobs.exits import Exit, invalid

RECORD_SECONDS = 30.0
"""How long saying so may take: the store may hang too."""


@contextlib.contextmanager
def time_limit(seconds: float, on_overrun: Callable[[], None]) -> Iterator[None]:
    """End the process with exit code 4 where the block takes longer; ``on_overrun`` tells of it, in a thread."""
    timer = threading.Timer(seconds, _end_process, [on_overrun])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def seconds_from(variable: str, default: float, most: float = math.inf) -> float:
    """Seconds that the environment may give. Raises :class:`JobError` (exit 2) for what is no such number."""
    text = os.environ.get(variable, "")
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= most or math.isinf(seconds):
        limit = "" if math.isinf(most) else f" and at most {most:,.0f}"
        raise invalid(f"{variable} must be seconds above 0{limit}, got {text!r}.")
    return seconds


def _end_process(on_overrun: Callable[[], None]) -> None:
    telling = threading.Thread(target=on_overrun, name="overrun", daemon=True)
    telling.start()
    telling.join(RECORD_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(Exit.FAILED))
