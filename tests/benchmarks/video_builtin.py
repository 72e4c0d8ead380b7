"""The built-in model's tracks over the fly-over whose truth is known, with and without the motion of the picture.

    PANOPTILE_TEST_DATA=… python -m tests.benchmarks.video_builtin [--every 1 2 4 8]

Runs the command as a user does, then ``relink --no-camera-motion`` on what was segmented; prints STQ and VPQ of the
buildings, tracks, and of successive frames in which a building was found how many keep its track.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.benchmarks.flyover import CLIP, score, true_frames

from panoptile.pipeline.video_tables import read_masks

FOUND_IOU = 0.4
"""IoU from which a building counts as found in a frame."""


def panoptile(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "panoptile", *words, "--quiet"], check=True)


def links(truth: dict[int, NDArray[np.int32]], masks: Path, class_id: int) -> tuple[int, int, int]:
    """(pairs of successive frames in which a building was found, those that keep its track, false ones)."""
    pairs = kept = wrong = 0
    before: dict[int, int] = {}
    for frame in read_masks(masks):
        now = _found(truth[frame.frame], np.where(frame.class_map() == class_id, frame.labels(), 0))
        common = before.keys() & now.keys()
        pairs += len(common)
        kept += sum(before[b] == now[b] for b in common)
        owners = {track: building for building, track in before.items()}
        wrong += sum(owners.get(track, building) != building for building, track in now.items())
        before = now
    return pairs, kept, wrong


def _found(truth: NDArray[np.int32], tracks: NDArray[np.int32]) -> dict[int, int]:
    """Building -> the track whose mask has an IoU of at least ``FOUND_IOU`` with it."""
    keys, pixels = np.unique(np.stack([truth.ravel(), tracks.ravel()]), axis=1, return_counts=True)
    areas = [dict(zip(*np.unique(side, return_counts=True), strict=True)) for side in (truth, tracks)]
    best: dict[int, tuple[float, int]] = {}
    for (building, track), common in zip(keys.T.tolist(), pixels.tolist(), strict=True):
        if building and track:
            iou = common / (areas[0][building] + areas[1][track] - common)
            if iou >= FOUND_IOU and iou > best.get(building, (0.0, 0))[0]:
                best[building] = iou, track
    return {building: track for building, (_, track) in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 4, 8])
    given = parser.parse_args()
    data = Path(os.environ["PANOPTILE_TEST_DATA"])
    truth = dict(enumerate(true_frames(data)))
    for every in given.every:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            place = str(out)
            panoptile(
                "segment", str(data / CLIP), "-o", place, "--every", str(every), "--local", "--workers", "1"
            )
            names = {c["name"]: c["class_id"] for c in json.loads((out / "classes.json").read_text())}
            [masks] = out.glob("video/*/masks.parquet")
            for motion in (True, False):
                if not motion:
                    panoptile("relink", place, "--no-camera-motion")
                pairs, kept, wrong = links(truth, masks, names["building"])
                print(
                    f"every {every}, camera motion {motion}: {score(truth, masks, names['building'])}; "
                    f"{kept} of {pairs} links kept, {wrong} false",
                    flush=True,
                )


if __name__ == "__main__":
    main()
