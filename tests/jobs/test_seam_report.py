"""Every run says how visible its tiles are: in metrics.json and in the last lines of segment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tests.jobs.runs import arrays, run, write_world
from tests.pipeline.worlds import make_world

from panoptile.jobs.seam_report import seam_fields, seam_line
from panoptile.pipeline import layout
from panoptile.pipeline.grid import TileGrid
from panoptile.pipeline.seam_quality import SeamCounter, SeamQuality, Seams
from panoptile.pipeline.window import Window


def test_a_run_counts_its_seams(tmp_path: Path) -> None:
    """The figures of metrics.json are those of the published raster, counted whole."""
    world = make_world(11, 210, 240)
    files = write_world(world, tmp_path)
    summary = run(files, tmp_path / "out", tile=96, overlap=32)
    published, classes = arrays(tmp_path / "out")
    class_of = np.zeros(int(published[classes != 255].max()), np.uint16)
    for segment in range(1, len(class_of) + 1):
        class_of[segment - 1] = classes[published == segment][0]
    counter = SeamCounter(Seams.of(TileGrid(210, 240, 96, 32)), class_of, class_of <= 2)
    counter.add(published, Window(0, 0, 210, 240))
    expected = counter.result()
    (finished,) = summary.inputs
    assert finished.seams == expected
    fields = json.loads((tmp_path / "out" / layout.METRICS).read_text())["seams"]
    assert fields == seam_fields([expected], finished.suspects)
    assert fields["discontinuity_ratio"] == expected.discontinuity
    assert fields["things"] == expected.things > 0


def test_the_line_for_people() -> None:
    """One line with the three figures; none where a raster is one tile."""
    quality = SeamQuality(100, 30, 1000, 100, 50, 2)
    line = seam_line(seam_fields([quality, SeamQuality()], 3))
    assert "discontinuity ratio 3.00" in line
    assert "40.0 per 1,000" in line
    assert "suspects 3" in line
    assert seam_line(seam_fields([SeamQuality(things=4)], 0)) == ""
    assert "no segment ends elsewhere" in seam_line(seam_fields([SeamQuality(10, 0, 10, 0, 1, 0)], 0))
