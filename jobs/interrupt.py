"""SIGINT and SIGTERM: the first asks for an orderly end within a bound, the second ends at once.

Python runs signal handlers on the main thread between two of its own instructions, so a long call into GDAL would
hold them up. A thread therefore hears of signals too, by a wake-up descriptor, and ends the process where the main
thread does not.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

from panoptile.jobs.exits import Exit

TERMINATED_EXIT = 143
END_SECONDS = 35.0
"""The driver drains for at most 30 s; what is not over then is dropped."""

_CODES = {signal.SIGINT: int(Exit.INTERRUPTED), signal.SIGTERM: TERMINATED_EXIT}


class Terminated(BaseException):
    """SIGTERM came."""


class _Interruption:
    def __init__(self) -> None:
        self.asked = threading.Event()
        self.number: int = signal.SIGINT
        self.is_orderly = False
        self.is_installed = False
        self.out: str | None = None


_state = _Interruption()


def install() -> None:
    """Take over both signals. Call it on the main thread, when the command line starts."""
    _take_over()
    if _state.is_installed:
        return
    _state.is_installed = True
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, theirs), name="signals", daemon=True).start()


def reinstall() -> None:
    """Take the signals back from a library that took them over (Ray does, when it starts)."""
    if _state.is_installed and threading.current_thread() is threading.main_thread():
        _take_over()


@contextlib.contextmanager
def orderly() -> Iterator[threading.Event]:
    """Within the block the first signal raises nothing: it sets the event that is given."""
    _state.is_orderly = True
    try:
        yield _state.asked
    finally:
        _state.is_orderly = False


def came() -> bool:
    """Whether this process was asked to stop; it can also end with the exit code of another that was."""
    return _state.asked.is_set()


def stop() -> BaseException:
    """The exception that the signal would have raised outside of :func:`orderly`."""
    return Terminated() if _state.number == signal.SIGTERM else KeyboardInterrupt()


def request() -> None:
    """Ask this process for an orderly end, as SIGTERM would; nothing where the signals are not ours."""
    if _state.is_installed and not _state.asked.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def remember(out: str) -> None:
    """Have :func:`resume_line` name this output folder."""
    _state.out = out


def resume_line() -> str:
    """How to go on."""
    line = "interrupted; what is done is kept. To go on, run the same command again"
    return f"{line}." if _state.out is None else f"{line}, or: panoptile resume {shlex.quote(_state.out)}"


def _take_over() -> None:
    signal.signal(signal.SIGTERM, _on_signal)
    if (
        signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    ):  # a shell's background job is not to hear Ctrl-C
        signal.signal(signal.SIGINT, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _state.asked.is_set():
        return  # the second one: the watching thread ends the process
    _state.number = number
    _state.asked.set()
    if _state.is_orderly:
        _write("stopping: what runs may end within 30 s; a second signal ends at once\n")
        return
    raise stop()


def _watch(ours: socket.socket, theirs: socket.socket) -> None:
    """End the process at the second signal, or when the first has had no effect for too long."""
    code = _next_code(ours)
    ours.settimeout(END_SECONDS)
    with contextlib.suppress(TimeoutError):
        _next_code(ours)
    _write(f"error: {resume_line()}\n")
    os._exit(code)


def _next_code(ours: socket.socket) -> int:
    """Wait for one of our signals; the system writes the number of every signal as a byte."""
    while True:
        for number in ours.recv(1):
            if number in _CODES:
                return _CODES[signal.Signals(number)]


def _write(text: str) -> None:
    os.write(2, text.encode())
