"""A child process that serves this one over a socket, can be killed, and leaves its last words."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from panoptile.pipeline.child_serve import Answer
from panoptile.pipeline.worker import THREAD_VARIABLES

STDERR_BYTES = 16_000
"""How much of a dead process's last words goes into a failure's record."""
STDERR_KEPT = 1 << 20
"""Bytes of messages of a living process that are kept."""

KILL_SECONDS = 10.0
"""How long a killed process is waited for."""

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from panoptile.pipeline.child_serve import main; main()"
)


class ChildProcess:
    """A process, its socket and its messages; launched again after :meth:`kill`, it is a new one."""

    def __init__(self, name: str, folder: Path, gpu: str | None) -> None:
        self.name = name
        self.connection: Connection | None = None
        self.gpu = gpu
        """CUDA_VISIBLE_DEVICES; None: as it is here."""
        self._errors = folder / f"{name}.stderr"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def launch(self, make: Callable[..., object], arguments: tuple[object, ...], threads: int) -> None:
        """Start the process; it makes its server from the picklable call, and says when it is ready."""
        env = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
        env["OMP_WAIT_POLICY"] = "PASSIVE"
        if self.gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.gpu
        ours, theirs = socket.socketpair()
        argv = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
        with theirs, self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *argv],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env=env,
            )
        self.connection = Connection(ours.detach())
        with contextlib.suppress(BrokenPipeError):  # it died at once: the socket's end will say so
            self.connection.send_bytes(pickle.dumps((self.name, make, arguments)))

    def send(self, message: object) -> bool:
        """Give it work; False where it is gone."""
        if self.connection is None:
            return False
        try:
            self.connection.send(message)
        except OSError:
            return False
        return True

    def receive(self) -> Answer | None:
        """Its next message, which is known to be there; None where it died."""
        if self.connection is None:
            return None
        try:
            answer = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return None
        self._trim()
        return answer if isinstance(answer, Answer) else None

    def kill(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # one that the kernel holds, in a dead mount say
                self._process.wait(KILL_SECONDS)
        if self.connection is not None:
            self.connection.close()
        self._process = self.connection = None

    def last_words(self) -> str:
        """The end of what it wrote on stderr."""
        with self._errors.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - STDERR_BYTES))
            return f.read().decode(errors="replace")

    def exit_words(self) -> str:
        """How it ended."""
        if self._process is None:
            return "was killed"
        try:
            code: Any = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        if code >= 0:
            return f"ended with exit code {code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"

    def _trim(self) -> None:
        """Forget old messages of a process that writes many."""
        if self._errors.stat().st_size > STDERR_KEPT:
            os.truncate(self._errors, 0)
