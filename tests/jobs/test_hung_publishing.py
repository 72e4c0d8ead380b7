"""A publication that hangs ends in time: tried again beside the run, and with exit 4 at its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.jobs.runs import WorldFiles, published, run
from tests.jobs.test_bad_input import panoptile

from panoptile.jobs.prepare import prepare
from panoptile.jobs.publishing import PUBLISH_SECONDS, publish_seconds
from panoptile.jobs.spec import JobSpec

WORLD = (21, 100, 110)
TILING = {"tile": 80, "overlap": 24}
HANGS = {"PANOPTILE_FAULT": "publish.input:hang", "PANOPTILE_LEASE_SECONDS": "6"}


def command(files: WorldFiles, out: Path, **environment: str) -> tuple[int, str, float]:
    """(exit code, messages, seconds) of the command in a process of its own."""
    argv = [
        sys.executable,
        "-m",
        "panoptile",
        "segment",
        str(files.image),
        "-o",
        str(out),
        "--model",
        files.model,
    ]
    argv += ["--labels", str(files.table), "--tile", "80", "--overlap", "24", "--local", "--workers", "1"]
    began = time.monotonic()
    done = subprocess.run(
        argv, check=False, env=os.environ | HANGS | environment, capture_output=True, text=True, timeout=200
    )
    return done.returncode, done.stderr, time.monotonic() - began


def test_at_the_end_of_a_run_it_ends_with_exit_4_and_can_be_resumed(
    files: WorldFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One input is published by the driver itself: where that hangs the process ends, having said so here and in
    OUT; nothing is published, and the same command goes on there."""
    out = tmp_path / "out"
    code, told, seconds = command(files, out, PANOPTILE_PUBLISH_SECONDS="2")
    assert code == 4, told
    assert "was not done within 2 s" in told
    assert "run the same command to go on" in told
    assert "Traceback" not in told
    assert seconds < 60
    assert not (out / "_SUCCESS.json").exists()
    assert panoptile("status", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["exit"]) == ("failed", 4)
    assert "was not done within" in found["message"]
    summary = run(files, out, **TILING)
    assert summary.metrics["units_run"] == 0
    run(files, tmp_path / "calm", **TILING)
    assert published(out) == published(tmp_path / "calm")


def test_beside_the_run_it_is_tried_again(files: WorldFiles, tmp_path: Path) -> None:
    """Of two inputs the first hangs once: its process is killed, the next try succeeds, and the run ends 0."""
    folder, out, once = tmp_path / "scenes", tmp_path / "out", tmp_path / "once"
    folder.mkdir()
    for name in "ab":
        shutil.copy2(files.image, folder / f"{name}.tif")
    pair = WorldFiles(folder / "*.tif", files.labels, files.classes, files.table)
    code, told, _ = command(pair, out, PANOPTILE_PUBLISH_SECONDS="12", PANOPTILE_FAULT_ONCE=str(once))
    assert code == 0, told
    assert once.exists()
    run(pair, tmp_path / "calm", **TILING)
    assert published(out) == published(tmp_path / "calm")


def test_the_limit_grows_with_the_input(
    files: WorldFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an hour for any input, and 10 s per megapixel; the environment can set another."""
    spec = JobSpec((str(files.image),), str(tmp_path / "out"), model=files.model, labels=str(files.table))
    (plan,) = prepare(spec).plans
    assert publish_seconds(plan) == pytest.approx(PUBLISH_SECONDS + 100 * 110 / 1e5)
    monkeypatch.setenv("PANOPTILE_PUBLISH_SECONDS", "7")
    assert publish_seconds(plan) == 7


@pytest.mark.parametrize("variable", ["PANOPTILE_PUBLISH_SECONDS", "PANOPTILE_LEASE_SECONDS"])
@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(
    files: WorldFiles, tmp_path: Path, variable: str, text: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Exit 2 in one sentence, before anything is written."""
    monkeypatch.setenv(variable, text)
    argv = ["--model", files.model, "--labels", files.table, "--local", "--tile", 80, "--overlap", 24]
    assert panoptile("segment", files.image, "-o", tmp_path / "out", *argv) == 2
    assert f"{variable} must be seconds above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
