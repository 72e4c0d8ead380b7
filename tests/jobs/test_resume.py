"""What is run again, and why: exactly what is missing, failed, damaged or changed, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.jobs.checkpoints import tiny_checkpoint
from tests.jobs.runs import WorldFiles, published, run, threads
from tests.jobs.test_bad_input import panoptile

from panoptile.jobs import leased_run, open_units_run, segment
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.job_record import write_job
from panoptile.jobs.prepare import prepare
from panoptile.jobs.resume import explain_job, recorded_spec
from panoptile.jobs.spec import JobSpec
from panoptile.jobs.state import finished_before
from panoptile.jobs.survey import OpenUnit, survey
from panoptile.pipeline import layout
from panoptile.pipeline.attempt import Attempt, UnitError
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.store import open_store
from panoptile.pipeline.worker import Worker

WORLD = (41, 200, 210)
TILING: dict[str, Any] = {"tile": 80, "overlap": 24}


def explained(out: Path, **changes: Any) -> list[OpenUnit]:
    """What ``resume --explain`` tells, with these options on the command."""
    store = open_store(out)
    prepared = prepare(recorded_spec(store, changes), any_job=True)
    return list(explain_job(store, prepared, retry_quarantined=True).open)


def reasons(out: Path, **changes: Any) -> set[tuple[str, str]]:
    return {(o.reason, o.detail) for o in explained(out, **changes)}


# --- parameters ----------------------------------------------------------------------------------------

FLIPS: dict[str, Any] = {
    "task": "semantic",
    "labels": "table.json",
    "fuse": ("road",),
    "tile": 96,
    "overlap": 32,
    "bands": (3, 2, 1),
    "scale": "10,90",
    "gsd": 1.0,
    "nodata": 7.0,
    "aoi": "area.geojson",
    "classes": ("house",),
    "exclude": ("grass",),
    "min_area": 4.0,
    "score": 0.25,
    "raster": False,
    "vector": False,
    "compression": "deflate",
    "batch": 2,
    "threads": 2,
    "precision": "fp32",
}
"""Options that can change a published byte, each with another value than the recorded job's."""

HARMLESS: dict[str, Any] = {
    "workers": 3,
    "local": False,
    "retries": 5,
    "max_failures": "50%",
    "unit_timeout": 12.0,
    "skip_invalid": True,
    "if_running": "fail",
}
"""Options that cannot."""


