"""``status``, ``logs`` and ``cancel``: from OUT alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.runs import WorldFiles, run
from typer.testing import CliRunner

from panoptile.jobs.cancellation import is_cancelled, request_cancel
from panoptile.jobs.cli import app
from panoptile.jobs.event_log import EventLog, event_text, read_events
from panoptile.jobs.exits import JobError
from panoptile.jobs.job_status import exit_of, look_at
from panoptile.pipeline.store import open_store

WORLD = (4, 200, 260)


@pytest.fixture(scope="module")
def out(files: WorldFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status") / "out"
    run(files, folder, tile=64, overlap=16)
    return folder


def invoked(*args: str) -> Any:
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_finished_job(out: Path) -> None:
    """State, units and exit code; the cluster it ran on is not needed."""
    status = look_at(str(out))
    assert (status.state, status.exit, exit_of(status)) == ("done", 0, 0)
    assert status.done == status.units > 1
    assert status.failed == 0
    fields = json.loads(invoked("status", str(out), "--json").stdout)
    assert fields["state"] == "done"
    assert fields["units"] == status.units
    assert "done" in invoked("status", str(out), "--watch").stdout


def test_every_unit_is_in_the_log(out: Path) -> None:
    """Start, each unit with its worker, and the end with its exit code; one unit's events can be asked for."""
    events = [json.loads(line) for line in invoked("logs", str(out), "--json").stdout.splitlines()]
    assert events[0]["event"] == "start"
    assert (events[-1]["event"], events[-1]["exit"]) == ("end", 0)
    units = [e["unit"] for e in events if e["event"] == "unit"]
    assert len(units) == len(set(units)) == look_at(str(out)).units
    [line] = invoked("logs", str(out), "--unit", units[0]).stdout.splitlines()
    assert units[0] in line
    nobody = invoked("logs", str(out), "--worker", "nobody")
    assert nobody.stdout == ""
    assert "no event of --worker nobody" in nobody.stderr


def test_a_folder_without_a_job(tmp_path: Path) -> None:
    """Exit 2 for each of the commands, and for a job id without a cluster."""
    for command in ("status", "logs", "cancel"):
        with pytest.raises(JobError, match="no panoptile job") as e:
            invoked(command, str(tmp_path))
        assert int(e.value.code) == 2
    with pytest.raises(JobError, match="--cluster"):
        invoked("status", "panoptile-0123456789ab")


def test_secrets_do_not_reach_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment calls secret is not written."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI-canary")
    store = open_store(tmp_path)
    log = EventLog(store, "r1")
    log.add("retry", message="403 for key wJalrXUtnFEMI-canary")
    log.flush()
    [event] = read_events(store)
    assert "canary" not in json.dumps(event)
    assert event_text(event).count("retry") == 1


def test_pieces_of_a_log_are_read_once(tmp_path: Path) -> None:
    """Following sees what is new, in order; a line that is cut short is left out."""
    store, seen = open_store(tmp_path), set[str]()
    log = EventLog(store, "r1")
    log.add("unit", unit="a")
    log.flush()
    log.flush()  # nothing new: no empty piece
    assert [e["unit"] for e in read_events(store, seen)] == ["a"]
    log.add("unit", unit="b")
    log.flush()
    store.put_bytes("_state/events/r1/000009.jsonl", b'{"event": "unit", "un')
    assert [e["unit"] for e in read_events(store, seen)] == ["b"]
    assert list(read_events(store, seen)) == []


def test_a_finished_job_is_not_cancelled(out: Path) -> None:
    """Nothing is asked of a later run."""
    assert "nothing was stopped" in invoked("cancel", str(out)).stdout
    request_cancel(str(out))
    store = open_store(out)
    assert is_cancelled(store, 1)
    assert not is_cancelled(store, 2)


def test_cancel_stops_a_live_run_which_can_go_on(files: WorldFiles, tmp_path: Path) -> None:
    """From another process, through OUT alone: the run ends with 143, status says so, and the next run finishes."""
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "panoptile", "segment", str(files.image), "-o", str(out), "--model", files.model,
        "--labels", str(files.table), "--tile", "64", "--overlap", "16", "--local", "--workers", "1",
    ]  # fmt: skip
    slow = {"PANOPTILE_FAULT": "replica.before:hang", "PANOPTILE_LEASE_SECONDS": "6"}
    process = subprocess.Popen(command, env={**os.environ, **slow}, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (out / "_state" / "beat").is_dir() or not any((out / "_state" / "commits").glob("*")):
            if time.monotonic() > deadline or process.poll() is not None:
                break
            time.sleep(0.2)
            if (out / "_state" / "beat").is_dir():
                break
        assert look_at(str(out)).state == "running"
        request_cancel(str(out))
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
    assert look_at(str(out)).state == "interrupted"
    run(files, out, tile=64, overlap=16)
    assert look_at(str(out)).state == "done"


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_bucket_that_is_not_there(command: str, s3_root: str) -> None:
    """One sentence that names the object, and exit 6, as from every other command."""
    with pytest.raises(JobError, match=r"job\.json: there is no such bucket") as refused:
        invoked(command, "s3://panoptile-absent-bucket/out")
    assert refused.value.code == 6
