"""A worker in a process of its own, for runs without Ray; the other end of ``process_pool``.

Talks over one socket that it inherits: attempts come in, outcomes go out. The socket's end means that the driver is
gone, and so does the kernel's word on Linux: the process ends at once, whatever it was doing. What it has committed
stays; what it has not is done again.
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
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panoptile.pipeline.attempt import Attempt
    from panoptile.pipeline.worker import Worker

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the driver at the other end of the file descriptor that ``argv[1]`` names."""
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the driver decides when a unit is dropped
    _die_with_driver(int(sys.argv[2]))
    connection = Connection(int(sys.argv[1]))
    _serve(connection)


def _die_with_driver(driver: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(1)


def _serve(connection: Connection) -> None:
    lock = threading.Lock()

    def send(kind: str, ticket: int, value: object) -> None:
        with lock:
            connection.send((kind, ticket, value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))

    worker, threads = _started(connection, send)
    while True:
        try:
            ticket, attempt = connection.recv()
        except (EOFError, OSError):
            os._exit(1)
        threads.submit(_run, worker, ticket, attempt, send)


def _started(connection: Connection, send: Any) -> tuple[Worker, ThreadPoolExecutor]:
    """The worker, ready; the process ends where it cannot be made, having said why."""
    from panoptile.pipeline.pool import IN_FLIGHT, describe

    name = "worker"
    try:
        spec, name = pickle.loads(connection.recv_bytes())
        from panoptile.pipeline.worker import Worker

        worker = Worker(spec, name)
    except EOFError:
        os._exit(1)
    except Exception as e:  # noqa: BLE001  (anything that a model's loading raises goes to the driver in words)
        send("broken", 0, describe(e, name))
        os._exit(1)
    send("ready", 0, None)
    return worker, ThreadPoolExecutor(IN_FLIGHT, name)


def _run(worker: Worker, ticket: int, attempt: Attempt, send: Any) -> None:
    from panoptile.pipeline.pool import describe

    try:
        send("done", ticket, worker.run(attempt))
    except Exception as e:  # noqa: BLE001  (every error of a unit is the driver's to judge)
        send("failed", ticket, describe(e, worker.name))
    except BaseException:  # noqa: BLE001
        os._exit(1)  # SystemExit or the like from a replica: the process is of no use any more


if __name__ == "__main__":
    main()
