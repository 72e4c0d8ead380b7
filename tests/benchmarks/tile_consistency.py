"""How much a result depends on the size of the tiles: one raster segmented twice, compared with itself and the truth.

Run: ``python tests/benchmarks/tile_consistency.py [--tiles 512 768] [--overlap 128] [--model builtin] [--out FOLDER]``.
PANOPTILE_TEST_DATA names the folder with Banepa. Prints self-PQ of the things of both tilings, and for each tiling the
recall of true buildings that lie on a seam against those that do not. Finished runs in FOLDER are used again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoptile.jobs.compare import compare, compare_text
from panoptile.jobs.console import Console
from panoptile.jobs.finished_run import FinishedRun, open_run
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.count_labels import count_labels, described
from panoptile.pipeline.label_source import LabelMeaning, LabelRaster
from panoptile.pipeline.overlaps import overlaps
from panoptile.pipeline.seam_quality import Seams
from panoptile.pipeline.window import Window

CLASS = "building"


def objects_on_seams(labels: NDArray[np.int64], seams: Seams) -> NDArray[np.int64]:
    """Labels (H, W) that own pixels on both sides of a seam."""
    on: list[NDArray[np.int64]] = []
    for lines, view in ((seams.rows, labels), (seams.cols, labels.T)):
        inside = lines[(lines > 0) & (lines < len(view))]
        same = view[inside - 1] == view[inside]
        on.append(np.unique(view[inside][same]))
    return np.unique(np.concatenate(on))


def recall(run: FinishedRun, truth: LabelRaster) -> str:
    """Share of the true objects found at IoU > 0.5: on seams, off seams, and off seams weighted to equal sizes."""
    (plan,) = run.rasters
    found = run.raster(plan.info, {run.classes.by_name(CLASS).class_id: 1})
    pairs = count_labels(truth, found)
    shared = overlaps(pairs, *described(pairs, truth, found))
    hit = np.zeros(len(shared.truth_areas), np.bool_)
    hit[shared.pair_truth[shared.iou > 0.5]] = True
    whole = truth.read(Window(0, 0, *truth.shape))
    on = np.isin(shared.truth.labels, objects_on_seams(whole, Seams.of(plan.grid)))
    areas = shared.truth_areas
    # objects on seams are larger than others, and larger ones are found oftener: compare equal sizes
    edges = np.quantile(areas, np.linspace(0, 1, 6))
    bins = np.clip(np.searchsorted(edges, areas, side="right") - 1, 0, 4)
    rates = np.array([hit[~on & (bins == b)].mean() if (~on & (bins == b)).any() else 0.0 for b in range(5)])
    matched = float(rates[bins[on]].mean()) if on.any() else 0.0
    return (
        f"tile {plan.tile}: recall on seams {hit[on].mean():.3f} ({hit[on].sum()}/{on.sum()}), off seams "
        f"{hit[~on].mean():.3f} ({hit[~on].sum()}/{(~on).sum()}), off seams at the sizes of those on seams {matched:.3f}"
    )


def main() -> None:
    """Segment, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, nargs=2, default=(512, 768))
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    banepa = Path(os.environ["PANOPTILE_TEST_DATA"]) / "banepa"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.out or scratch)
        outs = []
        for tile in options.tiles:
            outs.append(str(folder / f"tile{tile}"))
            spec = JobSpec(
                (str(banepa / "banepa_rgb_cog.tif"),), outs[-1], model=options.model, tile=tile,
                overlap=options.overlap, local=True, workers=1,
            )  # fmt: skip
            run_job(prepare(spec), Console())
        print(compare_text(compare(outs[0], outs[1], Console(quiet=True))))
        meaning = LabelMeaning({}, frozenset({1}), single=1)
        truth = LabelRaster(meaning, objects=str(banepa / "banepa_instances_cog.tif"), classes=None)
        for out in outs:
            print(recall(open_run(out, Path(scratch)), truth))


if __name__ == "__main__":
    main()
