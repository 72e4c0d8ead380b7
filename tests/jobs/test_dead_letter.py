"""What is missing from a result stands in the dead letter, with its reason; what can be done is done."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.jobs.runs import WorldFiles, run, threads
from tests.jobs.test_bad_input import panoptile

from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.prepare import prepare
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.raster_input import RasterItems
from panoptile.pipeline.unit_input import ItemRead

WORLD = (46, 200, 210)
TILING: dict[str, Any] = {"tile": 80, "overlap": 24}


@pytest.fixture
def mixed(files: WorldFiles, tmp_path: Path) -> WorldFiles:
    """A folder with one good raster, an empty file and a text file."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    shutil.copy(files.image, folder / "good.tif")
    (folder / "empty.tif").touch()
    (folder / "text.tif").write_text("not a raster")
    return WorldFiles(folder / "*.tif", files.labels, files.classes, files.table)


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "deadletter.parquet").to_pylist()
    return found


def test_invalid_inputs_are_skipped_where_asked_for(mixed: WorldFiles, tmp_path: Path) -> None:
    """With --skip-invalid: the good input is done, the others are rows of the dead letter, exit 3, also when asked again."""
    out = tmp_path / "out"
    with pytest.raises(JobError, match="--skip-invalid leaves such inputs out") as e:
        run(mixed, out, **TILING)
    assert e.value.code is Exit.INVALID
    assert not out.exists()
    summary = run(mixed, out, skip_invalid=True, max_failures="20%", **TILING)
    assert summary.exit is Exit.QUARANTINED
    assert [f.plan.info.stem for f in summary.inputs] == ["good"]
    assert [(Path(r["source_uri"]).name, r["unit"], r["stage"]) for r in rows(out)] == [
        ("empty.tif", None, "header"),
        ("text.tif", None, "header"),
    ]
    assert all(r["message"] and r["attempts"] == 1 for r in rows(out))
    again = run(mixed, out, skip_invalid=True, max_failures="20%", **TILING)
    assert (again.exit, again.already_done) == (Exit.QUARANTINED, True)


def test_a_link_to_nowhere_is_a_row_until_its_share_is_back(mixed: WorldFiles, tmp_path: Path) -> None:
    """What cannot be reached behind a link is skipped as what cannot be opened, and done once it is there."""
    share, out = tmp_path / "share", tmp_path / "out"
    (mixed.image.parent / "link.tif").symlink_to(share / "far.tif")
    options = {"skip_invalid": True, "max_failures": "20%", **TILING}
    run(mixed, out, **options)
    assert [(Path(r["source_uri"]).name, r["stage"]) for r in rows(out)][1] == ("link.tif", "open")
    share.mkdir()
    shutil.copy(mixed.image.parent / "good.tif", share / "far.tif")
    run(mixed, out, **options)
    assert [Path(r["source_uri"]).name for r in rows(out)] == ["empty.tif", "text.tif"]


def test_an_input_that_was_mended_is_done_by_the_same_command(mixed: WorldFiles, tmp_path: Path) -> None:
    """The skipped input becomes readable: it alone is run, and its row goes; broken again, its files go."""
    out = tmp_path / "out"
    options = {"skip_invalid": True, "max_failures": "20%", **TILING}
    first = run(mixed, out, **options)
    text = mixed.image.parent / "text.tif"
    shutil.copy(mixed.image.parent / "good.tif", text)
    second = run(mixed, out, **options)
    assert second.metrics["units_run"] == first.metrics["units"]
    assert [Path(r["source_uri"]).name for r in rows(out)] == ["empty.tif"]
    assert len(list(out.glob("rasters/*/*.segments.tif"))) == 2
    text.write_text("not a raster")
    assert run(mixed, out, **options).exit is Exit.QUARANTINED
    assert len(list(out.glob("rasters/*/*.segments.tif"))) == 1
    assert panoptile("verify", out) == 0


