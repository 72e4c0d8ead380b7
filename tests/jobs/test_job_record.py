"""job.json and its copy: one of them is enough to go on, and what is damaged is named and mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.runs import WorldFiles, published, run
from tests.jobs.test_bad_input import panoptile

from panoptile.jobs import job_record
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.incremental import grow_job
from panoptile.jobs.job_record import read_job, record_problem, repair_job
from panoptile.pipeline.store_local import LocalStore

WORLD = (21, 100, 110)
TILING = {"tile": 80, "overlap": 24}
COPY = "_state/job.json"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _reword(path: Path) -> None:
    """Another fingerprint: still JSON, and of the right types."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 64}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "empty": lambda p: p.write_bytes(b""),
    "another value": lambda p: p.write_bytes(b"{}"),
    "wrong types": lambda p: p.write_text(json.dumps({**json.loads(p.read_text()), "inputs": 3, "spec": None})),
    "another fingerprint": _reword,
    "no text": lambda p: p.write_bytes(b"\xff\xfe\x00"),
    "gone": Path.unlink,
}  # fmt: skip


COPY_DAMAGE: dict[str, Callable[[Path], object]] = {
    **{name: DAMAGE[name] for name in ("cut", "empty", "another value", "no text")},
    "another job": lambda p: p.write_text(p.read_text().replace('"overlap": 24', '"overlap": 16')),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_job_json_stops_nobody(
    case: str, files: WorldFiles, calm: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """verify names it (exit 7); status, gc and --explain work; the same command and resume write it anew."""
    before = (finished / "job.json").read_bytes()
    DAMAGE[case](finished / "job.json")
    assert panoptile("verify", finished, "--json") == 7
    told = json.loads(capsys.readouterr().out)["mismatches"]
    assert [(m["kind"], m["name"]) for m in told] == [("job", "job.json")]
    for command in (["status", finished], ["gc", finished, "--dry-run"], ["resume", finished, "--explain"]):
        assert panoptile(*command) == 0
    (finished / "_SUCCESS.json").unlink()
    min(finished.glob("_state/commits/*.json")).unlink()
    assert run(files, finished, **TILING).metrics["units_run"] == 1
    assert (finished / "job.json").read_bytes() == before
    assert published(finished) == published(calm)
    DAMAGE[case](finished / "job.json")
    assert panoptile("resume", finished) == 0
    assert "written anew from its copy" in capsys.readouterr().err
    assert (finished / "job.json").read_bytes() == before
    assert panoptile("verify", finished) == 0


@pytest.mark.parametrize("case", DAMAGE)
def test_another_job_is_refused_though_job_json_is_damaged(
    case: str, files: WorldFiles, finished: Path
) -> None:
    """A damaged job.json does not open the folder to another job: exit 5, and nothing is mended or mixed."""
    DAMAGE[case](finished / "job.json")
    before = sorted(p for p in finished.rglob("*") if p.is_file())
    with pytest.raises(JobError, match="overlap differs") as e:
        run(files, finished, tile=80, overlap=16)
    assert e.value.code is Exit.OTHER_JOB
    assert sorted(p for p in finished.rglob("*") if p.is_file()) == before


@pytest.mark.parametrize("case", COPY_DAMAGE)
def test_a_damaged_copy_is_named_and_made_again(case: str, files: WorldFiles, finished: Path) -> None:
    """The copy alone is damaged: job.json holds, verify names the copy, the same command makes it again."""
    before = (finished / COPY).read_bytes()
    COPY_DAMAGE[case](finished / COPY)
    assert panoptile("verify", finished) == 7
    assert run(files, finished, **TILING).already_done
    assert (finished / COPY).read_bytes() == before
    assert panoptile("verify", finished) == 0


def test_a_folder_without_the_copy_gets_one(files: WorldFiles, finished: Path) -> None:
    """A kill between the two, or an older version: nothing is wrong, and the next run writes the copy."""
    before = (finished / COPY).read_bytes()
    (finished / COPY).unlink()
    assert panoptile("verify", finished) == 0
    assert run(files, finished, **TILING).already_done
    assert (finished / COPY).read_bytes() == before


def test_without_either_every_command_says_so(
    files: WorldFiles, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are damaged: exit 2 in one sentence, and nothing is written."""
    for name in ("job.json", COPY):
        _cut(finished / name)
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    for command in (["verify", finished], ["gc", finished], ["resume", finished], ["status", finished]):
        assert panoptile(*command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "job" in told
    with pytest.raises(JobError, match="no whole copy of it") as e:
        run(files, finished, **TILING)
    assert e.value.code is Exit.INVALID
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_a_job_that_grows_is_right_at_every_moment(finished: Path) -> None:
    """A kill between copy and job.json while inputs are added: the copy, written first, holds."""
    store = LocalStore(finished)
    old = (finished / "job.json").read_bytes()
    grow_job(store, ["/there/new.tif"])
    new = (finished / "job.json").read_bytes()
    assert old != new
    (finished / "job.json").write_bytes(old)  # as the kill would have left it
    assert panoptile("verify", finished) == 7
    assert repair_job(store)
    assert (finished / "job.json").read_bytes() == new
    assert read_job(store) == json.loads(new)


class _Growing:
    """Stands for a function of job_record: the ``n``-th call lets the job grow, as the holder of the lease would."""

    def __init__(self, name: str, n: int, store: LocalStore) -> None:
        self._real, self._n, self._store = getattr(job_record, name), n, store

    def __call__(self, *args: Any) -> Any:
        found = self._real(*args)
        self._n -= 1
        if self._n == 0:
            grow_job(self._store, [NEW])
        return found


NEW = "/there/new.tif"


def _has_grown(folder: Path) -> bool:
    """Both records say so."""
    original, copy = json.loads((folder / "job.json").read_text()), json.loads((folder / COPY).read_text())
    return NEW in original["inputs"] and copy["job"] == original


@pytest.mark.parametrize("name", ["_copy", "read_json"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_job_that_grows_while_it_is_looked_at_is_neither_damaged_nor_undone(
    name: str, n: int, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two reads of a command that attaches, or of verify: nothing is named, nothing is written back."""
    store = LocalStore(finished)
    for look in (record_problem, repair_job):
        with monkeypatch.context() as patched:
            patched.setattr(job_record, name, _Growing(name, n, store))
            assert not look(store)
        assert record_problem(store) is None


def test_a_job_that_grows_while_its_record_is_repaired_stays_grown(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment at which it grows, beside a job.json that is damaged or a copy that is not there."""
    store = LocalStore(finished)
    whole = {name: (finished / name).read_bytes() for name in ("job.json", COPY)}
    for damage, name, n in (
        (_cut, "_bytes", 1), (_cut, "_copy", 2), (_cut, "_copy", 3), (_remove_copy, "job_of", 1),
        (_remove_copy, "_copy_bytes", 1), (_remove_copy, "_copy", 1),
    ):  # fmt: skip
        for key, data in whole.items():
            (finished / key).write_bytes(data)
        damage(finished / "job.json")
        with monkeypatch.context() as patched:
            patched.setattr(job_record, name, _Growing(name, n, store))
            repair_job(store)
        assert _has_grown(finished), (damage, name, n)


def _remove_copy(job: Path) -> None:
    (job.parent / COPY).unlink()
