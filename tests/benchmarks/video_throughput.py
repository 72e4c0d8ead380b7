"""Frames a second of the whole video pipeline against the model alone, and against a plain loop of other tools.

    python -m tests.benchmarks.video_throughput [--frames 1000] [--plain]

The model sleeps for 20 ms a frame and answers with 24 segments and their embeddings, so that what is left is the
pipeline: decoding 640 x 360 H.264, encoding masks, committing, linking, writing the tables. ``--plain`` runs our network
and transformers' on a small random configuration: ours through the pipeline, theirs in a loop over decord.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from tests.pipeline.video_flow import finish, plan_video

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.driver import Listener, run_units
from panoptile.pipeline.layout import plan_key
from panoptile.pipeline.pool import LocalPool
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.replica import Frame, NetworkFactory, ReplicaFactory, TileBatch
from panoptile.pipeline.store import open_store
from panoptile.pipeline.video_finish import VideoProducts
from panoptile.pipeline.video_plan import default_unit_frames
from panoptile.pipeline.worker import WorkerSpec

HEIGHT, WIDTH, SEGMENTS, SLEEP_S = 360, 640, 24, 0.020
CLASSES = ClassTable.from_names(["thing", "ground"], {0})


@dataclass(frozen=True)
class Sleeping:
    """A model that takes its time and finds discs that move."""

    def __call__(self) -> SleepingReplica:
        return SleepingReplica()


class SleepingReplica:
    """Answers depend on the frame's number alone."""

    classes = CLASSES
    max_queries = 100
    fill = (0, 0, 0)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._embeddings = rng.normal(size=(SEGMENTS, 256)).astype(np.float16)
        self._maps = [_discs(t) for t in range(16)]

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        time.sleep(SLEEP_S * len(batch.frames))
        ids = np.array([1] + [0] * (SEGMENTS - 1), np.int32)
        scores = np.full(SEGMENTS, 0.9, np.float32)
        return [
            PanopticMap(self._maps[f.number % 16], ids, scores, SEGMENTS, embeddings=self._embeddings)
            for f in batch.frames
        ]


def _discs(t: int) -> NDArray[np.int32]:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    labels = np.ones((HEIGHT, WIDTH), np.int32)
    for i in range(2, SEGMENTS + 1):
        cy, cx = (i * 97 + t) % HEIGHT, (i * 53 + 2 * t) % WIDTH
        labels[(rows - cy) ** 2 + (cols - cx) ** 2 <= 30**2] = i
    return labels


