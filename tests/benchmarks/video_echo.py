"""Tracks through a fly-over whose truth is known: an echo of the truth with perturbed masks and bent embeddings.

    PANOPTILE_TEST_DATA=… python -m tests.benchmarks.video_echo [--sweep]

Per frame and building the echo shifts the mask by up to two pixels, may drop it (8 %), may cut it in two (4 %), and adds
a random part to the embedding of the object; "by overlap" gives no embeddings. Everything behind the network is the real thing: decoding, units, linking,
tables; the scores are STQ and VPQ of what was published. ``--sweep`` varies each linking option alone: nothing is
segmented again for it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.benchmarks.flyover import CLIP, Scores, score, true_frames
from tests.pipeline.video_flow import plan_video, run_units

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.link_options import LinkOptions
from panoptile.pipeline.replica import TileBatch
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store import Store
from panoptile.pipeline.video_echo import echo_frame
from panoptile.pipeline.video_link import VideoFragments, link_video
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_publish import publish_video

CLASSES = ClassTable.from_names(["building", "ground"], {0})
GROUND = 60_000
UNIT_FRAMES = 20
SWEEP: dict[str, Sequence[float | str]] = {
    "max_age": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
    "match_threshold": (0.3, 0.5, 0.7, 0.9, 1.1, 1.5),
    "iou_weight": (0.0, 0.25, 0.5, 1.0, 2.0),
    "class_weight": (0.0, 0.3, 1.0),
    "min_cosine": (0.0, 0.3, 0.5, 0.7, 0.9),
    "min_iou": (0.0, 0.1, 0.3, 1.0),
    "birth_score": (0.0, 0.5, 1.0),
    "scene_cut": (0.0, 0.5, 1.0),
}


@dataclass(frozen=True)
class PerturbedEcho:
    """Builds the replica; ``labels_path`` is a .npy of (frames, H, W) building ids."""

    labels_path: str
    noise: float | None
    """Random part of the embeddings; None: there are none."""

    def __call__(self) -> PerturbedReplica:
        return PerturbedReplica(self)


class PerturbedReplica:
    """The truth, shifted, with holes and cuts; what a frame gives depends on its number alone."""

    classes = CLASSES
    max_queries = 0
    fill = (0, 0, 0)

    def __init__(self, factory: PerturbedEcho) -> None:
        self._labels = np.load(factory.labels_path, mmap_mode="r")
        self._noise = factory.noise

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        return [self._frame(frame.number) for frame in batch.frames]

    def _frame(self, number: int) -> PanopticMap:
        labels = perturbed(np.asarray(self._labels[number]), np.random.default_rng([5, number]))
        classes = np.where(labels == GROUND, 2, 1)
        # the halves of a cut building have the embedding of the whole: as two queries on one object would
        noise = 0.0 if self._noise is None else self._noise
        frame = echo_frame(labels, classes, labels.shape, number, noise, same_as=lambda i: i % 10_000)
        return replace(frame, embeddings=None) if self._noise is None else frame


def perturbed(truth: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """(H, W) building ids with everything else ground; the second half of a cut building has its id + 10,000."""
    out = np.full(truth.shape, GROUND, np.int32)
    ids = np.unique(truth[truth > 0])
    rng.shuffle(ids)
    for i in ids.tolist():
        rows, cols = np.nonzero(truth == i)
        shift = rng.integers(-2, 3, 2)
        dropped, cut = rng.random(2) < (0.08, 0.04)
        if dropped:
            continue
        label = np.where(cut & (cols > np.median(cols)), i + 10_000, i)
        rows, cols = rows + shift[0], cols + shift[1]
        inside = (rows >= 0) & (rows < truth.shape[0]) & (cols >= 0) & (cols < truth.shape[1])
        out[rows[inside], cols[inside]] = label[inside]
    return out


@dataclass(frozen=True)
class Segmented:
    """A run whose units are done; it can be linked any number of times."""

    store: Store
    plan: VideoPlan
    truth: dict[int, NDArray[np.int32]]

    def scores(self, options: LinkOptions) -> Scores:
        """Link, publish into scratch, score."""
        with tempfile.TemporaryDirectory() as folder:
            fragments = VideoFragments(self.store, self.plan)
            linked = link_video(fragments, frozenset({1}), options, Path(folder) / "ids")
            published = publish_video(
                fragments, linked, CLASSES, NodeFilter(), options.min_hits, Path(folder)
            )
            return score(self.truth, published.masks)


def segmented(data: Path, folder: Path, *, noise: float | None, every: int) -> Segmented:
    """Run the perturbed echo over the clip."""
    labels = np.stack(list(true_frames(data)))
    np.save(folder / "truth.npy", labels)
    plan = plan_video(data / CLIP, UNIT_FRAMES, every=every)
    store = run_units(folder / f"out-{noise}-{every}", plan, PerturbedEcho(str(folder / "truth.npy"), noise))
    return Segmented(store, plan, dict(enumerate(labels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="vary each linking option")
    arguments = parser.parse_args()
    data = Path(os.environ["PANOPTILE_TEST_DATA"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for every, noise in (
            (1, 0.5),
            (1, 1.0),
            (4, 0.5),
            (4, 1.0),
            (1, None),
            (2, None),
            (4, None),
            (8, None),
        ):
            run = segmented(data, folder, noise=noise, every=every)
            by = "by overlap" if noise is None else f"noise {noise:g}"
            for motion in (True, False):
                scores = run.scores(LinkOptions(camera_motion=motion))
                print(f"every {every}, {by}, camera motion {motion}: {scores}", flush=True)
            if arguments.sweep:
                sweep(run)


def sweep(run: Segmented) -> None:
    """Print the scores for each value of each option, the others as by default."""
    for option, values in SWEEP.items():
        for value in values:
            scores = run.scores(replace(LinkOptions(), **{option: value}))  # type: ignore[arg-type]
            print(f"  {option:<16} {value:<5} {scores}", flush=True)


if __name__ == "__main__":
    main()