@pytest.fixture(scope="module")
def recorded(files: WorldFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, JobSpec]]:
    """A folder that holds a job of a network, none of its units done; the working directory has the flips' files."""
    folder = tmp_path_factory.mktemp("job")
    tiny_checkpoint(folder / "model")
    shutil.copy(files.table, folder / "table.json")
    ring = [[500_000, 4_000_000], [500_060, 4_000_000], [500_060, 3_999_940], [500_000, 4_000_000]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    area = {"type": "Polygon", "coordinates": [ring], "crs": crs}
    (folder / "area.geojson").write_text(json.dumps(area))
    spec = JobSpec(
        (str(files.image),), str(folder / "out"), model=str(folder / "model"), local=True, **TILING
    )
    prepared = prepare(spec)
    model = (prepared.model.description, prepared.model.sha256)
    write_job(open_store(folder / "out"), spec, prepared.fingerprint, model, prepared.uris)
    before = Path.cwd()
    os.chdir(folder)
    yield folder / "out", spec
    os.chdir(before)


@pytest.mark.parametrize("name", FLIPS)
def test_a_changed_parameter_never_reuses_anything(recorded: tuple[Path, JobSpec], name: str) -> None:
    """Each option that can change a byte: every unit is explained by that option alone, and a run is refused."""
    out, spec = recorded
    told = explained(out, **{name: FLIPS[name]})
    flipped = dataclasses.replace(spec, **{name: FLIPS[name]})
    assert len(told) == sum(1 for _ in prepare(flipped, any_job=True).plans[0].units())
    assert {o.reason for o in told} == {"changed parameter"}
    assert all(o.detail.startswith(f"{name}: ") and ", " not in _without_values(o.detail) for o in told)
    with pytest.raises(JobError, match=f"holds another job: {name} differs") as e:
        prepare(flipped)
    assert e.value.code is Exit.OTHER_JOB


def _without_values(detail: str) -> str:
    """Names alone: lists have commas of their own."""
    return ", ".join(part.split(": ")[0] for part in detail.split(", ") if ": " in part)


@pytest.mark.parametrize("name", HARMLESS)
def test_how_a_job_runs_may_change(recorded: tuple[Path, JobSpec], name: str) -> None:
    """Options that cannot change a byte: the units are missing, as they were, and the job goes on."""
    out, spec = recorded
    assert reasons(out, **{name: HARMLESS[name]}) == {("missing", "")}
    assert (
        prepare(dataclasses.replace(spec, **{name: HARMLESS[name]})).fingerprint == prepare(spec).fingerprint
    )


def test_a_changed_model_never_reuses_anything(recorded: tuple[Path, JobSpec], tmp_path: Path) -> None:
    """Other weights at the same place: every unit is explained by the model, and a run is refused."""
    out, spec = recorded
    shutil.copytree(spec.model, tmp_path / "model")
    tiny_checkpoint(tmp_path / "model", seed=1)
    assert {reason for reason, _ in reasons(out, model=str(tmp_path / "model"))} == {"changed model"}
    with pytest.raises(JobError, match="model_sha256 differs"):
        prepare(dataclasses.replace(spec, model=str(tmp_path / "model")))


# --- inputs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A finished job over two inputs, the second of which is to be changed."""

    files: WorldFiles
    out: Path
    second: Path
    units: int
    """Of each input."""


@pytest.fixture
def pair(files: WorldFiles, tmp_path: Path) -> Pair:
    folder = tmp_path / "inputs"
    folder.mkdir()
    shutil.copy(files.image, folder / "a.tif")
    shutil.copy(files.image, folder / "b.tif")
    both = WorldFiles(folder / "*.tif", files.labels, files.classes, files.table)
    summary = run(both, tmp_path / "pair", **TILING)
    return Pair(both, tmp_path / "pair", folder / "b.tif", int(summary.metrics["units"]) // 2)


def test_a_touched_input_is_not_run_again(pair: Pair) -> None:
    """Another time and the same bytes: no unit is run, no replica is started, also the second time."""
    before = published(pair.out)
    for seconds in (1_700_000_000, 1_800_000_000):
        os.utime(pair.second, (seconds, seconds))
        assert explained(pair.out) == []
        with mock.patch.object(
            open_units_run, "make_workers", side_effect=AssertionError("a replica was started")
        ):
            assert run(pair.files, pair.out, **TILING).exit is Exit.DONE
    assert published(pair.out) == before


def test_a_changed_input_is_run_again_and_the_others_are_not(pair: Pair) -> None:
    """Other bytes of the same size and, later, another size: the units of that input alone, and the reason says so."""
    data = bytearray(pair.second.read_bytes())
    data[-1] ^= 0xFF
    pair.second.write_bytes(data)
    told = explained(pair.out)
    assert {(o.reason, o.detail) for o in told} == {("changed input", "content")}
    assert {o.unit.key.split("-")[0] for o in told} == {"b"}
    assert len(told) == pair.units
    assert run(pair.files, pair.out, **TILING).metrics["units_run"] == pair.units
    pair.second.write_bytes(bytes(data) + b"\0" * 10)
    assert {reason for reason, _ in reasons(pair.out)} == {"changed input"}
    assert "size_bytes" in explained(pair.out)[0].detail


def test_an_input_that_is_put_back_is_run_again(pair: Pair) -> None:
    """A, then B while the hash of B is not known yet, then A again: A's old hash does not vouch for B's units."""
    original = pair.second.read_bytes()
    data = bytearray(original)
    data[-1] ^= 0xFF
    pair.second.write_bytes(data)
    with mock.patch.object(leased_run, "ContentHashes"):
        run(pair.files, pair.out, **TILING)
    pair.second.write_bytes(original)
    assert run(pair.files, pair.out, **TILING).metrics["units_run"] == pair.units


# --- state ---------------------------------------------------------------------------------------------


def test_every_reason_is_told_apart(finished: Path) -> None:
    """Missing, damaged and unreadable units are named with what is wrong; the others are not mentioned."""
    commits = sorted((finished / "_state" / "commits").iterdir())
    fragments = sorted((finished / "_state" / "data").iterdir())
    commits[0].unlink()
    fragments[1].write_bytes(b"short")
    fragments[2].unlink()
    commits[3].write_bytes(b"{}")
    told = explained(finished)
    assert [o.reason for o in told] == ["missing", *["damaged fragment"] * 3]
    assert [word in o.detail for o, word in zip(told[1:], ("bytes", "gone", "cannot be read"), strict=True)]
    assert [o.unit.id for o in told] == [c.stem for c in commits[:4]]


def test_the_command_explains_as_json_and_then_resumes(
    finished: Path, calm: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``resume --explain`` runs nothing; ``resume`` runs what it named, from any directory, to the same bytes."""
    next((finished / "_state" / "commits").iterdir()).unlink()
    assert panoptile("resume", finished, "--explain", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reasons"] == {"missing": 1}
    assert told["explained"][0]["runs"]
    assert panoptile("resume", finished, "--explain", "--tile", "96") == 0
    assert "changed parameter: tile: 80 -> 96" in capsys.readouterr().out
    assert panoptile("resume", finished, "--tile", "96") == 5
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with threads():
            assert panoptile("resume", finished, "--json", "-q") == 0
    finally:
        os.chdir(here)
    assert json.loads(capsys.readouterr().out)["metrics"]["units_run"] == 1
    assert published(finished) == published(calm)
    assert panoptile("resume", tmp_path) == 2


def test_resume_leaves_alone_what_was_given_up_unless_told_otherwise(
    files: WorldFiles, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarantined unit: resume ends 3 at once; with --retry-quarantined, or with segment, it is tried again."""
    out, real = tmp_path / "out", Worker.run

    def unlucky(worker: Worker, attempt: Attempt):  # type: ignore[no-untyped-def]
        if attempt.unit.first == 0:
            raise UnitError("infer", "no luck")
        return real(worker, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "run", unlucky)
        assert run(files, out, retries=0, **TILING).exit is Exit.QUARANTINED
    store = open_store(out)
    [told] = explained(out)
    assert told.reason == "failed"
    assert "no luck" in told.detail
    prepared = prepare(recorded_spec(store, {}))
    assert [explain_job(store, prepared, retry_quarantined=r).runs(told) for r in (False, True)] == [
        False,
        True,
    ]
    with mock.patch.object(
        open_units_run, "make_workers", side_effect=AssertionError("a replica was started")
    ):
        left = segment.run_job(prepared, Console(quiet=True), retry_quarantined=False)
    assert (left.exit, left.already_done) == (Exit.QUARANTINED, True)
    with threads():
        healed = segment.run_job(prepared, Console(quiet=True), retry_quarantined=True)
    assert healed.exit is Exit.DONE
    assert healed.metrics["units_run"] == 1
    assert published(out) == published(calm)


def test_a_finished_job_lists_its_inputs_and_all_its_runs(finished: Path, files: WorldFiles) -> None:
    """The same command again: the same inputs, assets and counts as the run told, without a replica."""
    [victim] = sorted((finished / "_state" / "commits").iterdir())[3:4]
    victim.unlink()
    first = run(files, finished, **TILING)
    with mock.patch.object(
        open_units_run, "make_workers", side_effect=AssertionError("a replica was started")
    ):
        again = run(files, finished, **TILING)
    assert again.already_done
    assert list(again.inputs) == list(first.inputs)
    assert again.metrics == first.metrics
    runs = first.metrics["runs"]
    assert [r["units"] for r in runs] == [first.metrics["units"], 1]
    assert first.metrics["pixels"] > 200 * 210 * 0.9
    assert first.metrics["units_run"] == 1


def test_published_inputs_are_not_published_again(pair: Pair) -> None:
    """A run that was killed before its manifest publishes what is not published yet, and nothing else."""
    before = published(pair.out)
    (pair.out / "_SUCCESS.json").unlink()
    [parquet] = pair.out.glob("segments/b-*.parquet")
    parquet.unlink()
    with mock.patch.object(leased_run, "_finish", wraps=leased_run._finish) as finish:
        run(pair.files, pair.out, **TILING)
    assert finish.call_count == 1
    assert published(pair.out) == before


# --- size ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ManyUnits:
    """A plan of many units that nobody has to cut."""

    count: int
    key: str = "many-0123456789"
    uri: str = "/nowhere/many.tif"
    kind: str = "raster"

    @property
    def unit_count(self) -> int:
        return self.count

    @property
    def item_count(self) -> int:
        return self.count

    @property
    def pixels(self) -> int:
        return self.count

    def units(self) -> Iterator[Unit]:
        return (Unit(self.key, i, 1) for i in range(self.count))

    def to_json(self) -> bytes:
        return b'{"info": {}}'


def test_a_finished_job_of_10000_units_is_recognised_in_seconds(tmp_path: Path) -> None:
    """What a re-run of a finished job reads of its units takes less than 5 s of one core for 10,000."""
    plan, units = ManyUnits(10_000), {}
    for name in ("_state/commits", "_state/data", "_state/plan"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / layout.plan_key(plan.key)).write_bytes(plan.to_json())
    for unit in plan.units():
        sha256 = hashlib.sha256(unit.id.encode()).hexdigest()
        fragment = layout.fragment_key(unit, sha256)
        commit = {"unit": unit.id, "fragment": fragment, "sha256": sha256, "size": 1, "failed_tiles": []}
        (tmp_path / fragment).write_bytes(b"x")
        (tmp_path / layout.commit_key(unit)).write_text(json.dumps(commit))
        units[unit.id] = sha256
    store = open_store(tmp_path)
    began = time.process_time()
    found = survey(store, [plan])
    assert found.open == ()
    assert {k: c.sha256 for k, c in found.commits.items()} == units
    assert finished_before(store, "", units) is None
    took = time.process_time() - began
    print(f"10,000 units surveyed in {took:.2f} s of one core")
    assert took < 5
