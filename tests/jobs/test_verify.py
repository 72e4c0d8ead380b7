"""verify names everything that is not as promised; gc removes what nothing refers to, and nothing else."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio
from tests.jobs.nights import Nights
from tests.jobs.runs import WorldFiles, published, run
from tests.jobs.test_bad_input import panoptile

from panoptile.jobs import gc, job_record
from panoptile.jobs import verify as verify_module
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.job_status import look_at
from panoptile.jobs.lease import claim, highest_epoch
from panoptile.jobs.survey import read_commits
from panoptile.jobs.verify import verify
from panoptile.pipeline.store import Store, open_store

WORLD = (44, 200, 210)
TILING = {"tile": 80, "overlap": 24}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _edit(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


DAMAGE: dict[str, tuple[str, Callable[[Path], None], set[str]]] = {
    "fragment flipped": ("_state/data/*.frag", _flip, {"fragment"}),
    "fragment gone": ("_state/data/*.frag", Path.unlink, {"fragment"}),
    "fragment cut": ("_state/data/*.frag", lambda p: _write(p, p.read_bytes()[:-1]), {"fragment"}),
    "commit gone": ("_state/commits/*.json", Path.unlink, {"commit"}),
    "commit torn": ("_state/commits/*.json", lambda p: _write(p, b"{"), {"commit"}),
    "commit of another fragment": ("_state/commits/*.json", _edit(sha256="0" * 64), {"commit", "fragment"}),
    "labels flipped": ("rasters/*/*.segments.tif", _flip, {"file"}),
    "classes raster gone": ("rasters/*/*.classes.tif", Path.unlink, {"file"}),
    "table flipped": ("segments/*.parquet", _flip, {"file"}),
    "class table changed": ("classes.json", _flip, {"classes"}),
    "manifest flipped": ("manifest.parquet", _flip, {"manifest"}),
    "success of another generation": ("_SUCCESS.json", _edit(generation=7), {"success"}),
    "success changed": ("_SUCCESS.json", _edit(segments=-1), {"generation"}),
    "success torn": ("_SUCCESS.json", lambda p: _write(p, b"{"), {"success"}),
    "generation changed": ("_state/generations/1.json", _edit(units=-1), {"generation"}),
    "table of tiles flipped": ("tiles/*.parquet", _flip, {"tiles"}),
    "table of tiles gone": ("tiles/*.parquet", Path.unlink, {"tiles"}),
    "table of no input": ("tiles", lambda p: _write(p / "old.parquet", b"x"), {"tiles"}),
    "preview cut": ("previews/*.png", lambda p: _write(p, p.read_bytes()[:-20]), {"preview"}),
    "preview flipped": ("previews/*.png", _flip, {"preview"}),
    "preview gone": ("previews/*.png", Path.unlink, {"preview"}),
    "record torn": ("_state/results/*.json", lambda p: _write(p, b"{"), {"record"}),
    "metrics torn": ("metrics.json", lambda p: _write(p, b"{"), {"metrics"}),
    "a file that is not listed": ("segments", lambda p: _write(p / "old.parquet", b"x"), {"file"}),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_verify_finds_every_damage(case: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any one thing that is changed, cut, gone or too many: exit 7, and it is named."""
    pattern, damage, kinds = DAMAGE[case]
    victim = min(finished.glob(pattern))
    damage(victim)
    assert panoptile("verify", finished, "--json") == 7
    told = json.loads(capsys.readouterr().out)
    assert {m["kind"] for m in told["mismatches"]} == kinds
    assert any(victim.name.split("-t0")[0] in m["name"] + m["problem"] for m in told["mismatches"])
    assert panoptile("verify", finished) == 7
    assert "mismatch" in capsys.readouterr().out


