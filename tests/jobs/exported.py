"""What tests of exports share: one finished run, joining its exported images again, and other libraries' Pythons."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.jobs.runs import arrays, run, write_world
from tests.pipeline.worlds import make_world

from panoptile.pipeline.raster_info import NODATA_ID

SHAPE = (150, 200)
SIDE = 64
"""Of the exported images: objects are cut, and the last row and column of images are smaller."""

Ints = NDArray[np.int64]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of one small run with holes, objects longer than an image, void, and a corner without input."""
    folder = tmp_path_factory.getbasetemp() / "exported"
    if not folder.exists():
        world = make_world(seed=5, height=SHAPE[0], width=SHAPE[1])
        world.valid[:70, :70] = False
        world.labels[~world.valid] = 0
        world.classes[~world.valid] = 0
        run(write_world(world, folder), folder / "out", tile=128, overlap=32)
    return folder / "out"


def truth(out: Path) -> tuple[Ints, Ints]:
    """(segment ids, class ids) of the run's rasters, 0 for void and for no input."""
    segments, classes = arrays(out)
    seen = segments != NODATA_ID
    return np.where(seen, segments, 0).astype(np.int64), np.where(seen, classes, 0).astype(np.int64)


def joined(images: Iterable[Mapping[str, Any]]) -> tuple[Ints, Ints]:
    """(segment ids, class ids) of all images put together.

    Each image is ``{"place": (row, col), "segments": [(segment id, class id, mask (H, W)), …]}``; fails where two
    masks share a pixel.
    """
    whole = np.zeros((2, *SHAPE), np.int64)
    for image in images:
        row, col = image["place"]
        for segment_id, class_id, mask in image["segments"]:
            place = whole[:, row : row + mask.shape[0], col : col + mask.shape[1]]
            inside = np.asarray(mask, np.bool_)
            assert not place[0][inside].any(), "masks overlap"
            place[0][inside], place[1][inside] = segment_id, class_id
    return whole[0], whole[1]


def place_of(file_name: str) -> tuple[int, int]:
    """(row, col) of an image by its name."""
    _, row, col = Path(file_name).stem.rsplit("_", 2)
    return int(row), int(col)


def python_with(module: str, variable: str) -> str:
    """A Python that has ``module``: the one that ``variable`` names, or this one; skips where there is neither."""
    named = os.environ.get(variable)
    if named:
        return named
    if importlib.util.find_spec(module) is None:
        pytest.skip(
            f"{module} is not installed and {variable} names no Python that has it: NOT read back by {module}"
        )
    return sys.executable


def answer(python: str, script: str, *args: object, timeout: float = 300, **variables: str) -> Any:
    """The JSON that ``script`` prints as its last line; ``variables`` are added to its environment."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(
        [python, "-c", script, *map(str, args)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
