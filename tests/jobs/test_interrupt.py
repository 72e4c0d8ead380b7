"""Ctrl-C and SIGTERM: what is done is kept, and the same command finishes the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.jobs.runs import WorldFiles, published, run, write_world
from tests.pipeline.worlds import TABLE, World

from panoptile.jobs.lease import Observer
from panoptile.pipeline.store import open_store

PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from panoptile.jobs.cli import main; main()"
)
"""A test run in the background of a shell has Ctrl-C switched off, and its children inherit that: switch it on."""


TILING = {"tile": 64, "overlap": 32}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    """Squares in place of a random world: cheap to draw, and many units."""
    size = 800
    rows, cols = np.mgrid[:size, :size]
    labels = (rows // 50 * (size // 50) + cols // 50 + 1).astype(np.int64)
    world = World(labels, np.ones_like(labels), np.ones(labels.shape, np.bool_), TABLE)
    return write_world(world, tmp_path_factory.mktemp("world"))


def start(files: WorldFiles, out: Path, **environment: str) -> subprocess.Popen[str]:
    """The command, once it has committed its first unit."""
    command = [sys.executable, "-c", PROGRAM, "segment", files.image, "-o", out, "--model", files.model]
    command += ["--labels", files.table, "--tile", "64", "--overlap", "32", "--local", "--workers", "1"]
    process = subprocess.Popen(
        list(map(str, command)),
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    commits = out / "_state" / "commits"
    deadline = time.monotonic() + 120
    while not (commits.is_dir() and any(commits.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_finished_by_the_same_command(
    files: WorldFiles, calm_tree: dict[str, str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The exit code is the documented one, the message says how to go on, and the bytes are a calm run's."""
    out = tmp_path / "out"
    process = start(files, out)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == code, message
    assert "run the same command again" in message
    assert f"panoptile resume {out}" in message
    assert not (out / "_SUCCESS.json").exists()
    ending = Observer(open_store(out)).look().ending
    assert ending is not None
    assert ending.exit == code
    summary = run(files, out, tile=64, overlap=32)
    assert 0 < summary.metrics["units_run"] < summary.metrics["units"]
    assert published(out) == calm_tree


def test_a_second_signal_ends_a_run_that_hangs_at_once(files: WorldFiles, tmp_path: Path) -> None:
    """A unit hangs: the first signal waits for it, the second does not, and the message is the same."""
    out = tmp_path / "out"
    process = start(files, out, PANOPTILE_FAULT="replica.before:60:hang")
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, message = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 143, message
    assert "stopping" in message
    assert f"panoptile resume {out}" in message
