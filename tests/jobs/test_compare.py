"""``panoptile compare``: what changed between two runs, on maps small enough to be checked by eye."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.jobs.runs import run, write_world
from tests.pipeline.metric_cases import Segmentation, compared
from tests.pipeline.worlds import TABLE, World, make_world
from typer.testing import CliRunner

from panoptile.jobs.cli import app
from panoptile.jobs.compare import compare, compare_text
from panoptile.jobs.console import Console
from panoptile.jobs.exits import JobError
from panoptile.pipeline.segment_changes import Changes, thing_changes


def _changes(old: list[int], new: list[int], classes: dict[int, int] | None = None) -> Changes:
    named = classes or {}

    def segmentation(row: list[int]) -> Segmentation:
        return Segmentation(np.array([row]), {v: named.get(v, 1) for v in set(row) if v > 0})

    return thing_changes(compared(segmentation(old), segmentation(new)), frozenset({1, 2}))


def _by_label(changes: Changes) -> tuple[dict[int, str], dict[int, str]]:
    old = {int(i): str(c) for i, c in zip(changes.old, changes.old_changes, strict=True)}
    new = {int(i): str(c) for i, c in zip(changes.new, changes.new_changes, strict=True)}
    return old, new


def test_each_kind_of_change() -> None:
    """Kept, split, merged, relabelled, reshaped, gone and new things are told apart, each counted once."""
    assert _by_label(_changes([1, 1, 1, 1], [5, 5, 5, -1])) == ({1: "matched"}, {5: "matched"})
    assert _by_label(_changes([1, 1, 1, 1], [5, 5, 6, 6])) == ({1: "split"}, {5: "split", 6: "split"})
    assert _by_label(_changes([1, 1, 2, 2], [5, 5, 5, 5])) == ({1: "merged", 2: "merged"}, {5: "merged"})
    relabelled = _changes([1, 1, 1], [5, 5, 5], {5: 2})
    assert _by_label(relabelled) == ({1: "relabelled"}, {5: "relabelled"})
    gone = _changes([1, 1, -1, -1], [-1, -1, 5, 5])
    assert _by_label(gone) == ({1: "vanished"}, {5: "appeared"})
    grown = _changes([1, 1, 1, -1, -1, -1, -1, -1], [5, 5, 5, 5, 5, 5, 5, 5])
    assert _by_label(grown) == ({1: "reshaped"}, {5: "appeared"})
    unequal = _changes([1, 1, 1, 1, 1, 1], [5, 5, 5, 5, 6, 6])
    assert _by_label(unequal)[0] == {1: "split"}  # though the larger part alone would match


def test_counts_add_up(tmp_path: Path) -> None:
    """Every thing of either map has exactly one change."""
    rng = np.random.default_rng(0)
    a, b = (np.repeat(rng.integers(0, 9, 60), 3) for _ in range(2))
    changes = _changes(a.tolist(), (b + 20).tolist())
    counts = changes.counts()
    assert sum(counts["old"].values()) == len(changes.old)
    assert sum(counts["new"].values()) == len(changes.new)
    assert "appeared" not in counts["old"]
    assert "vanished" not in counts["new"]


def _edited(labels: NDArray[np.int64], world: World) -> World:
    """The world without its three largest houses."""
    houses, areas = np.unique(labels[world.classes == 1], return_counts=True)
    gone = np.isin(labels, houses[np.argsort(-areas)[:3]])
    return World(np.where(gone, 0, labels), np.where(gone, 0, world.classes), world.valid, TABLE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two tilings of one world, and a run over the same raster in which three houses are gone."""
    folder = tmp_path_factory.mktemp("runs")
    world = make_world(7, 160, 190, stuff=False)
    files = write_world(world, folder / "files")
    run(files, folder / "a", tile=96, overlap=32)
    run(files, folder / "b", tile=64, overlap=16)
    write_world(_edited(world.labels, world), folder / "files")
    run(files, folder / "c", tile=96, overlap=32)
    return folder / "a", folder / "b", folder / "c"


def test_two_tilings_of_an_echo_agree(runs: tuple[Path, Path, Path]) -> None:
    """Echoes with other tiles are the same map: self-PQ is 100 and nothing changed."""
    result = compare(str(runs[0]), str(runs[1]), Console(quiet=True))
    assert result.panoptic.things.pq == 1.0
    assert result.ratio == 1.0
    assert result.changes["old"]["matched"] == result.things("old") > 5
    assert result.km2 is not None
    assert result.km2 == pytest.approx(
        np.count_nonzero(make_world(7, 160, 190, stuff=False).valid) * 0.25 / 1e6, rel=0.01
    )


def test_what_is_gone_is_counted_and_drawn(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Three lost houses are vanished, in the table, in JSON and as GeoJSON features in degrees."""
    target = tmp_path / "changes.geojson"
    answer = CliRunner().invoke(
        app, ["compare", str(runs[0]), str(runs[2]), "--geojson", str(target), "--json", "-q"]
    )
    assert answer.exit_code == 0, answer.output
    fields = json.loads(answer.stdout)
    assert fields["changes"]["old"]["vanished"] == 3
    assert fields["changes"]["new"]["appeared"] == 0
    assert fields["things"]["ratio"] == fields["things"]["new"] / fields["things"]["old"] < 1
    features = json.loads(target.read_text())["features"]
    assert [f["properties"]["change"] for f in features if f["properties"]["run"] == "old"] == [
        "vanished"
    ] * 3
    x, y = features[0]["geometry"]["coordinates"][0][0][:2]
    assert (14 < x < 16, 30 < y < 40) == (True, True)
    text = compare_text(compare(str(runs[0]), str(runs[2]), Console(quiet=True)))
    assert "vanished" in text
    assert "per km²" in text


def test_runs_that_have_nothing_in_common(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Another raster, another grid or no run at all end with exit 2 and a sentence."""
    other = make_world(8, 100, 100, stuff=False)
    files = write_world(other, tmp_path / "files")
    run(files, tmp_path / "small", tile=64, overlap=16)
    with pytest.raises(JobError, match="different grids"):
        compare(str(runs[0]), str(tmp_path / "small"), Console(quiet=True))
    with pytest.raises(JobError, match="holds no finished run"):
        compare(str(runs[0]), str(tmp_path), Console(quiet=True))
