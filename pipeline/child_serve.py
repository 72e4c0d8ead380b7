"""What runs inside a child process: a worker, or a caller of background tasks; the other end of ``child_process``.

Talks over one socket that it inherits: work comes in, answers go out. The socket's end means that the driver is gone,
and so does the kernel's word on Linux: the process ends at once, whatever it was doing. What it has committed stays;
what it has not is done again.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import resource
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

_PR_SET_PDEATHSIG = 1


class Server(Protocol):
    """What the child process hosts."""

    def run(self, work: Any) -> Any:
        """Do one piece of work; any exception goes back in words."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One message of a child process."""

    kind: Literal["ready", "broken", "done", "failed"]
    """``broken``: the server could not be made; ``failed``: a piece of work raised."""
    ticket: int
    value: Any
    """The result, or a Failure."""
    peak_rss_bytes: int


def main() -> None:
    """Serve the driver: ``argv[1]`` is the socket's file descriptor, ``argv[2]`` the driver's process id."""
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the driver decides when a unit is dropped
    _die_with_driver(int(sys.argv[2]))
    _serve(Connection(int(sys.argv[1])))


def _die_with_driver(driver: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(1)


def _serve(connection: Connection) -> None:
    lock = threading.Lock()

    def send(kind: Literal["ready", "broken", "done", "failed"], ticket: int, value: object) -> None:
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with lock:
            connection.send(Answer(kind, ticket, value, rss))

    name, server, threads = _started(connection, send)
    while True:
        try:
            ticket, work = connection.recv()
        except (EOFError, OSError):
            os._exit(1)
        threads.submit(_run, server, name, ticket, work, send)


def _started(connection: Connection, send: Any) -> tuple[str, Server, ThreadPoolExecutor]:
    """The server, ready; the process ends where it cannot be made, having said why."""
    from panoptile.pipeline.pool import IN_FLIGHT, describe

    name = "worker"
    try:
        name, make, arguments = pickle.loads(connection.recv_bytes())
        server = make(*arguments)
    except EOFError:
        os._exit(1)
    except Exception as e:  # noqa: BLE001  (anything that a model's loading raises goes to the driver in words)
        send("broken", 0, describe(e, name))
        os._exit(1)
    send("ready", 0, None)
    return name, server, ThreadPoolExecutor(IN_FLIGHT, name)


def _run(server: Server, name: str, ticket: int, work: Any, send: Any) -> None:
    from panoptile.pipeline.pool import describe

    try:
        send("done", ticket, server.run(work))
    except Exception as e:  # noqa: BLE001  (every error of a piece of work is the driver's to judge)
        send("failed", ticket, describe(e, name))
    except BaseException:  # noqa: BLE001
        os._exit(1)  # SystemExit or the like from a replica: the process is of no use any more


if __name__ == "__main__":
    main()
