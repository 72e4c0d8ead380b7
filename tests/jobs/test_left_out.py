"""``status`` and ``logs`` name what is missing from a result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.runs import WorldFiles, run, write_world
from tests.jobs.test_job_status import invoked
from tests.pipeline.worlds import make_world

from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.left_out import NAMED, SHOWN, LeftOut, left_out_lines, log_skipped
from panoptile.jobs.prepare import SkippedInput
from panoptile.pipeline.raster_input import RasterItems
from panoptile.pipeline.unit_input import ItemRead

TILING: dict[str, Any] = {"tile": 80, "overlap": 24}
BAD_TILE = 5


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile of every raster cannot be read."""
    real = RasterItems.read

    def read(items: RasterItems, item: int) -> ItemRead:
        if item == BAD_TILE:
            raise OSError("the sector is broken")
        return real(items, item)

    monkeypatch.setattr(RasterItems, "read", read)


@pytest.fixture
def mixed(tmp_path: Path) -> WorldFiles:
    """A folder with one good raster and two that are none, one of them with a name that would forge lines."""
    world = write_world(make_world(46, 200, 210), tmp_path / "world")
    folder = tmp_path / "inputs"
    folder.mkdir()
    shutil.copy(world.image, folder / "good.tif")
    (folder / "empty.tif").touch()
    (folder / "te\nxt.tif").write_text("not a raster")
    return WorldFiles(folder / "*.tif", world.labels, world.classes, world.table)


@pytest.mark.usefixtures("unlucky")
def test_a_run_with_failures_names_them(mixed: WorldFiles, tmp_path: Path) -> None:
    """Skipped inputs and tiles that were given up: in status for people and in JSON, and as events of the log."""
    out = str(tmp_path / "out")
    options = {"skip_invalid": True, "max_failures": "50%", "retries": 0, **TILING}
    assert run(mixed, tmp_path / "out", **options).exit is Exit.QUARANTINED
    text = invoked("status", out).stdout
    for words in (
        "empty.tif is empty",
        "not a raster",
        f"(read) OSError: read at tile {BAD_TILE}: the sector is broken",
    ):
        assert words in text, text
    assert len(text.splitlines()) == 7  # a name with a line break stays on its line
    fields = json.loads(invoked("status", out, "--json").stdout)
    assert fields["skipped"]["count"] == len(fields["skipped"]["inputs"]) == 2
    assert all(Path(i["source_uri"]).parent == mixed.image.parent for i in fields["skipped"]["inputs"])
    [item] = fields["quarantined"]["items"]
    assert (item["error_type"], item["stage"], fields["quarantined"]["count"]) == ("OSError", "read", 1)
    events = [json.loads(line) for line in invoked("logs", out, "--json").stdout.splitlines()]
    assert [e["event"] for e in events].count("skip") == 2
    [given_up] = [e for e in events if e["event"] == "quarantine"]
    assert (given_up["unit"], given_up["tile"]) == (item["unit"], item["tile"])
    assert "quarantine" in invoked("logs", out, "--unit", item["unit"]).stdout


@pytest.mark.usefixtures("unlucky")
def test_a_run_that_failed_names_its_units(mixed: WorldFiles, tmp_path: Path) -> None:
    """Exit 4 leaves no dead letter: the units without a result and their last errors come from the attempts."""
    with pytest.raises(JobError) as e:
        run(mixed, tmp_path / "out", skip_invalid=True, max_failures="2", retries=0, **TILING)
    assert e.value.code is Exit.FAILED
    fields = json.loads(invoked("status", str(tmp_path / "out"), "--json").stdout)
    assert fields["state"] == "failed"
    assert fields["quarantined"]["count"] == fields["failed"] > 0
    assert "the sector is broken" in fields["quarantined"]["items"][0]["message"]
    assert "the sector is broken" in invoked("status", str(tmp_path / "out")).stdout


def test_a_long_list_is_counted() -> None:
    """People see the first few and how many more there are; the log is bounded too."""
    rows = tuple({"message": f"{n}.tif is empty"} for n in range(SHOWN + 7))
    lines = left_out_lines(LeftOut(4000, rows))
    assert len(lines) == SHOWN + 1
    assert f"and {4000 - SHOWN:,} more" in lines[-1]
    assert left_out_lines(LeftOut()) == []
    told: list[dict[str, Any]] = []
    log: Any = type("Log", (), {"add": lambda self, event, **fields: told.append(fields)})()
    log_skipped(log, [SkippedInput(f"{n}.tif", "open", "OSError", "gone") for n in range(NAMED + 3)])
    assert (len(told), told[-1]) == (NAMED + 1, {"more": 3})
