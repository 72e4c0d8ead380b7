"""Scheduled runs that overlap or crash: the very line of a rendered crontab, run by a shell as cron does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.jobs.runs import WorldFiles, published
from typer.testing import CliRunner

from panoptile.jobs.cli import app
from panoptile.jobs.lease import highest_epoch
from panoptile.pipeline.store import open_store

WORLD = (9, 640, 700)
TILING = {"tile": 64, "overlap": 32}
SECONDS = 240


@pytest.fixture
def line(files: WorldFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The command of the crontab's line, as cron hands it to the shell."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    words = ["schedule", "render", str(files.image), "-o", str(tmp_path / "out"), "--model", files.model]
    words += ["--labels", str(files.table), "--tile", "64", "--overlap", "32", "--local", "--workers", "1"]
    result = CliRunner().invoke(
        app, [*words, "--cron", "*/5 * * * *", "--as", "crontab"], catch_exceptions=False
    )
    [found] = [row for row in result.stdout.splitlines() if not row.startswith("#")]
    return found.split(" ", 5)[5].replace(r"\%", "%")


@contextlib.contextmanager
def scheduled(line: str) -> Iterator[subprocess.Popen[str]]:
    """A run as cron starts it; whatever is left of it is ended in the end."""
    started = subprocess.Popen(
        f"exec {line}", shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(started.pid).children(recursive=True), started]:
                process.kill()
        started.communicate(timeout=60)


def wait_until_at_work(out: Path) -> None:
    until = time.monotonic() + SECONDS
    while not any(out.glob("_state/commits/**/*.json")):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_of_two_overlapping_runs_one_works(line: str, calm_tree: dict[str, str], tmp_path: Path) -> None:
    """The second says that the first is at work, and ends at once with exit 0; the first ends as if alone."""
    with scheduled(line) as first:
        wait_until_at_work(tmp_path / "out")
        os.kill(first.pid, signal.SIGSTOP)  # however fast this machine is: it is at work now
        with scheduled(line) as second:
            told, errors = second.communicate(timeout=SECONDS)
        assert second.returncode == 0, errors
        assert "another run of this job is at work on it" in told
        assert highest_epoch(open_store(str(tmp_path / "out"))) == 1
        os.kill(first.pid, signal.SIGCONT)
        _, errors = first.communicate(timeout=SECONDS)
        assert first.returncode == 0, errors
    assert published(tmp_path / "out") == calm_tree


def test_the_next_run_takes_over_from_a_crashed_one(
    line: str, calm_tree: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL in the middle: the next night's run takes the lease, does the rest, and the bytes are a calm run's."""
    with scheduled(line) as first:
        wait_until_at_work(tmp_path / "out")
        first.kill()
    assert not (tmp_path / "out" / "_SUCCESS.json").exists(), "it was killed too late to prove anything"
    with scheduled(line) as second:
        _, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == 0, errors
    assert highest_epoch(open_store(str(tmp_path / "out"))) == 2
    assert published(tmp_path / "out") == calm_tree
