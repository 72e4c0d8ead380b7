"""A Ray cluster of several nodes on this machine: each with its own processes, ports and fake GPUs.

``python -m tests.jobs.cluster_nodes FOLDER`` starts one that asks for a token, prints its address, and keeps it until
it is interrupted. Nothing outside FOLDER is written, and only processes that were started here are ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_SECONDS = 300.0
STARTED = "Ray runtime started"
MARK = "PANOPTILE_TEST_CLUSTER"
"""Environment variable that every process of a cluster inherits."""


@dataclass
class Nodes:
    """A head and its worker nodes."""

    url: str
    """Of the dashboard, for --cluster."""
    environment: dict[str, str]
    """In which a user's command finds neither another Ray nor this user's home."""
    token_file: Path | None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """``ray start --block`` of each node, the head's first."""

    def kill_node(self, node: int) -> None:
        """SIGKILL of a node's raylet and of all that it started, as when a machine loses its power."""
        raylet = self._raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def is_at_work(self, node: int) -> bool:
        """Whether a replica on the node has a unit: Ray's workers carry what they run in their titles."""
        for process in self._raylet(node).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "_WorkerActor.run" in " ".join(process.cmdline()):
                    return True
        return False

    def _raylet(self, node: int) -> psutil.Process:
        below = psutil.Process(self.processes[node].pid).children(recursive=True)
        [raylet] = [p for p in below if p.name() == "raylet"]
        return raylet

    def close(self) -> None:
        """End every process of every node: what they started, and orphans, which carry the cluster's mark.

        Ray's workers overwrite their environment with their titles; they end by themselves with their raylet.
        """
        for _ in range(10):
            living = [*self._descendants(), *self._marked()]
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for started in self.processes:
                started.poll()  # or it stays as a zombie
            if not living:
                return
            psutil.wait_procs(living, timeout=5)
        raise TimeoutError(f"Processes of the cluster at {self.url} do not end.")

    def _descendants(self) -> Iterator[psutil.Process]:
        for started in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                yield from psutil.Process(started.pid).children(recursive=True)

    def _marked(self) -> Iterator[psutil.Process]:
        mark = self.environment[MARK]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                    yield process


def free_port() -> int:
    """A TCP port that nobody listens on now, below those that the system gives away for outgoing connections."""
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise TimeoutError("No free port was found.")


@contextlib.contextmanager
def ray_nodes(folder: Path, *, gpus: tuple[int, ...] = (0, 1, 1), token: bool = True) -> Iterator[Nodes]:
    """A cluster with one node per entry of ``gpus``, the head first. Raises ``TimeoutError``."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="ptc-", dir="/tmp"))  # sockets' paths have at most 107 bytes
    nodes = Nodes(f"http://127.0.0.1:{free_port()}", _environment(folder, token), None)
    if token:
        nodes.token_file = folder / "token"
    gcs = free_port()
    try:
        for number, count in enumerate(gpus):  # one by one: Ray gives a node 30 s to start
            own = _head_options(nodes.url, gcs) if number == 0 else [f"--address=127.0.0.1:{gcs}"]
            log = folder / f"node-{number}.log"
            _start(nodes, log, count, [*own, f"--temp-dir={scratch / str(number)}"])
            _wait(nodes, log)
        _wait_for_dashboard(nodes.url)
        yield nodes
    finally:
        nodes.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _environment(folder: Path, token: bool) -> dict[str, str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    ours = {
        "HOME": str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token" if token else "disabled",
        MARK: secrets.token_hex(8),
    }
    if token:
        (folder / "token").write_text(secrets.token_hex(32))
        ours["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
    return ours


def _head_options(url: str, gcs: int) -> list[str]:
    return [
        "--head",
        f"--port={gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={url.rsplit(':', 1)[1]}",
        f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats",
    ]


def _start(nodes: Nodes, log: Path, gpus: int, options: list[str]) -> None:
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--block",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        f"--num-gpus={gpus}",
        f"--object-store-memory={100 * 2**20}",
        f"--dashboard-agent-listen-port={free_port()}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        *options,
    ]
    with log.open("wb") as out:
        nodes.processes.append(
            subprocess.Popen(
                command, env=nodes.environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        )


def _wait(nodes: Nodes, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while STARTED not in log.read_text(errors="replace"):
        if nodes.processes[-1].poll() is not None or time.monotonic() > until:
            raise TimeoutError(f"A node did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _wait_for_dashboard(url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=10):
                return
        except urllib.error.HTTPError as e:
            if e.code in (401, 403):
                return  # it asks for a token
            time.sleep(0.5)
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"No dashboard answered at {url}.")


def main(folder: Path) -> None:
    """Keep a cluster until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ray_nodes(folder) as nodes, contextlib.suppress(KeyboardInterrupt):
        print(nodes.url, flush=True)
        while all(p.poll() is None for p in nodes.processes[:1]):
            time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
