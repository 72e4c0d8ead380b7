"""Which numbers the network computes in, and that half precision finds the same segments."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panoptile.model import precision
from panoptile.model.panoptic_map import PanopticMap
from panoptile.model.precision import choose_precision
from panoptile.model.segmenter import Segmenter

CPU = torch.device("cpu")
BUILTIN = Path(__file__).parents[2] / "model" / "builtin"
SELF_PQ = 0.92
"""Of bf16 against fp32 over these tiles; 0.95 where it was measured."""
WINDOWS = ((512, 2304), (1024, 2304), (1024, 2560), (1536, 2400))
"""First row and column of tiles in the quarter of the scene that the built-in model was not trained on."""


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_fp32_on_a_cpu(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a CPU that has bf16 arithmetic."""
    monkeypatch.setattr(precision, "is_bf16_native", lambda device: native)
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("fp32", CPU) == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_on_a_gpu_that_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an older GPU it is fp32."""
    monkeypatch.setattr(precision, "is_bf16_native", lambda device: native)
    expected = torch.bfloat16 if native else torch.float32
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("native", [True, False])
def test_bf16_on_a_cpu_is_done_with_a_note(
    native: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for, it is done; where the CPU only emulates it, a warning says that it is slow."""
    monkeypatch.setattr(precision, "is_bf16_native", lambda device: native)
    with caplog.at_level(logging.WARNING):
        assert choose_precision("bf16", CPU) == torch.bfloat16
    assert ["emulated" in r.message for r in caplog.records] == ([] if native else [True])


def test_another_word_is_refused() -> None:
    """fp16 is not offered: its range overflows in this network."""
    with pytest.raises(ValueError, match="fp32, bf16 or auto, got 'fp16'"):
        choose_precision("fp16", CPU)


def test_the_whole_way_runs_in_bf16() -> None:
    """From uint8 to maps and states, with every weight in bf16 and masks in fp32."""
    segmenter = Segmenter.load(str(BUILTIN), device="cpu", precision="bf16", score_threshold=0.0)
    assert {p.dtype for p in segmenter._network.parameters()} == {torch.bfloat16}
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 70, 101), dtype=np.uint8)
    for found in segmenter.predict(tiles, embeddings="queries"):
        assert found.labels.shape == (70, 101)
        assert np.isfinite(found.scores).all()
    with torch.inference_mode():
        classes, masks, normed = segmenter._forward(segmenter.prepare(torch.from_numpy(tiles)))
    assert (classes.dtype, masks.dtype, normed.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_bf16_finds_the_segments_of_fp32(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On real tiles the trained built-in network gives the same panoptic maps, to a PQ of 0.92 against itself."""
    tiles = _tiles(data_dir)
    full, half = (
        Segmenter.load(str(BUILTIN), device="cpu", threads=1, precision=p) for p in ("fp32", "bf16")
    )
    pq, matched, segments = _self_pq(half.predict(tiles), full.predict(tiles))
    with torch.inference_mode():
        x = full.prepare(torch.from_numpy(tiles[:1]))
        pairs = zip(half._forward(x.bfloat16())[:2], full._forward(x)[:2], strict=True)
        largest = [float((a.float() - b).abs().max()) for a, b in pairs]
    with capsys.disabled():
        print(
            f"\nbf16 against fp32: self-PQ {pq:.3f}, {matched} of {segments:g} segments matched, "
            f"largest difference of class logits {largest[0]:.2f}, of mask logits {largest[1]:.2f}"
        )
    assert segments > 50, "too little was found to compare"
    assert pq >= SELF_PQ


def _tiles(data_dir: Path) -> NDArray[np.uint8]:
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(data_dir / "banepa" / "banepa_rgb_cog.tif") as scene:
        windows = [rasterio.windows.Window(col, row, 512, 512) for row, col in WINDOWS]
        return np.stack([scene.read((1, 2, 3), window=window) for window in windows])


def _self_pq(got: list[PanopticMap], expected: list[PanopticMap]) -> tuple[float, int, float]:
    """PQ over all segments together, matches (IoU > 0.5, same class), and the mean number of segments."""
    iou_sum, matched, segments = 0.0, 0, 0.0
    for a, b in zip(got, expected, strict=True):
        count = len(b.label_ids) + 1
        pairs = np.bincount(
            (a.labels.astype(np.int64) * count + b.labels).ravel(), minlength=(len(a.label_ids) + 1) * count
        ).reshape(-1, count)
        union = pairs.sum(1)[1:, None] + pairs.sum(0)[None, 1:] - pairs[1:, 1:]
        iou = pairs[1:, 1:] / np.maximum(union, 1)
        match = (iou > 0.5) & (a.label_ids[:, None] == b.label_ids[None])
        iou_sum, matched = iou_sum + float(iou[match].sum()), matched + int(match.sum())
        segments += (len(a.label_ids) + len(b.label_ids)) / 2
    return iou_sum / segments, matched, segments
