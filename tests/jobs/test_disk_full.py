"""A disk that fills up: exit 4 with one sentence, nothing published, and the same bytes once there is room."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from tests.jobs.runs import WorldFiles, published, run

from panoptile.jobs.exits import Exit, JobError

WORLD = (45, 200, 210)
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


UNITS = 16


@pytest.mark.parametrize(
    ("size", "commits"),
    [("16k", range(1)), ("90k", range(1, UNITS)), ("180k", range(UNITS, UNITS + 1))],
    ids=["before", "among", "after the units"],
)
def test_a_full_output_disk(
    files: WorldFiles, calm_tree: dict[str, str], mount: Mount, size: str, commits: range
) -> None:
    """Full before the first unit, among the units, while publishing: exit 4, no _SUCCESS; then the same bytes."""
    disk = mount("disk", size)
    with pytest.raises(JobError, match="No space left") as e:
        run(files, disk / "out", **TILING)
    assert e.value.code is Exit.FAILED
    assert "\n" not in str(e.value)
    assert not (disk / "out" / "_SUCCESS.json").exists()
    assert not (disk / "out" / "manifest.parquet").exists()
    assert published(disk / "out").items() <= calm_tree.items()
    assert len(list((disk / "out").glob("_state/commits/*"))) in commits  # it was full when it was to be
    mount("disk", "32m")
    assert run(files, disk / "out", **TILING).exit is Exit.DONE
    assert published(disk / "out") == calm_tree


def test_a_full_scratch_disk(
    files: WorldFiles, calm_tree: dict[str, str], mount: Mount, tmp_path: Path
) -> None:
    """No room for scratch files: exit 4 says where they go, nothing is published; then the same bytes."""
    scratch = mount("scratch", "64k")
    with (
        mock.patch.object(tempfile, "tempdir", str(scratch)),
        pytest.raises(JobError, match="scratch files go to") as e,
    ):
        run(files, tmp_path / "out", **TILING)
    assert e.value.code is Exit.FAILED
    assert not (tmp_path / "out" / "rasters").exists()
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    assert run(files, tmp_path / "out", **TILING).exit is Exit.DONE
    assert published(tmp_path / "out") == calm_tree
