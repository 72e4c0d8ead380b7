"""``--incremental``: what becomes of an input whose file was archived, whatever is lost of its result or its fragments."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.nights import Nights
from tests.jobs.runs import published, threads
from tests.jobs.test_bad_input import panoptile

from panoptile.jobs import leased_run, survey
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.job_status import look_at
from panoptile.jobs.lease import claim, highest_epoch
from panoptile.jobs.leased_run import LeasedRun
from panoptile.jobs.prepare import prepare
from panoptile.jobs.report import gather
from panoptile.jobs.segment import run_job
from panoptile.jobs.verify import verify
from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.store import open_store
from panoptile.pipeline.worker import Worker

WORLD = (6, 110, 150)

FRAGMENTS = {"fragment": "_state/data/a-*", "commit": "_state/commits/a-*"}
RESULTS = {
    "raster": "rasters/a-*/*.classes.tif",
    "table": "segments/a-*",
    "tiles": "tiles/a-*",
    "record": "_state/results/a-*",
}
PREVIEW = "previews/a-*"
PLAN = "_state/plan/a-*"


@pytest.fixture
def archived(nights: Nights) -> Nights:
    """Two finished sheets, of which the first is archived."""
    nights.add("a.tif", "b.tif")
    nights.run()
    (nights.sheets / "a.tif").rename(nights.sheets.parent / "a.tif")
    return nights


def lose(nights: Nights, pattern: str) -> Path:
    """Remove the first of the files."""
    first, *_ = sorted(nights.out.glob(pattern))
    first.unlink()
    return first


def arguments(nights: Nights) -> list[str]:
    """The job as ``plan`` and ``segment`` are told of it."""
    return [
        str(nights.sheets), "-o", str(nights.out), "--incremental", "--tile", "64", "--overlap", "16", "--local",
        "--workers", "1", "--model", nights.files.model, "--labels", str(nights.files.table),
    ]  # fmt: skip


def names_of(nights: Nights) -> set[str]:
    """Files of the archived sheet, wherever they lie in the result."""
    folders = ("rasters", "segments", "tiles", "previews", "_state/results")
    found = (p for f in folders for p in (nights.out / f).rglob("a-*") if p.is_file())
    return {p.relative_to(nights.out).as_posix() for p in [*found, *nights.out.glob("rasters/a-*/*")]}


def agree(nights: Nights, code: Exit) -> None:
    """What is said of OUT afterwards is what the run ended with; nothing is left to do."""
    assert look_at(str(nights.out)).exit == code
    assert gather(str(nights.out), None).exit == code
    again = nights.run()
    assert (again.already_done, again.exit) == (True, code)


@pytest.mark.parametrize(
    ("lost", "new"),
    [
        *((lost, ("c.tif",)) for lost in (*FRAGMENTS, *RESULTS, "preview", "nothing")),
        *((lost, ()) for lost in ("fragment", "commit", "raster", "preview")),
    ],
)
def test_one_loss_of_an_archived_sheet_costs_nothing(
    archived: Nights, lost: str, new: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its result stays, or is made again from the fragments, byte by byte; no unit of it is run, and ``plan`` says so."""
    before, names = published(archived.out), names_of(archived)
    patterns = {**FRAGMENTS, **RESULTS, "preview": PREVIEW}
    if lost in patterns:
        lose(archived, patterns[lost])
    archived.add(*new)
    assert panoptile("plan", *arguments(archived), "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    states = {Path(one["uri"]).stem: one["state"] for one in planned["inputs"]}
    assert states["a"] == ("to publish" if lost in RESULTS or lost == "preview" else "gone")
    assert planned["pending"]["open"] == sum(o["units"] for o in planned["inputs"] if o["state"] == "to do")
    summary = archived.run()
    assert summary.exit is Exit.DONE
    assert names_of(archived) == names
    after = published(archived.out)
    del before["manifest.parquet"]
    assert before.items() <= after.items()
    assert archived.listed() == {"a.tif", "b.tif", *new}
    assert archived.items() == {"a", "b", *(name[0] for name in new)}
    wrong = {m.kind for m in verify(open_store(archived.out)).mismatches}
    assert wrong == ({lost} if lost in FRAGMENTS else set())
    status = look_at(str(archived.out))
    left = lost == "commit" and not new  # a quiet night writes nothing: commits are counted
    assert (status.done, status.state) == (status.units - left, "done")
    agree(archived, Exit.DONE)


@pytest.mark.parametrize(
    ("fragment", "result", "new"),
    [
        ("fragment", "raster", ("c.tif",)),
        ("commit", "table", ("c.tif",)),
        ("fragment", "tiles", ()),
        ("commit", "record", ()),
    ],
)
def test_a_sheet_that_is_lost_is_told_of(
    archived: Nights,
    fragment: str,
    result: str,
    new: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of the result and a fragment are gone: exit 3 and the dead letter, ``plan`` says so before; what is new is
    done. Put back, it is segmented again; else the night after is content without it."""
    lose(archived, FRAGMENTS[fragment])
    lose(archived, RESULTS[result])
    archived.add(*new)
    _is_lost(archived, new, capsys)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")], ids=["gone", "damaged"])
def test_a_sheet_without_its_plan_is_lost(
    archived: Nights, damage: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing tells what it is made of; its name is known from the job."""
    [plan] = archived.out.glob(PLAN)
    damage(plan)  # type: ignore[operator]
    archived.add("c.tif")
    _is_lost(archived, ("c.tif",), capsys)


def _is_lost(nights: Nights, new: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert panoptile("plan", *arguments(nights)) == 0
    said = capsys.readouterr()
    assert f"lost: {nights.sheets}/a.tif, which the sources do not name" in said.err
    assert "Put it back" in said.err
    assert "lost: 1 input whose" in said.out
    assert "nothing is left to do" not in said.out
    assert panoptile("resume", nights.out, "--explain") == 0
    assert "note    lost: " in capsys.readouterr().err
    summary = nights.run()
    assert summary.exit is Exit.QUARANTINED
    assert names_of(nights) == set()
    assert nights.listed() == nights_listed(new)
    assert nights.dead() == ["a.tif"]
    status = look_at(str(nights.out))
    assert (status.state, status.left_out.skipped_count, status.done) == ("quarantined", 1, status.units)
    assert int(verify(open_store(nights.out)).exit) == 0
    after = nights.run()
    assert (after.exit, after.already_done) == (Exit.DONE, False)
    is_planned = bool(list(nights.out.glob(PLAN)))  # else nothing is left that could tell of it
    assert any("unfinished or lost, and gone" in note for note in after.prepared.notes) is is_planned
    assert nights.listed() == nights_listed(new)
    (nights.sheets.parent / "a.tif").rename(nights.sheets / "a.tif")
    assert nights.run().exit is Exit.DONE
    assert nights.listed() == {"a.tif", *nights_listed(new)}
    assert int(verify(open_store(nights.out)).exit) == 0
    agree(nights, Exit.DONE)


def nights_listed(new: tuple[str, ...]) -> set[str]:
    return {"b.tif", *new}


def test_a_lost_picture_and_a_lost_fragment_are_no_lost_result(archived: Nights) -> None:
    """The label rasters are there: they stay, and ``preview`` draws the picture from them."""
    before = published(archived.out)
    lose(archived, FRAGMENTS["fragment"])
    lose(archived, PREVIEW)
    assert archived.run().already_done
    assert published(archived.out) == before
    assert {m.kind for m in verify(open_store(archived.out)).mismatches} == {"fragment", "preview"}


def test_a_sheet_that_was_archived_before_it_was_published_is_finished(archived: Nights) -> None:
    """The run was killed when all its units were done: the fragments are enough, and no unit is run."""
    names = names_of(archived)
    for name in names:
        (archived.out / name).unlink()
    summary = archived.run()
    assert (summary.exit, summary.metrics["units_run"]) == (Exit.DONE, 0)
    assert names_of(archived) == names
    assert archived.listed() == {"a.tif", "b.tif"}
    agree(archived, Exit.DONE)


@pytest.mark.parametrize("lost", [None, "deadletter.parquet", FRAGMENTS["fragment"], RESULTS["raster"]])
def test_what_failed_of_an_archived_sheet_stays_failed(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, lost: str | None
) -> None:
    """It was published with a hole: the hole and the rest stay, exit 3 and the dead letter too; nothing is tried again."""
    real = Worker.run

    def unlucky(worker: Worker, attempt: Attempt) -> UnitReport:
        if attempt.unit.first == 0 and attempt.unit.key.startswith("a-"):
            raise UnitError("infer", "no luck", 0)
        return real(worker, attempt)

    nights.add("a.tif", "b.tif")
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", unlucky)
        assert nights.run(retries=0, max_failures="50%").exit is Exit.QUARANTINED
    before, names = published(nights.out), names_of(nights)
    (nights.sheets / "a.tif").unlink()
    if lost is not None:
        lose(nights, lost)
    monkeypatch.setattr(Worker, "run", None)
    assert nights.run().exit is Exit.QUARANTINED
    after = published(nights.out)
    del before["manifest.parquet"], after["manifest.parquet"]  # it names archived ones last
    assert (after, names_of(nights)) == (before, names)
    assert nights.dead() == ["a.tif"]
    agree(nights, Exit.QUARANTINED)


def test_lost_sheets_do_not_stop_the_others(archived: Nights) -> None:
    """They are no failures that --max-failures counts, and one may be all that there was."""
    (archived.sheets / "b.tif").unlink()
    for name in "ab":
        lose(archived, f"_state/data/{name}-*")
        lose(archived, f"segments/{name}-*")
    assert archived.run(max_failures="0").exit is Exit.QUARANTINED
    assert archived.dead() == ["a.tif", "b.tif"]
    assert archived.listed() == set()
    archived.add("c.tif")
    assert archived.run(max_failures="0").exit is Exit.DONE
    assert archived.listed() == {"c.tif"}


def test_a_picture_is_never_drawn_over_another_photograph(archived: Nights) -> None:
    """The file is there and not what was segmented, but the sources do not name it: the picture is drawn without it."""
    spec = dataclasses.replace(archived.spec(), sources=(str(archived.sheets / "b.tif"),))
    (archived.sheets.parent / "a.tif").rename(archived.sheets / "a.tif")
    [picture] = archived.out.glob(PREVIEW)
    with_photograph = picture.read_bytes()
    picture.unlink()
    with threads():
        run_job(prepare(spec), Console(quiet=True))
    assert picture.read_bytes() == with_photograph
    data = bytearray((archived.sheets / "a.tif").read_bytes())
    data[-1] ^= 0xFF
    (archived.sheets / "a.tif").write_bytes(data)
    lose(archived, RESULTS["raster"])
    with threads():
        run_job(prepare(spec), Console(quiet=True))
    assert picture.read_bytes() == with_photograph
    picture.unlink()
    with threads():
        run_job(prepare(spec), Console(quiet=True))
    assert picture.read_bytes() != with_photograph


@pytest.mark.parametrize("first", ["commit", "raster"])
def test_what_goes_while_a_run_works_leaves_no_holes(
    archived: Nights, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Of an archived sheet one thing was gone when the run looked, and another when it published: exit 4, and nothing is
    published over. The same command then tells what is lost."""
    patterns = FRAGMENTS | RESULTS
    before = published(archived.out)
    gone = str(lose(archived, patterns[first]).relative_to(archived.out))
    archived.add("c.tif")
    real = survey.open_units

    def opening(*arguments: Any, **options: Any) -> Any:
        units = real(*arguments, **options)
        second = lose(archived, patterns["raster" if first == "commit" else "commit"])
        before.pop(str(second.relative_to(archived.out)), None)
        return units

    with monkeypatch.context() as patch:
        patch.setattr(leased_run, "open_units", opening)
        with pytest.raises(JobError, match=r"a\.tif is gone since") as e:
            archived.run()
    assert e.value.code is Exit.FAILED
    before.pop(gone, None)
    del before["manifest.parquet"]
    assert before.items() <= published(archived.out).items()
    assert archived.run().exit is Exit.QUARANTINED
    assert archived.dead() == ["a.tif"]


def test_an_archived_sheet_that_was_published_over_is_published_again(
    archived: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that was overtaken leaves no record of what it published: the next one publishes it from the fragments."""
    lose(archived, RESULTS["table"])
    store, real, times = open_store(archived.out), leased_run._finish, []

    def finishing(*arguments: Any) -> Any:
        finished = real(*arguments)
        times.append(finished)
        if len(times) == 1:
            lease = claim(store, highest_epoch(store))
            assert lease is not None
            LeasedRun(store, prepare(archived.spec()), Console(quiet=True), lease, True).to_its_end()
        return finished

    monkeypatch.setattr(leased_run, "_finish", finishing)
    assert archived.run().exit is Exit.DONE
    assert len(times) == 2  # the other run finds the files, and the record of before
    assert archived.listed() == {"a.tif", "b.tif"}
    assert int(verify(store).exit) == 0


def test_a_plan_as_another_version_wrote_it_is_no_changed_input(archived: Nights) -> None:
    """The plan of an archived sheet is what OUT says: that it would be written otherwise today makes nothing stale."""
    [plan] = archived.out.glob(PLAN)
    plan.write_text(json.dumps(json.loads(plan.read_text()), indent=3))
    prepared = prepare(archived.spec())
    assert [len(p) for p in (prepared.plans, prepared.kept.keys, prepared.kept.recorded)] == [2, 1, 0]
    before = published(archived.out)
    lose(archived, RESULTS["raster"])
    assert archived.run().exit is Exit.DONE
    before.pop("manifest.parquet")
    assert before.items() <= published(archived.out).items()


def test_a_fragment_that_rotted_is_found_before_it_is_published(archived: Nights) -> None:
    """It has its size, so that only reading tells: exit 4 and nothing is written over; the same command then names the sheet."""
    lose(archived, RESULTS["raster"])
    before = published(archived.out)
    fragment = min(archived.out.glob(FRAGMENTS["fragment"]))
    fragment.write_bytes(bytes(reversed(fragment.read_bytes())))
    with pytest.raises(JobError, match="are not what was committed") as e:
        archived.run()
    assert e.value.code is Exit.FAILED
    assert published(archived.out) == before
    assert archived.run().exit is Exit.QUARANTINED
    assert archived.dead() == ["a.tif"]


def test_what_verify_advises_for_an_archived_sheet_holds(
    archived: Nights, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fragment that is gone stays gone, and so does nothing else; beside a damaged file of it, the sheet is put back."""
    lose(archived, FRAGMENTS["fragment"])
    assert panoptile("verify", archived.out) == 7
    assert "no fragment is made again, and what is published of it stays" in capsys.readouterr().out
    before = published(archived.out)
    assert archived.run().exit is Exit.DONE
    assert published(archived.out) == before
    [raster] = archived.out.glob(RESULTS["raster"])
    raster.write_bytes(bytes(reversed(raster.read_bytes())))
    assert panoptile("verify", archived.out) == 7
    assert "put its file back before" in capsys.readouterr().out
    (archived.sheets.parent / "a.tif").rename(archived.sheets / "a.tif")
    raster.unlink()
    assert archived.run().exit is Exit.DONE
    assert published(archived.out) == before
    assert panoptile("verify", archived.out) == 0
    capsys.readouterr()
    (archived.out / "classes.json").unlink()
    assert panoptile("verify", archived.out) == 7
    assert "sources do not name" not in capsys.readouterr().out
