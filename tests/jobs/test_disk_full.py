"""A disk that fills up: exit 4 with one sentence, nothing published, and the same bytes once there is room."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from tests.jobs.runs import WorldFiles, published, run, write_world
from tests.pipeline.worlds import make_world

from panoptile.jobs.exits import Exit, JobError

TILING = {"tile": 80, "overlap": 24}
Mount = Callable[[str, str], Path]


def _mount(options: str, folder: Path) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a small file system in memory; calling it again with the same name gives it another size."""
    mounted: list[Path] = []

    def make(name: str, size: str) -> Path:
        folder = tmp_path / name
        if folder in mounted:
            subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
            return folder
        folder.mkdir()
        if not _mount(f"size={size}", folder):
            pytest.skip("mounting a tmpfs is not permitted here: a full disk is NOT tested")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    return write_world(make_world(45, 200, 210), tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def calm(world: WorldFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("calm") / "out"
    run(world, out, **TILING)
    return published(out)


UNITS = 16


@pytest.mark.parametrize(
    ("size", "commits"),
    [("16k", range(1)), ("90k", range(1, UNITS)), ("180k", range(UNITS, UNITS + 1))],
    ids=["before", "among", "after the units"],
)
def test_a_full_output_disk(
    world: WorldFiles, calm: dict[str, str], mount: Mount, size: str, commits: range
) -> None:
    """Full before the first unit, among the units, while publishing: exit 4, no _SUCCESS; then the same bytes."""
    disk = mount("disk", size)
    with pytest.raises(JobError, match="No space left") as e:
        run(world, disk / "out", **TILING)
    assert e.value.code is Exit.FAILED
    assert "\n" not in str(e.value)
    assert not (disk / "out" / "_SUCCESS.json").exists()
    assert not (disk / "out" / "manifest.parquet").exists()
    assert published(disk / "out").items() <= calm.items()
    assert len(list((disk / "out").glob("_state/commits/*"))) in commits  # it was full when it was to be
    mount("disk", "32m")
    assert run(world, disk / "out", **TILING).exit is Exit.DONE
    assert published(disk / "out") == calm


def test_a_full_scratch_disk(world: WorldFiles, calm: dict[str, str], mount: Mount, tmp_path: Path) -> None:
    """No room for scratch files: exit 4 says where they go, nothing is published; then the same bytes."""
    scratch = mount("scratch", "64k")
    with (
        mock.patch.object(tempfile, "tempdir", str(scratch)),
        pytest.raises(JobError, match="scratch files go to") as e,
    ):
        run(world, tmp_path / "out", **TILING)
    assert e.value.code is Exit.FAILED
    assert not (tmp_path / "out" / "rasters").exists()
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    assert run(world, tmp_path / "out", **TILING).exit is Exit.DONE
    assert published(tmp_path / "out") == calm
