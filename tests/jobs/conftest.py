"""What many tests of whole jobs share: the world of their module, a run of it that nothing disturbed, a growing folder.

A module that uses ``files`` says which world it wants, as ``WORLD = (seed, height, width)``; one that uses ``calm`` also says
how the run cuts it, as ``TILING = {"tile": …, "overlap": …}``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.jobs.nights import Nights
from tests.jobs.runs import WorldFiles, published, run, write_world
from tests.pipeline.worlds import make_world


@pytest.fixture(scope="module")
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    """The module's WORLD as rasters on disk; tests only read them."""
    seed, height, width = request.module.WORLD
    return write_world(make_world(seed, height, width), tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def calm(request: pytest.FixtureRequest, files: WorldFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a run over the module's world that nothing disturbed; tests only read it."""
    out = tmp_path_factory.mktemp("calm") / "out"
    run(files, out, **request.module.TILING)
    return out


@pytest.fixture(scope="module")
def calm_tree(calm: Path) -> dict[str, str]:
    """sha256 of every file that the calm run published: what any other run must end with."""
    return published(calm)


@pytest.fixture
def finished(calm: Path, tmp_path: Path) -> Path:
    """A copy of the calm run's OUT, to damage or to go on with."""
    return shutil.copytree(calm, tmp_path / "out")


@pytest.fixture
def nights(files: WorldFiles, tmp_path: Path) -> Nights:
    """A folder of sheets, each the module's world, and the job that runs over it every night."""
    return Nights(files, tmp_path)
