"""Runs that break at bad moments, and folders that were damaged: the next run is right, or says what is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.jobs.runs import WorldFiles, arrays, published, run, write_world
from tests.jobs.test_bad_input import panoptile
from tests.pipeline.worlds import make_world

from panoptile.jobs import publishing, segment
from panoptile.jobs.console import Console
from panoptile.jobs.deadletter import dead_letter
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.open_units_run import OpenUnitsRun
from panoptile.jobs.prepare import prepare
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.worker import Worker

WORLD = (21, 200, 210)
TILING = {"tile": 80, "overlap": 24}


def crash(*args: object, **kwargs: object) -> None:
    raise RuntimeError("killed while publishing")


def test_a_changed_input_is_never_answered_with_the_old_result(files: WorldFiles, tmp_path: Path) -> None:
    """An input that changes, then a crash while publishing: the next run publishes the new input."""
    image = tmp_path / "in.tif"
    other = write_world(make_world(22, 200, 210, wedge=False), tmp_path / "other")
    shutil.copy(other.image, image)
    moving = WorldFiles(image, files.labels, files.classes, files.table)
    run(moving, tmp_path / "out", **TILING)
    shutil.copy(files.image, image)
    with mock.patch.object(publishing, "finish_input", crash), pytest.raises(RuntimeError, match="killed"):
        run(moving, tmp_path / "out", **TILING)
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    summary = run(moving, tmp_path / "out", **TILING)
    assert not summary.already_done
    wedge = ~make_world(21, 200, 210).valid
    np.testing.assert_array_equal(arrays(tmp_path / "out")[0] == NODATA_ID, wedge)


def test_an_input_replaced_while_it_is_read_is_not_published(files: WorldFiles, tmp_path: Path) -> None:
    """A mixture of two rasters is never published: exit 4, and the next run works on what is there now."""
    image = tmp_path / "in.tif"
    shutil.copy(files.image, image)
    moving = WorldFiles(image, files.labels, files.classes, files.table)
    real = OpenUnitsRun.execute

    def replaced(*args: Any) -> object:
        done = real(*args)
        shutil.copy(files.image, image)
        os.utime(image, ns=(1, 1))
        return done

    with (
        mock.patch.object(OpenUnitsRun, "execute", replaced),
        pytest.raises(JobError, match="was changed") as e,
    ):
        run(moving, tmp_path / "out", **TILING)
    assert e.value.code is Exit.FAILED
    assert not (tmp_path / "out" / "rasters").exists()
    assert run(moving, tmp_path / "out", **TILING).exit is Exit.DONE


def test_healed_failures_are_published_and_the_dead_letter_goes(
    files: WorldFiles, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that failed for good is nodata and exit 3; a later run heals it, even past a crash."""
    out, real = tmp_path / "out", Worker.run

    def unlucky(worker: Worker, attempt: Attempt) -> UnitReport:
        if attempt.unit.first == 0:
            raise UnitError("infer", "no luck", 0)
        return real(worker, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", unlucky)
        summary = run(files, out, retries=0, **TILING)
    assert summary.exit is Exit.QUARANTINED
    assert (out / "deadletter.parquet").exists()
    assert json.loads((out / "_SUCCESS.json").read_text())["exit"] == 3
    lost = (arrays(out)[0] == NODATA_ID) & (arrays(calm)[0] != NODATA_ID)
    assert lost.any()
    with mock.patch.object(publishing, "finish_input", crash), pytest.raises(RuntimeError, match="killed"):
        run(files, out, **TILING)
    assert run(files, out, **TILING).exit is Exit.DONE
    assert published(out) == published(calm)
    assert not (out / "deadletter.parquet").exists()


def test_more_failures_than_allowed_end_with_exit_4(
    files: WorldFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above --max-failures nothing is published."""

    def never(worker: Worker, attempt: Attempt) -> UnitReport:
        raise UnitError("read", "the disk is gone", 0)

    monkeypatch.setattr(Worker, "run", never)
    with pytest.raises(JobError, match="the disk is gone") as e:
        run(files, tmp_path / "out", retries=0, max_failures="1", **TILING)
    assert e.value.code is Exit.FAILED
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    assert not (tmp_path / "out" / "rasters").exists()


def test_of_two_jobs_that_start_together_the_second_is_refused(files: WorldFiles, tmp_path: Path) -> None:
    """Both saw an empty folder; the one that comes second ends with exit 5 and mixes nothing."""
    specs = [
        JobSpec((str(files.image),), str(tmp_path / "out"), model=files.model, local=True, tile=80, overlap=o)
        for o in (16, 24)
    ]
    first, second = (prepare(s) for s in specs)
    segment.run_job(first, Console(quiet=True))
    before = published(tmp_path / "out")
    with pytest.raises(JobError, match="overlap differs") as e:
        segment.run_job(second, Console(quiet=True))
    assert e.value.code is Exit.OTHER_JOB
    assert published(tmp_path / "out") == before


def test_a_folder_that_was_only_begun_is_used(files: WorldFiles, calm: Path, tmp_path: Path) -> None:
    """A kill before job.json leaves a staging folder; the same command then works."""
    (tmp_path / "out" / "_state" / "tmp").mkdir(parents=True)
    run(files, tmp_path / "out", **TILING)
    assert published(tmp_path / "out") == published(calm)


def _one(pattern: str) -> Callable[[Path], Path]:
    return lambda out: sorted(out.glob(pattern))[1]


@pytest.mark.parametrize("pattern", ["_state/data/*.frag", "_state/commits/*.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]"])
def test_damaged_state_is_redone(
    files: WorldFiles, calm: Path, finished: Path, pattern: str, content: bytes | None
) -> None:
    """A fragment or commit that is missing, empty or not what it should be: the unit is done again."""
    victim = _one(pattern)(finished)
    victim.unlink()
    if content is not None:
        victim.write_bytes(content)
    (finished / "_SUCCESS.json").unlink()
    summary = run(files, finished, **TILING)
    assert summary.metrics["units_run"] == 1
    assert published(finished) == published(calm)


def test_a_flipped_byte_in_a_fragment_is_found_and_then_redone(
    files: WorldFiles, calm: Path, finished: Path
) -> None:
    """Equal size, other content: publishing stops with exit 4, and the same command repairs it."""
    victim = _one("_state/data/*.frag")(finished)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(bytes(data))
    (finished / "_SUCCESS.json").unlink()
    shutil.rmtree(finished / "_state" / "results")  # else what is published already is right, and stays
    with pytest.raises(JobError, match="not what was committed") as e:
        run(files, finished, **TILING)
    assert e.value.code is Exit.FAILED
    run(files, finished, **TILING)
    assert published(finished) == published(calm)


@pytest.mark.parametrize("name", ["_SUCCESS.json", "metrics.json", "manifest.parquet"])
def test_damaged_results_are_published_again(
    files: WorldFiles, calm: Path, finished: Path, name: str
) -> None:
    """A result file that cannot be read does not count as a finished job."""
    (finished / name).write_bytes(b"[]")
    assert not run(files, finished, **TILING).already_done
    assert published(finished) == published(calm)


def test_a_full_disk_ends_with_exit_4_and_then_goes_on(
    files: WorldFiles, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space while units run: a clear sentence, nothing published, and the same bytes once there is space."""
    real, calls = LocalStore.put_bytes, [0]

    def full(store: LocalStore, key: str, data: bytes) -> None:
        calls[0] += 1
        if calls[0] > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(store, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put_bytes", full)
        with pytest.raises(JobError, match="No space left on device") as e:
            run(files, tmp_path / "out", **TILING)
    assert e.value.code is Exit.FAILED
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    run(files, tmp_path / "out", **TILING)
    assert published(tmp_path / "out") == published(calm)


@pytest.mark.parametrize(
    "name", ["classes.json", "_state/generations/1.json", "rasters/*/*.classes.tif", "segments/*.parquet"]
)
@pytest.mark.parametrize("content", [None, b"", b"[]"])
def test_a_finished_run_is_judged_by_all_that_it_promises(
    files: WorldFiles, calm: Path, finished: Path, name: str, content: bytes | None
) -> None:
    """What verify names, and is deleted or cut, the same command makes again: without running a unit."""
    victim = min(finished.glob(name))
    victim.unlink()
    if content is not None:
        victim.write_bytes(content)
    assert panoptile("verify", finished) == 7
    summary = run(files, finished, **TILING)
    assert summary.metrics["units_run"] == 0
    assert published(finished) == published(calm)
    assert panoptile("verify", finished) == 0


@pytest.mark.parametrize(
    "change", [{"exit": None}, {"exit": "x"}, {"exit": 77}, {"generation": -5}, {"units": 1}]
)
def test_a_success_that_says_something_else_does_not_count(
    files: WorldFiles, finished: Path, change: dict[str, object]
) -> None:
    """_SUCCESS.json must be what its generation says; no command breaks over one that is not."""
    path = finished / "_SUCCESS.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for command in ("status", "report", "logs"):
        assert panoptile(command, finished) in (0, 2)
    assert not run(files, finished, **TILING).already_done
    assert panoptile("verify", finished) == 0


PARTS = (
    "classes.json", "rasters/*/*.segments.tif", "rasters/*/*.classes.tif", "segments/*.parquet", "previews/*.png",
    "_state/plan/*.json", "_state/results/*.json", "manifest.parquet", "metrics.json", "deadletter.parquet",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PARTS)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "[]", "{}", "no text"])
def test_no_command_breaks_over_a_damaged_file(
    finished: Path, pattern: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """report, preview and export end with their file or with one sentence and exit 2, never with a traceback."""
    (finished / "deadletter.parquet").write_bytes(dead_letter([]))
    victim = min(finished.glob(pattern))
    data = victim.read_bytes()
    victim.unlink()
    made = {"empty": b"", "cut": data[: len(data) // 2], "[]": b"[]", "{}": b"{}", "no text": b"\xff\xfe\x00"}
    if damage in made:
        victim.write_bytes(made[damage])
    for command in (["report", finished], ["preview", finished], ["export", finished, "--to", "stac"]):
        code = panoptile(*command)
        told = capsys.readouterr().err
        assert code in (0, 2), told
        assert "Traceback" not in told
        assert told.count("error:") == (code == 2)


def test_who_only_reads_does_not_speak_of_writing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be read: status, logs, verify, report and --explain say so, exit 2 in one sentence."""
    (finished / "_SUCCESS.json").unlink()
    (finished / "_SUCCESS.json").mkdir()
    for command in ("status", "logs", "verify", "report"):
        assert panoptile(command, finished) == 2
        assert capsys.readouterr().err.startswith(f"error: Cannot read {finished}: ")
    (finished / "job.json").unlink()
    (finished / "job.json").mkdir()
    assert panoptile("resume", finished, "--explain") in (0, 2)
    assert "Cannot write" not in capsys.readouterr().err


@pytest.mark.parametrize(("command", "target"), [("report", "report.html"), ("preview", "previews")])
def test_a_page_or_picture_that_cannot_be_written_is_said_to(
    finished: Path, command: str, target: str
) -> None:
    """Something is in the way of what is to be written: exit 4 in one sentence, no traceback."""
    if target == "previews":
        shutil.rmtree(finished / target)
        (finished / target).touch()
    else:
        (finished / target).mkdir()
    argv = [sys.executable, "-m", "panoptile", command, str(finished)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 4, ended.stderr
    assert ended.stderr.startswith("error: Cannot write to")
    assert ended.stderr.count("\n") == 1
