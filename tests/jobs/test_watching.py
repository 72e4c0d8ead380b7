"""Clusters that fall silent, and jobs that are watched meanwhile."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from panoptile.jobs import cluster_client, watching
from panoptile.jobs.cancellation import SUBMISSION
from panoptile.jobs.cluster import find_job
from panoptile.jobs.cluster_client import ClusterClient
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.lease import claim
from panoptile.jobs.watching import watch_job
from panoptile.pipeline.store import open_store

SILENT = JobError(Exit.UNREACHABLE, "The cluster does not answer.")


# --- requests ------------------------------------------------------------------------------------------


@pytest.fixture
def dashboard() -> Iterator[Any]:
    """An HTTP server that answers as ``say`` does: (status, text)."""
    state = SimpleNamespace(say=lambda: (200, '{"ray_version": "2.60.0"}'), url="")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = state.say()
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # of a client that has given up
                self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url, state.server = f"http://127.0.0.1:{server.server_port}", server
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def slow_answer() -> tuple[int, str]:
    time.sleep(2)
    return 200, "{}"


def unanswered(client: ClusterClient) -> str:
    with pytest.raises(JobError) as e:
        client.get_job_info("panoptile-0")
    assert e.value.code is Exit.UNREACHABLE
    return str(e.value)


def test_a_cluster_that_fails_is_not_our_fault(dashboard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the head, silence and a lost connection: exit 6 with a sentence; an unknown job is none of these."""
    client = ClusterClient(dashboard.url)
    dashboard.say = lambda: (404, "Job panoptile-0 does not exist.")
    assert find_job(client, "panoptile-0") is None
    dashboard.say = lambda: (500, "Traceback\n  File x\nValueError: no agent is alive.\n.")
    assert "ValueError: no agent is alive." in unanswered(client)
    monkeypatch.setattr(cluster_client, "REQUEST_SECONDS", 0.2)
    dashboard.say = slow_answer
    assert "silent" in unanswered(client)
    dashboard.server.shutdown()
    dashboard.server.server_close()
    text = unanswered(client)
    assert "Connection refused" in text
    assert dashboard.url in text


# --- watching ------------------------------------------------------------------------------------------


class Cluster:
    """Gives the answers one by one, then the last for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def get_job_info(self, job_id: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def info(status: str, code: int | None = None) -> Any:
    ended = status in ("SUCCEEDED", "FAILED")
    return SimpleNamespace(
        status=SimpleNamespace(value=status, is_terminal=lambda: ended), driver_exit_code=code, message=""
    )


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(watching, "WATCH_SECONDS", 0.01)
    record = {"cluster": "http://ray-head:8265", "job_id": "panoptile-0", "after_epoch": 0}
    open_store(tmp_path / "out").put_bytes(SUBMISSION, json.dumps(record).encode())

    def watch(*answers: Any) -> int:
        client: Any = Cluster(*answers)
        return watch_job(client, "panoptile-0", str(tmp_path / "out"), Console(quiet=True))

    return watch


def test_a_head_that_comes_back_is_watched_on(watched: Callable[..., int]) -> None:
    """Requests that fail for a while do not end the watching; the exit code is the job's."""
    assert watched(info("RUNNING"), SILENT, SILENT, info("RUNNING"), info("SUCCEEDED")) == 0


def test_the_end_is_read_from_out(watched: Callable[..., int], tmp_path: Path) -> None:
    """The cluster goes with its last job: what OUT says of the end counts."""
    lease = claim(open_store(tmp_path / "out"), 0)
    assert lease is not None
    lease.release(4, "the disk is full")
    assert watched(info("RUNNING"), SILENT) == 4


def test_a_lost_cluster_ends_the_watching(
    watched: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, and no end in OUT: exit 6 after the deadline."""
    monkeypatch.setattr(watching, "SILENCE_SECONDS", 0.05)
    with pytest.raises(JobError, match="does not answer") as e:
        watched(info("RUNNING"), SILENT)
    assert e.value.code is Exit.UNREACHABLE