def make_clip(path: Path, frames: int) -> None:
    """A 640 x 360 clip at 25 frames/s whose pictures move."""
    rng = np.random.default_rng(1)
    ground = (
        rng.integers(1, 250, (HEIGHT // 8 + 40, WIDTH // 8 + 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 50
        stream.codec_context.options = {"preset": "ultrafast", "x264-params": "open-gop=0"}
        for i in range(frames):
            at = i % 256
            picture = np.ascontiguousarray(ground[at : at + HEIGHT, at : at + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@dataclass(frozen=True)
class Timing:
    """Seconds of one run."""

    frames: int
    segment: float
    """Units: decoding, model, encoding, commits."""
    publish: float
    """Linking and tables."""
    segment_cpu: float
    publish_cpu: float
    """CPU seconds of this process: what remains comparable on a busy machine."""

    @property
    def fps(self) -> float:
        return self.frames / (self.segment + self.publish)


def pipeline(path: Path, out: Path, factory: ReplicaFactory) -> Timing:
    """Segment, link and publish a clip with one worker of this process; its start-up is not counted."""
    frames = len(plan_video(path, 1).frames)
    plan = plan_video(path, default_unit_frames(frames))
    store = open_store(out)
    store.put_bytes(plan_key(plan.key), plan.to_json())
    classes = factory().classes
    pool = LocalPool(WorkerSpec(str(out), factory), 1)
    pool.start()
    try:
        started, cpu = time.perf_counter(), time.process_time()
        run_units(pool, store, list(plan.units()), Policy(), listener=Listener())
        segmented, between = time.perf_counter(), time.process_time()
        finish(store, plan, classes, VideoProducts(preview=False))
        return Timing(
            frames,
            segmented - started,
            time.perf_counter() - segmented,
            between - cpu,
            time.process_time() - between,
        )
    finally:
        pool.close()


def model_alone(frames: int) -> float:
    """Seconds that the sleeping model takes for so many frames and nothing else."""
    replica = SleepingReplica()
    batch = TileBatch(np.zeros((1, 3, HEIGHT, WIDTH), np.uint8), (), (Frame(0, 0.0),))
    started = time.perf_counter()
    for _ in range(frames):
        replica.segment(batch)
    return time.perf_counter() - started


def overhead(folder: Path, frames: int) -> None:
    """Print the pipeline's overhead over the sleeping model."""
    make_clip(folder / "clip.mp4", frames)
    run = pipeline(folder / "clip.mp4", folder / "out", Sleeping())
    alone = model_alone(frames)
    print(
        f"{frames} frames {WIDTH}x{HEIGHT}, {1000 * SLEEP_S:.0f} ms model: model alone {frames / alone:.2f} frames/s, "
        f"end to end {run.fps:.2f} frames/s, overhead {100 * ((run.segment + run.publish) / alone - 1):.1f} % "
        f"(segment {run.segment:.2f} s, link and publish {run.publish:.2f} s, model {alone:.2f} s; CPU a frame: "
        f"segment {1000 * run.segment_cpu / frames:.2f} ms beside the model, link and publish "
        f"{1000 * run.publish_cpu / frames:.2f} ms after it)"
    )


def against_a_plain_loop(folder: Path, frames: int) -> None:
    """Print frames/s of ours through the pipeline and of transformers in a loop over decord."""
    import torch
    import transformers

    torch.set_num_threads(1)
    make_clip(folder / "plain.mp4", frames)
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=32,
            depths=[2, 2, 2, 2],
            num_heads=[1, 2, 4, 8],
            window_size=7,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        dim_feedforward=128,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_queries=50,
        num_labels=5,
    )
    torch.manual_seed(0)
    theirs = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    theirs.save_pretrained(folder / "checkpoint")
    labels = [{"name": f"class {i}", "is_thing": i < 3} for i in range(5)]
    (folder / "labels.json").write_text(json.dumps(labels))
    run = pipeline(
        folder / "plain.mp4",
        folder / "out-plain",
        NetworkFactory(
            str(folder / "checkpoint"), labels=str(folder / "labels.json"), score_threshold=0.3, device="cpu"
        ),
    )
    seconds = _plain_loop(folder / "plain.mp4", theirs)
    print(
        f"{frames} frames, small random network on one CPU thread: plain loop (decord + transformers, maps alone) "
        f"{frames / seconds:.2f} frames/s, panoptile (tracks and tables) {run.fps:.2f} frames/s, "
        f"ratio {run.fps * seconds / frames:.2f}"
    )


def _plain_loop(path: Path, network: object) -> float:
    """Seconds of decord + transformers: decode, preprocess, forward, panoptic post-processing; nothing is kept."""
    import decord
    import torch
    import transformers

    processor = transformers.Mask2FormerImageProcessor(do_resize=False)
    started = time.perf_counter()
    with torch.inference_mode():
        for frame in decord.VideoReader(str(path), num_threads=1):
            pixels = processor(images=frame.asnumpy(), return_tensors="pt")
            output = network(**pixels)  # type: ignore[operator]
            processor.post_process_panoptic_segmentation(
                output, threshold=0.3, target_sizes=[(HEIGHT, WIDTH)], label_ids_to_fuse=set()
            )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--plain", action="store_true", help="compare with a plain loop, on 60 frames")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.plain:
            against_a_plain_loop(Path(name), 60)
        else:
            overhead(Path(name), arguments.frames)


if __name__ == "__main__":
    main()
