"""End to end against what a user does today: a loop over transformers tiles, pasted with numpy.

Run: ``python tests/benchmarks/throughput.py [--size 1280]``. The same Swin-T checkpoint (seeded random weights,
every query kept, so that post-processing has its full work), the same raster, tiles and threads, one process
after the other in one run. The loop pastes tile cores with running ids and merges nothing; panoptile also
stitches and writes COGs and GeoParquet. Prints seconds per stage and the end-to-end ratio.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from tests.benchmarks.fakes import synthetic_raster

from panoptile.jobs.console import Console
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.grid import TileGrid

import rasterio  # isort: skip  (after gdal_env)
from rasterio.windows import Window  # isort: skip


def save_checkpoint(folder: Path) -> None:
    """Swin-T with the COCO head's sizes and seeded random weights, as transformers saves it."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    names = {i: f"class {i}" for i in range(133)}
    config = Mask2FormerConfig(
        backbone_config=backbone, id2label=names, label2id={v: k for k, v in names.items()}
    )
    Mask2FormerForUniversalSegmentation(config).eval().save_pretrained(folder)
    Mask2FormerImageProcessorPil(do_resize=False).save_pretrained(folder)


def plain_loop(checkpoint: Path, raster: Path, out: Path, tile: int, overlap: int) -> dict[str, float]:
    """What users write today; returns seconds per stage."""
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

    spent: dict[str, float] = defaultdict(float)
    clock = time.perf_counter

    started = clock()
    network = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint).eval()
    processor = Mask2FormerImageProcessorPil.from_pretrained(checkpoint)
    spent["load"] = clock() - started
    with rasterio.open(raster) as src:
        grid = TileGrid(src.height, src.width, tile, overlap)
        result = np.zeros((src.height, src.width), np.uint32)
        profile = {**src.profile, "count": 1, "dtype": "uint32", "compress": "ZSTD", "photometric": None}
        offset = 0
        for t in grid:
            started = clock()
            w = t.window
            image = src.read([1, 2, 3], window=Window(w.col, w.row, w.width, w.height))
            spent["read"] += clock() - started
            started = clock()
            inputs = processor(images=np.moveaxis(image, 0, -1), return_tensors="pt")
            spent["preprocess"] += clock() - started
            started = clock()
            with torch.inference_mode():
                outputs = network(**inputs)
            spent["forward"] += clock() - started
            started = clock()
            (found,) = processor.post_process_panoptic_segmentation(
                outputs, threshold=0.0, target_sizes=[w.shape], label_ids_to_fuse=set()
            )
            labels = found["segmentation"].numpy().astype(np.int64)
            spent["post-process"] += clock() - started
            started = clock()
            labels = np.where(labels > 0, labels + offset, 0)
            offset = max(offset, int(labels.max()))
            core = t.core
            result[core.row : core.stop_row, core.col : core.stop_col] = labels[core.slices(w)]
            spent["paste"] += clock() - started
    started = clock()
    profile.pop("photometric")
    with rasterio.open(out, "w", **profile) as dst:
        dst.write(result, 1)
    spent["write"] = clock() - started
    return spent


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1280)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        raster = synthetic_raster(root / "raster.tif", a.size, a.size)
        save_checkpoint(root / "checkpoint")
        table = root / "classes.json"
        rows = ",".join(f'{{"name": "class {i}", "is_thing": true}}' for i in range(133))
        table.write_text(f"[{rows}]")

        started = time.perf_counter()
        loop = plain_loop(root / "checkpoint", raster, root / "loop.tif", a.tile, a.overlap)
        loop_wall = time.perf_counter() - started

        started = time.perf_counter()
        spec = JobSpec(
            (str(raster),),
            str(root / "out"),
            model=str(root / "checkpoint"),
            labels=str(table),
            task="panoptic",
            tile=a.tile,
            overlap=a.overlap,
            score=0.0,
            local=True,
            workers=1,
        )
        metrics = run_job(prepare(spec), Console(quiet=True)).metrics
        wall = time.perf_counter() - started
    tiles = metrics["tiles"]
    print(f"{tiles} tiles of {a.tile}², Swin-T, fp32, 1 thread, one replica")
    print("transformers loop, no stitching: " + "  ".join(f"{k} {v:.1f} s" for k, v in loop.items()))
    stages = ("read_seconds", "infer_seconds", "encode_seconds", "stitch_seconds", "publish_seconds")
    print("panoptile: " + "  ".join(f"{s.removesuffix('_seconds')} {metrics[s]:.1f} s" for s in stages))
    inside = loop["preprocess"] + loop["forward"] + loop["post-process"]
    print(f"network and post-processing: {inside / metrics['infer_seconds']:.2f} times faster")
    print(f"end to end: {loop_wall:.1f} s against {wall:.1f} s: ratio {loop_wall / wall:.2f}")


if __name__ == "__main__":
    main()