def test_an_input_that_is_skipped_since_is_gone_from_the_whole_result(
    files: WorldFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was published once and is broken now: no table, picture, count or label of it is left, and no command
    stumbles over it; put back, it is published again from what is kept."""
    folder, out = tmp_path / "inputs", tmp_path / "out"
    folder.mkdir()
    for name in ("good", "bad"):
        shutil.copy2(files.image, folder / f"{name}.tif")
    pair = WorldFiles(folder / "*.tif", files.labels, files.classes, files.table)
    options = {"skip_invalid": True, "max_failures": "90%", **TILING}
    assert run(pair, out, **options).exit is Exit.DONE
    both = _names(out)
    (folder / "bad.tif").write_text("not a raster")
    assert run(pair, out, **options).exit is Exit.QUARANTINED
    assert _names(out) == {name for name in both if "bad" not in name}
    for command in ("verify", "preview", "status"):
        assert panoptile(command, out) == 0, command
    assert "16 of 16 done (100%)" in capsys.readouterr().out
    assert panoptile("report", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == 1
    shutil.copy2(files.image, folder / "bad.tif")
    summary = run(pair, out, **options)
    assert (summary.exit, summary.metrics["units_run"]) == (Exit.DONE, 0)
    assert _names(out) == both


def _names(out: Path) -> set[str]:
    """Files of the inputs, wherever they lie in the result."""
    folders = ("rasters", "segments", "tiles", "previews", "_state/results")
    return {p.relative_to(out).as_posix() for f in folders for p in (out / f).rglob("*") if p.is_file()}


def test_skipped_inputs_count_as_failures(mixed: WorldFiles, tmp_path: Path) -> None:
    """Two skipped inputs beside 16 units: allowed by --max-failures 2, refused with exit 4 by 1, before anything runs."""
    with pytest.raises(JobError, match="2 inputs cannot be segmented") as e:
        run(mixed, tmp_path / "out", skip_invalid=True, max_failures="1", **TILING)
    assert e.value.code is Exit.FAILED
    assert not (tmp_path / "out").exists()
    assert (
        run(mixed, tmp_path / "out", skip_invalid=True, max_failures="2", **TILING).exit is Exit.QUARANTINED
    )


def test_a_job_without_any_valid_input_is_refused(mixed: WorldFiles, tmp_path: Path) -> None:
    """Nothing is left to do: exit 2, even with --skip-invalid."""
    (mixed.image.parent / "good.tif").unlink()
    spec = JobSpec((str(mixed.image),), str(tmp_path / "out"), model=mixed.model, skip_invalid=True)
    with pytest.raises(JobError, match="empty") as e:
        prepare(spec)
    assert e.value.code is Exit.INVALID


def test_a_failed_tile_has_a_row_without_secrets(
    files: WorldFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One tile that cannot be read: its row tells stage, error, attempts, times and worker, and keeps the secret."""
    secret = "correct-horse-battery"
    monkeypatch.setenv("MY_SECRET_TOKEN", secret)
    real = RasterItems.read

    def unlucky(items: RasterItems, item: int) -> ItemRead:
        if item == 5:
            raise OSError(f"403 for https://user:{secret}@host/a.tif with {secret}")
        return real(items, item)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(RasterItems, "read", unlucky)
        summary = run(files, out, retries=1, max_failures="1", **TILING)
    assert summary.exit is Exit.QUARANTINED
    [row] = rows(out)
    assert row["tile"] in (5, None)
    assert (row["stage"], row["error_type"], row["attempts"]) == ("read", "OSError", 2)
    assert datetime.fromisoformat(row["first_at"]) <= datetime.fromisoformat(row["last_at"])
    assert row["worker"].startswith("local-")
    assert "unlucky" in row["traceback"]
    for path in out.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    with threads():
        assert panoptile("resume", out, "--retry-quarantined", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["units_run"] == 1
    assert not (out / "deadletter.parquet").exists()
