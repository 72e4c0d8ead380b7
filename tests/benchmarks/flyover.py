"""The fly-over clip of the test data with its exact truth, and how a run over it is scored.

Frame i of the clip shows rows 300 + 9 i … and columns 200 + 15 i … of the raster, every second pixel of 720 x 1280, so
the raster of hand-drawn buildings gives every building's exact track.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)
from panoptile.pipeline.contingency import BACKGROUND, VOID, Contingency, Labels, PairCounter, segments_of
from panoptile.pipeline.overlaps import ScoredClass, SegmentLabels
from panoptile.pipeline.segmentation_tracking_quality import SegmentationTrackingQuality
from panoptile.pipeline.video_quality import VideoPanopticQuality
from panoptile.pipeline.video_tables import read_masks

import rasterio  # isort: skip  (after gdal_env)
from rasterio.windows import Window  # isort: skip

CLIP = "video/banepa_flyover_24fps.mp4"
FRAMES, HEIGHT, WIDTH = 96, 360, 640
BUILDING = ScoredClass(1, "building", True)


def true_frames(data: Path) -> Iterator[NDArray[np.int32]]:
    """(360, 640) building ids of each of the 96 frames; 0 elsewhere."""
    with rasterio.open(data / "banepa" / "banepa_instances_cog.tif") as src:
        for i in range(FRAMES):
            window = Window(200 + 15 * i, 300 + 9 * i, 2 * WIDTH, 2 * HEIGHT)
            yield src.read(1, window=window)[::2, ::2].astype(np.int32)


@dataclass(frozen=True)
class Scores:
    """0-1, of buildings."""

    stq: float
    aq: float
    vpq: float
    by_window: dict[int, float]
    tracks_true: int
    tracks_found: int

    def __str__(self) -> str:
        windows = " ".join(f"k={k} {100 * v:.1f}" for k, v in self.by_window.items())
        return (
            f"STQ {100 * self.stq:5.1f}  AQ {100 * self.aq:5.1f}  VPQ {100 * self.vpq:5.1f} ({windows})  "
            f"tracks {self.tracks_found} (true {self.tracks_true})"
        )


def score(truth: dict[int, NDArray[np.int32]], masks: Path, class_id: int = 1) -> Scores:
    """Score the buildings of a ``masks.parquet``; ``truth`` is by frame number. What is not a building is background."""
    quality = VideoPanopticQuality([BUILDING])
    tracking = SegmentationTrackingQuality([BUILDING])
    quality.start_video(_buildings, _buildings)
    tables: list[Contingency] = []
    for frame in read_masks(masks):
        counter = PairCounter()
        true_map = truth[frame.frame].astype(np.int64)
        found = np.where(frame.class_map() == class_id, frame.labels(), VOID).astype(np.int64)
        counter.add(np.where(true_map > 0, true_map, BACKGROUND), found)
        tables.append(counter.result())
        quality.add_frame(tables[-1])
    pairs = Contingency.merged(tables)
    sides = [_buildings(_named(np.unique(side))) for side in (pairs.truth, pairs.found)]
    tracking.add(pairs, *sides)
    video, result = quality.result(), tracking.result()
    windows = {k: scores.all.pq for k, scores in video.windows.items()}
    return Scores(result.stq, result.aq, video.all, windows, result.tracks, len(sides[1].labels))


def _named(labels: Labels) -> Labels:
    return segments_of(labels)


def _buildings(labels: Labels) -> SegmentLabels:
    return SegmentLabels.of(labels, np.full(len(labels), BUILDING.class_id))