def test_verify_is_content_with_a_sound_folder(
    finished: Path, files: WorldFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished folder, and one whose run did not finish, are as promised; a folder without a job is exit 2."""
    assert panoptile("verify", finished, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["fragments"], told["finished"]) == (3, 16, True)
    (finished / "_SUCCESS.json").unlink()
    assert panoptile("verify", finished) == 0
    assert "no run has finished" in capsys.readouterr().out
    assert panoptile("verify", tmp_path / "nowhere") == 2
    assert not (tmp_path / "nowhere").exists()


def test_what_verify_names_is_made_again(finished: Path, files: WorldFiles, calm: Path) -> None:
    """Delete what is named and run the same command: the folder is as promised again."""
    for pattern in (
        "rasters/*/*.segments.tif", "manifest.parquet", "_state/commits/*.json", "tiles/*.parquet", "previews/*.png",
        "_state/results/*.json", "metrics.json", "job.json", "classes.json",
    ):  # fmt: skip
        min(finished.glob(pattern)).unlink()
        assert panoptile("verify", finished) == 7
        run(files, finished, **TILING)
        assert panoptile("verify", finished) == 0
        assert published(finished) == published(calm)


def test_verify_knows_a_folder_of_an_older_version_and_a_picture_that_was_drawn_anew(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a hash of the table of tiles it must be readable; a picture may be drawn again, in another size."""
    assert panoptile("preview", finished, "--max-side", "480") == 0
    record = min(finished.glob("_state/results/*.json"))
    fields = json.loads(record.read_text())
    del fields["finished"]["tile_table"]
    record.write_text(json.dumps(fields))
    assert panoptile("verify", finished) == 0
    table = min(finished.glob("tiles/*.parquet"))
    table.write_bytes(table.read_bytes()[:-9])
    capsys.readouterr()
    assert panoptile("verify", finished, "--json") == 7
    (told,) = json.loads(capsys.readouterr().out)["mismatches"]
    assert (told["kind"], told["problem"]) == ("tiles", "cannot be read")


def _overtake(store: Store) -> None:
    """Another run comes and goes."""
    held = claim(store, highest_epoch(store))
    assert held is not None
    held.release(0)


MOMENTS = {
    "after the commits were listed": (verify_module, "read_commits"),
    "after the manifest was read": (verify_module, "_read_manifest"),
    "after tables and pictures were read": (verify_module, "_check_beside"),
    "after metrics were read": (verify_module, "_check_about"),
    "between job.json and its copy": (job_record, "read_json"),
}
RUNS = [
    ("first", "after the commits were listed"),
    *(("one sheet more", moment) for moment in MOMENTS),
    ("changed sheet", "after the commits were listed"),
    ("changed sheet", "after metrics were read"),
]


@pytest.mark.parametrize(("what", "moment"), RUNS)
def test_a_run_that_ends_meanwhile_is_no_damage(
    what: str, moment: str, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run does while the folder is read: it is read again, and is as promised."""
    nights.add("a.tif")
    nights.run(**TILING)
    store = open_store(nights.out)
    if what == "first":
        store.delete("_SUCCESS.json")
        for key in store.keys("_state/commits")[6:]:
            store.delete(key)
    elif what == "one sheet more":
        nights.add("c.tif")
    else:
        with rasterio.open(nights.sheets / "a.tif", "r+") as sheet:
            pixels = sheet.read()
            pixels[3, :40] = 0
            sheet.write(pixels)
    module, name = MOMENTS[moment]
    real, calls = getattr(module, name), itertools.count()

    def meanwhile(*args: Any) -> Any:
        found = real(*args)
        if next(calls) == 0:
            nights.run(**TILING)
        return found

    monkeypatch.setattr(module, name, meanwhile)
    verified = verify(store)
    assert next(calls) > 0
    assert (verified.mismatches, verified.exit) == ((), Exit.DONE)


def test_nothing_is_called_damaged_beside_a_live_run(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file while a run holds the lease: exit 5 and no advice to delete; exit 7 once the run is over."""
    min(finished.glob("segments/*.parquet")).unlink()
    held = claim(open_store(finished), 1)
    assert held is not None
    assert panoptile("verify", finished) == 5
    told = capsys.readouterr()
    assert told.out == ""
    assert "verify it when that run is over" in told.err
    assert "delete" not in told.err
    held.release(0)
    assert panoptile("verify", finished) == 7


def test_damage_that_a_run_elsewhere_left_when_it_was_killed_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease of another machine whose beat stands still: watched until its holder counts as dead, then exit 7."""
    monkeypatch.setenv("PANOPTILE_LEASE_SECONDS", "1")
    min(finished.glob("segments/*.parquet")).unlink()
    (finished / "_state" / "lease" / "00000002.json").write_text('{"host": "elsewhere", "pid": 1}')
    (finished / "_state" / "beat" / "00000002.json").write_text('{"count": 7}')
    assert panoptile("verify", finished) == 7


def test_a_folder_that_changes_at_every_read_ends_in_a_sentence(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading again is bounded: exit 5."""
    min(finished.glob("segments/*.parquet")).unlink()
    store = open_store(finished)

    def run_meanwhile(*args: Any) -> Any:
        _overtake(store)
        return read_commits(*args)

    monkeypatch.setattr(verify_module, "read_commits", run_meanwhile)
    assert panoptile("verify", finished) == 5
    assert "changed each time that it was read" in capsys.readouterr().err
    assert highest_epoch(store) == 1 + verify_module.MAX_READS


def _age(path: Path) -> None:
    """As if it was written eleven minutes ago."""
    written = time.time() - 660
    os.utime(path, (written, written))


def test_gc_removes_orphans_alone(finished: Path, calm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Orphaned fragments, staged files, attempts and old leases go; what is committed or published stays."""
    fragment = min((finished / "_state" / "data").iterdir())
    orphans = {
        f"_state/data/{fragment.name[:-21]}-{'0' * 16}.frag",
        "_state/tmp/0123",
        "_state/attempts/0a/1b",
        "_state/probe/77",
    }
    for name in orphans:
        (finished / name).parent.mkdir(parents=True, exist_ok=True)
        (finished / name).write_bytes(b"left behind")
        _age(finished / name)
    before = {p for p in finished.rglob("*") if p.is_file()}
    assert panoptile("gc", finished, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {o["key"] for o in told["orphans"]} == orphans
    assert {p for p in finished.rglob("*") if p.is_file()} == before
    assert panoptile("gc", finished) == 0
    left = {p for p in finished.rglob("*") if p.is_file()}
    gone = {p.relative_to(finished).as_posix() for p in before - left}
    assert gone == orphans | {"_state/lease/00000001.json", "_state/beat/00000001.json"}
    assert panoptile("verify", finished) == 0
    assert published(finished) == published(calm)


def test_gc_does_not_pass_for_the_last_run(finished: Path) -> None:
    """status names the process that ran the job, however often somebody has tidied its folder since."""
    lease = finished / "_state/lease/00000001.json"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "host": "far-away", "pid": 4711}))
    for _ in range(2):
        assert panoptile("gc", finished) == 0
        assert not lease.exists()
        assert look_at(str(finished)).holder == "process 4711 on far-away"


def test_gc_keeps_what_an_unreadable_commit_may_name(finished: Path) -> None:
    """The fragments of a unit whose commit is torn are not orphans: nobody knows what it named."""
    commit = min((finished / "_state" / "commits").iterdir())
    commit.write_bytes(b"{")
    count = len(list((finished / "_state" / "data").iterdir()))
    assert panoptile("gc", finished) == 0
    assert len(list((finished / "_state" / "data").iterdir())) == count


def test_gc_refuses_beside_a_live_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While a run holds the lease: exit 5, and nothing is removed."""
    (finished / "_state" / "tmp" / "0123").write_bytes(b"being written")
    _age(finished / "_state" / "tmp" / "0123")
    held = claim(open_store(finished), 1)
    assert held is not None
    assert panoptile("gc", finished) == 5
    assert "is working on" in capsys.readouterr().err
    assert (finished / "_state" / "tmp" / "0123").exists()
    held.release(0)
    assert panoptile("gc", finished) == 0
    assert not (finished / "_state" / "tmp" / "0123").exists()


@pytest.fixture
def open_units(finished: Path) -> dict[Path, bytes]:
    """Commits that a kill kept from being written, by where they would be: their fragments are orphans."""
    (finished / "_SUCCESS.json").unlink()
    commits = sorted((finished / "_state" / "commits").iterdir())[:3]
    missing = {path: path.read_bytes() for path in commits}
    for path in commits:
        path.unlink()
    return missing


def _meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have ``act`` happen between gc's list and its first deletion."""
    real, calls = gc.orphans, itertools.count()

    def orphans(store: Store, now: float) -> list[gc.Orphan]:
        found = real(store, now)
        if next(calls) == 1:  # gc looks once before it holds the lease
            act()
        return found

    monkeypatch.setattr(gc, "orphans", orphans)


def test_gc_that_is_overtaken_removes_nothing(
    finished: Path, open_units: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent for longer than the lease, it wakes up after a run has committed the same fragments again: exit 5."""
    store = open_store(finished)

    _meanwhile(monkeypatch, lambda: _overtake(store))
    before = {s.key for s in store.walk("_state/data")}
    with pytest.raises(JobError, match=r"after 0 of \d+ files were removed") as lost:
        gc.collect(store, dry_run=False)
    assert lost.value.code is Exit.OTHER_JOB
    assert {s.key for s in store.walk("_state/data")} == before


def test_gc_looks_at_the_commit_before_it_removes_a_fragment(
    finished: Path, open_units: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed since the list was made stays, and is not reported as removed."""
    store = open_store(finished)
    committed, torn, still_open = open_units.items()

    def commit() -> None:
        committed[0].write_bytes(committed[1])
        torn[0].write_bytes(b"{")

    _meanwhile(monkeypatch, commit)
    before = {s.key for s in store.walk("_state/data")}
    removed = {o.key for o in gc.collect(store, dry_run=False).orphans if o.kind == "fragment"}
    assert removed == {json.loads(still_open[1])["fragment"]}
    assert {s.key for s in store.walk("_state/data")} == before - removed


def test_gc_stops_where_it_loses_the_lease(
    finished: Path, open_units: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overtaken between two deletions: one sentence that tells how many files are gone."""
    monkeypatch.setattr(gc, "ASK_SECONDS", 0.0)
    store = open_store(finished)
    real, deleted = store.delete, []

    def delete(key: str) -> None:
        real(key)
        deleted.append(key)
        _overtake(store)

    monkeypatch.setattr(store, "delete", delete)
    with pytest.raises(JobError, match=r"after 1 of \d+ files were removed"):
        gc.collect(store, dry_run=False)
    assert len(deleted) == 1


@pytest.mark.parametrize("folder", ["probe", "tmp", "attempts/a"])
def test_gc_leaves_what_was_staged_just_now(folder: str, finished: Path) -> None:
    """A command that starts may be between the two puts of its probe; it does not hold the lease."""
    young, old = (finished / "_state" / folder / name for name in ("young", "old"))
    young.parent.mkdir(parents=True, exist_ok=True)
    for path in (young, old):
        path.write_bytes(b"first")
    _age(old)
    assert panoptile("gc", finished) == 0
    assert (young.exists(), old.exists()) == (True, False)


def test_gc_tells_the_age_of_a_probe_by_the_clock_of_the_store(s3_root: str) -> None:
    """On an object store: spared while it is young, an orphan afterwards."""
    store = open_store(s3_root)
    store.put_bytes("job.json", b'{"fingerprint": "0"}')
    store.put_bytes("_state/probe/0", b"first")
    (probe,) = store.walk("_state/probe")
    assert gc.orphans(store, probe.modified + 599) == []
    assert [o.key for o in gc.orphans(store, probe.modified + 600)] == ["_state/probe/0"]
    assert gc.collect(store, dry_run=False).orphans == ()
