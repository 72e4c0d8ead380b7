"""Ctrl-C and SIGTERM: what is done is kept, and the same command finishes the job."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.jobs.runs import published, run, write_world
from tests.pipeline.worlds import TABLE, World

PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from panoptile.jobs.cli import main; main()"
)
"""A test run in the background of a shell has Ctrl-C switched off, and its children inherit that: switch it on."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_finished_by_the_same_command(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The exit code is the documented one, the message says how to go on, and the bytes are a calm run's."""
    size = 1200
    rows, cols = np.mgrid[:size, :size]
    labels = (rows // 50 * (size // 50) + cols // 50 + 1).astype(np.int64)
    world = World(labels, np.ones_like(labels), np.ones(labels.shape, np.bool_), TABLE)
    files = write_world(world, tmp_path / "world")
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, "segment", files.image, "-o", out, "--model", files.model]
    command += ["--labels", files.table, "--tile", "64", "--overlap", "32", "--local", "--workers", "1"]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    commits = out / "_state" / "commits"
    deadline = time.monotonic() + 60
    while not (commits.is_dir() and any(commits.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, message = process.communicate(timeout=30)
    assert process.returncode == code, message
    assert "run the same command again" in message
    assert not (out / "_SUCCESS.json").exists()
    summary = run(files, out, tile=64, overlap=32)
    assert 0 < summary.metrics["units_run"] < summary.metrics["units"]  # type: ignore[operator]
    run(files, tmp_path / "calm", tile=64, overlap=32)
    assert published(out) == published(tmp_path / "calm")
