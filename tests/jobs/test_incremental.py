"""``--incremental``: an OUT that grows night by night."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.jobs.nights import Nights
from tests.jobs.runs import published
from tests.jobs.test_bad_input import panoptile

from panoptile.jobs import segment, stac
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.follow import Followed, take_lease
from panoptile.jobs.lease import highest_epoch
from panoptile.jobs.prepare import prepare
from panoptile.jobs.report import gather
from panoptile.jobs.report_text import summary_text
from panoptile.jobs.resume import recorded_spec
from panoptile.jobs.submission import finished_exit
from panoptile.jobs.verify import verify
from panoptile.pipeline.store import open_store
from panoptile.pipeline.store_local import LocalStore

WORLD = (6, 110, 150)


def test_a_night_does_only_what_is_new(nights: Nights) -> None:
    """The third sheet alone is run; the files of the first two are the same bytes; the catalogue holds all three."""
    nights.add("a.tif", "b.tif")
    nights.run()
    before = published(nights.out)
    per_sheet = nights.units_run() // 2
    nights.add("c.tif")
    nights.run()
    assert nights.units_run() == per_sheet
    after = published(nights.out)
    kept = {k: v for k, v in before.items() if k.startswith(("rasters", "segments"))}
    assert kept.items() <= after.items()
    assert nights.listed() == {"a.tif", "b.tif", "c.tif"}
    assert nights.items() == {"a", "b", "c"}
    assert int(verify(open_store(nights.out)).exit) == 0


def test_a_quiet_night_runs_nothing(nights: Nights) -> None:
    """Nothing new: no replica, the same tree."""
    nights.add("a.tif")
    nights.run()
    before = published(nights.out)
    assert nights.run().already_done
    assert published(nights.out) == before


def test_an_archived_sheet_keeps_its_result(nights: Nights) -> None:
    """A source that is gone stays published, verified and in the catalogue."""
    nights.add("a.tif", "b.tif")
    nights.run()
    (nights.sheets / "a.tif").unlink()
    nights.add("c.tif")
    nights.run()
    assert nights.listed() == {"a.tif", "b.tif", "c.tif"}
    assert nights.items() == {"a", "b", "c"}
    assert int(verify(open_store(nights.out)).exit) == 0


def leave_unfinished(nights: Nights, name: str) -> None:
    """The sheet is gone, and of its result nothing but a part of the commits is there."""
    commits = sorted(nights.out.glob(f"_state/commits/{name[0]}-*"))
    results = [*nights.out.glob(f"*/{name[0]}-*"), *nights.out.glob(f"_state/results/{name[0]}-*")]
    for path in [commits[0], *results]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (nights.sheets / name).unlink()


@pytest.mark.parametrize(("lost", "words"), [(("b.tif",), "1 input of"), (("b.tif", "c.tif"), "2 inputs of")])
def test_unfinished_sheets_that_are_gone_are_counted(
    nights: Nights, lost: tuple[str, ...], words: str
) -> None:
    """A note says how many are left out: one input, or several."""
    nights.add("a.tif", *lost)
    nights.run()
    for name in lost:
        leave_unfinished(nights, name)
    [note] = [n for n in prepare(nights.spec()).notes if "earlier runs" in n]
    assert note == f"left out: {words} earlier runs, unfinished or lost, and gone from the sources."


def test_a_changed_sheet_is_done_again(nights: Nights) -> None:
    """Other bytes under the same name: its units alone are run."""
    nights.add("a.tif", "b.tif")
    nights.run()
    per_sheet = nights.units_run() // 2
    with (nights.sheets / "b.tif").open("ab") as f:
        f.write(b"\0" * 64)
    nights.run()
    assert nights.units_run() == per_sheet


def test_a_touched_sheet_is_not(nights: Nights) -> None:
    """The same bytes with another time: nothing is run."""
    nights.add("a.tif", "b.tif")
    nights.run()
    os.utime(nights.sheets / "b.tif", ns=(1, 1))
    assert nights.run().already_done


def test_plan_prices_what_would_run(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiles of new inputs alone are sampled and counted; of a finished job none, which any budget allows."""
    nights.add("a.tif")
    nights.run()
    arguments = (
        str(nights.sheets), "-o", str(nights.out), "--incremental", "--tile", "64", "--overlap", "16",
        "--model", nights.files.model, "--labels", str(nights.files.table), "--local",
        "--sample", "3", "--price", "2", "--json",
    )  # fmt: skip
    assert panoptile("plan", *arguments, "--budget", "0") == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert (found["items"], found["sampled"], found["cost"]) == (0, 0, 0.0)
    nights.add("b.tif")
    assert panoptile("plan", *arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    [tiles] = [one["tiles"] for one in plan["inputs"] if one["uri"].endswith("b.tif")]
    assert plan["estimate"]["items"] == tiles < plan["tiles"]
    assert plan["estimate"]["sampled"] == 3


def test_plan_says_what_is_skipped_and_why(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    """Unchanged, changed, new and archived inputs, each by name, for people and in JSON; nothing is written."""
    nights.add("a.tif", "b.tif", "c.tif")
    nights.run()
    nights.add("d.tif")
    (nights.sheets / "c.tif").unlink()
    with (nights.sheets / "b.tif").open("ab") as f:
        f.write(b"\0" * 64)
    before = published(nights.out)
    arguments = [str(nights.sheets), "-o", str(nights.out), "--model", nights.files.model, "--incremental"]
    arguments += ["--labels", str(nights.files.table), "--tile", "64", "--overlap", "16"]
    assert panoptile("plan", *arguments) == 0
    text = capsys.readouterr().out
    listed = text[text.index("unchanged: 1 input skipped: size and time") :].splitlines()
    assert listed[1] == f"  {nights.sheets / 'a.tif'}"
    assert listed[2].startswith("gone: 1 input not named")
    assert listed[3] == f"  {nights.sheets / 'c.tif'}"
    assert panoptile("plan", *arguments, "--json") == 0
    inputs = {Path(i["uri"]).stem: i for i in json.loads(capsys.readouterr().out)["inputs"]}
    assert {n: i["state"] for n, i in inputs.items()} == {
        "a": "unchanged",
        "b": "to do",
        "c": "gone",
        "d": "to do",
    }
    assert inputs["b"]["reasons"] == {"changed input": inputs["b"]["units"]}
    assert inputs["d"]["reasons"] == {"missing": inputs["d"]["units"]}
    assert published(nights.out) == before


def test_a_night_without_anything_new_is_no_failure(nights: Nights) -> None:
    """The inbox was archived and nothing came: exit 0 and a note, the result stays; a wrong path is still an error."""
    with pytest.raises(JobError, match="holds no raster"):  # nothing was ever done here
        prepare(nights.spec())
    nights.add("a.tif")
    nights.run()
    before = published(nights.out)
    (nights.sheets / "a.tif").unlink()
    assert any("nothing lies in the sources" in note for note in prepare(nights.spec()).notes)
    assert nights.run().already_done
    assert published(nights.out) == before
    nights.add("b.tif")
    nights.run()
    assert len(list(nights.out.glob("rasters/*"))) == 2
    shutil.rmtree(nights.sheets)
    with pytest.raises(JobError, match="does not exist"):
        prepare(nights.spec())


def test_a_night_that_brings_only_a_broken_sheet(nights: Nights) -> None:
    """With --skip-invalid it goes to the dead letter (exit 3), and what was finished stays; in a new OUT it is exit 2."""
    nights.add("a.tif")
    nights.run(skip_invalid=True)
    before = nights.listed()
    (nights.sheets / "a.tif").unlink()
    (nights.sheets / "b.tif").write_bytes(b"II*\0broken")
    summary = nights.run(skip_invalid=True, max_failures="50%")
    assert summary.exit is Exit.QUARANTINED
    assert nights.listed() == before
    assert nights.dead() == ["b.tif"]
    assert nights.run(skip_invalid=True, max_failures="50%").already_done
    (nights.sheets / "b.tif").rename(nights.sheets / "c.tif")
    assert nights.run(skip_invalid=True, max_failures="50%").exit is Exit.QUARANTINED
    assert nights.dead() == ["c.tif"]
    with pytest.raises(JobError) as refused:
        prepare(dataclasses.replace(nights.spec(skip_invalid=True), out=str(nights.out.parent / "new")))
    assert refused.value.code is Exit.INVALID
    (nights.sheets / "c.tif").unlink()
    assert nights.run(skip_invalid=True).exit is Exit.DONE
    assert not (nights.out / "deadletter.parquet").exists()


def test_an_empty_night_of_a_job_with_regions(nights: Nights) -> None:
    """--regions does not take a folder without sheets for one of videos."""
    nights.add("a.tif")
    nights.run(regions=("grass",))
    (nights.sheets / "a.tif").unlink()
    assert nights.run(regions=("grass",)).exit is Exit.DONE


def test_without_the_option_other_sources_are_refused(nights: Nights) -> None:
    """Exit 5, and the option is named."""
    nights.add("a.tif")
    nights.run(incremental=False)
    nights.add("b.tif")
    with pytest.raises(JobError, match="--incremental") as e:
        prepare(nights.spec(incremental=False))
    assert int(e.value.code) == 5


def test_resume_looks_at_what_the_sources_name_now(nights: Nights) -> None:
    """resume OUT of a growing job takes in what has come since."""
    nights.add("a.tif")
    nights.run()
    nights.add("b.tif")
    spec = recorded_spec(open_store(nights.out), {})
    assert spec.incremental
    prepared = prepare(spec)
    assert {Path(p.uri).name for p in prepared.plans} == {"a.tif", "b.tif"}


def test_an_unfinished_input_that_is_gone_is_left_out(nights: Nights) -> None:
    """What was never published and is gone now cannot be done: a note says so, and the rest goes on."""
    nights.add("a.tif", "b.tif")
    nights.run()
    leave_unfinished(nights, "a.tif")
    prepared = prepare(nights.spec())
    assert [Path(p.uri).name for p in prepared.plans] == ["b.tif"]
    assert any("left out" in note for note in prepared.notes)
    assert nights.run().exit is Exit.DONE


def test_a_report_beside_a_run_that_adds_a_sheet(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sheet comes between report's looks at plans and at results: it is in the report, or it is not."""
    nights.add("a.tif")
    nights.run()
    real, calls = LocalStore.read_all, itertools.count()

    def read_all(store: LocalStore, prefix: str) -> dict[str, bytes]:
        found = real(store, prefix)
        if prefix in ("_state/plan", "_state/results") and next(calls) == 0:
            nights.add("c.tif")
            nights.run()
        return found

    monkeypatch.setattr(LocalStore, "read_all", read_all)
    inputs = gather(str(nights.out), None).inputs
    assert next(calls) > 1
    assert {Path(one.uri).name for one in inputs} in ({"a.tif"}, {"a.tif", "c.tif"})


def test_a_catalogue_beside_a_run_that_adds_a_sheet(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run writes its item while an export writes the catalogue of before: the item and its link stay."""
    nights.add("a.tif")
    nights.run()
    real, calls = stac._assets, itertools.count()

    def meanwhile(*args: Any) -> Any:
        assets = real(*args)
        if next(calls) == 0:
            nights.add("c.tif")
            nights.run()
        return assets

    monkeypatch.setattr(stac, "_assets", meanwhile)
    stac.write_catalog(str(nights.out))
    assert nights.items() == {"a", "c"}
    links = json.loads((nights.out / "catalog" / "collection.json").read_text())["links"]
    assert len([link for link in links if link["href"].startswith("./items/")]) == 2


def test_a_catalogue_that_is_outdated_each_time_ends_in_a_sentence(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing anew is bounded: exit 5."""
    nights.add("a.tif")
    nights.run()
    manifest = nights.out / "manifest.parquet"
    whole, writes = manifest.read_bytes(), itertools.count(1)
    listing = iter(lambda: whole + b"?" * next(writes), None)
    monkeypatch.setattr(stac, "_manifest", lambda store: next(listing))
    monkeypatch.setattr(stac, "_write", lambda store, listed: ["catalog/items/fresh.json"])
    with pytest.raises(JobError, match="published anew 5 times") as e:
        stac.write_catalog(str(nights.out))
    assert e.value.code is Exit.OTHER_JOB


def test_a_quiet_night_makes_up_for_a_catalogue_that_was_not_written(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed between its result and the catalogue: submit says that something is to do, and the next night
    writes it, runs nothing, and publishes nothing anew."""
    nights.add("a.tif")
    nights.run()
    nights.add("c.tif")

    def killed(out: str) -> str:
        raise RuntimeError(f"killed before the catalogue of {out}")

    with monkeypatch.context() as patch:
        patch.setattr(stac, "write_catalog", killed)
        with pytest.raises(RuntimeError, match="before the catalogue"):
            nights.run()
    assert nights.items() == {"a"}
    success = (nights.out / "_SUCCESS.json").read_bytes()
    assert finished_exit(prepare(nights.spec())) is None
    assert nights.run().already_done
    assert nights.items() == {"a", "c"}
    assert (nights.out / "_SUCCESS.json").read_bytes() == success
    assert finished_exit(prepare(nights.spec())) is Exit.DONE


@pytest.mark.parametrize(
    "loss", ["catalog", "catalog/collection.json", "catalog/items/a-*", "catalog/items/other.json"]
)
def test_a_quiet_night_makes_a_damaged_catalogue_whole(nights: Nights, loss: str) -> None:
    """Whatever of it is gone is written again, and what is not of it removed; a whole one is left alone."""
    nights.add("a.tif")
    nights.run()
    found = {p: p.read_bytes() for p in (nights.out / "catalog").rglob("*.json")}
    if loss.endswith("other.json"):
        (nights.out / loss).write_text("{}")
    for path in [] if loss.endswith("other.json") else list(nights.out.glob(loss)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {p: p.read_bytes() for p in (nights.out / "catalog").rglob("*.json")} != found
    assert nights.run().already_done
    assert {p: p.read_bytes() for p in (nights.out / "catalog").rglob("*.json")} == found
    with_lease = highest_epoch(open_store(nights.out))
    assert nights.run().already_done
    assert highest_epoch(open_store(nights.out)) == with_lease


@pytest.mark.parametrize("follows", [False, True])
def test_a_plain_run_leaves_the_catalogue_to_the_first_night(nights: Nights, follows: bool) -> None:
    """An --incremental run after it, or that followed it, has nothing else to do."""
    nights.add("a.tif")
    nights.run(incremental=False)
    assert not (nights.out / "catalog").exists()
    followed = [Followed(Exit.DONE, skipped=False)] if follows else []

    def attach(*arguments: Any) -> Any:
        return followed.pop() if followed else take_lease(*arguments)

    with mock.patch.object(segment, "take_lease", attach):
        assert nights.run().already_done
    assert not followed
    assert nights.items() == {"a"}


def test_another_model_is_another_job(nights: Nights) -> None:
    """Growing is not a way around the fingerprint: exit 5."""
    nights.add("a.tif")
    nights.run()
    with pytest.raises(JobError, match="overlap"):
        prepare(nights.spec(overlap=24))


def test_a_mosaic_does_not_grow(nights: Nights) -> None:
    """A new sheet would change the whole."""
    with pytest.raises(ValueError, match="--mosaic"):
        nights.spec(mosaic=True)


def test_a_summary_of_many_inputs_ends(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists the first inputs, says how many more there are and where their files are named."""
    nights.add("a.tif", "b.tif", "c.tif")
    summary = nights.run()
    whole = summary_text(summary)
    assert [whole.count(f"/{name}.tif") for name in "abc"] == [1, 1, 1]
    assert "more" not in whole
    monkeypatch.setattr("panoptile.jobs.report_text._SHOWN", 1)
    text = summary_text(summary)
    assert [text.count(f"/{name}.tif") for name in "abc"] == [1, 0, 0]
    assert "… and 2 more" in text
    assert "manifest.parquet lists every file" in text
    assert text.splitlines()[-2:] == whole.splitlines()[-2:]
