"""Batches as on a GPU: with lanes and graphs that stand in for CUDA's here, with CUDA's own where there is a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.model.lanes import FakeDevice
from tests.model.test_cuda_graph import Recorder
from tests.model.waits import Waits

from panoptile.model.checkpoint import Task
from panoptile.model.cuda_graph import GraphCache
from panoptile.model.device_copies import CudaDevice
from panoptile.model.panoptic_map import PanopticMap
from panoptile.model.segmenter import Segmenter

SEMANTIC_TIES = 0.002
"""Rows are resized in bands of other heights, which rounds differently where two classes are equal."""


@pytest.fixture(scope="module")
def folder(swin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny network with things and fused stuff whose threshold lets many queries pass."""
    target = Path(shutil.copytree(swin_folder, tmp_path_factory.mktemp("runner") / "checkpoint"))
    config = json.loads((target / "config.json").read_text())
    config["panoptile"] = {"task": "panoptic", "thing_label_ids": [0, 1, 3, 4], "score_threshold": 0.2}
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    """Six noisy tiles of an odd size."""
    return np.random.default_rng(3).integers(0, 256, (6, 3, 70, 101), dtype=np.uint8)


def assert_same(got: list[PanopticMap], expected: list[PanopticMap], *, ties: float = 0.0) -> None:
    """Maps, tables and states are equal, up to a share of pixels."""
    for a, b in zip(got, expected, strict=True):
        assert (a.labels != b.labels).mean() <= ties
        assert np.array_equal(a.label_ids, b.label_ids)
        assert np.allclose(a.scores, b.scores, atol=1e-6)
        assert a.queries_used == b.queries_used
        for x, y in ((a.queries, b.queries), (a.embeddings, b.embeddings)):
            assert (x is None) == (y is None)
            assert x is None or y is None or np.array_equal(x, y)


@pytest.mark.parametrize("task", get_args(Task))
def test_the_runner_gives_what_the_plain_way_gives(folder: str, tiles: NDArray[np.uint8], task: Task) -> None:
    """Tile by tile through slots, lanes and graphs: the maps, scores and query states of the plain way."""
    segmenter = Segmenter.load(folder, device="cpu", task=task)
    expected = segmenter.predict(tiles, embeddings="segments")
    assert sum(len(m.label_ids) for m in expected) > 0, "nothing was found: the test would prove nothing"
    recorder = Recorder()
    segmenter._runner = segmenter._runner_on(FakeDevice(1), lambda f: GraphCache(f, capture=recorder))
    waiting = [segmenter.start(tiles[i : i + 1], embeddings="segments") for i in range(len(tiles))]
    ties = SEMANTIC_TIES if task == "semantic" else 0.0
    assert_same([ask()[0] for ask in waiting], expected, ties=ties)
    assert recorder.captured == [(1, 3, 70, 101)]
    assert recorder.replays == len(tiles) - 2


def test_all_queries_come_where_they_are_asked_for(folder: str, tiles: NDArray[np.uint8]) -> None:
    """States and logits of all queries, kept or not, are those of the plain way."""
    segmenter = Segmenter.load(folder, device="cpu")
    (expected,) = segmenter.predict(tiles[:1], embeddings="queries")
    segmenter._runner = segmenter._runner_on(FakeDevice(1), lambda f: f)
    (got,) = segmenter.predict(tiles[:1], embeddings="queries")
    assert got.states is not None
    assert expected.states is not None
    assert np.array_equal(got.states.embeddings, expected.states.embeddings)
    assert np.array_equal(got.states.logits, expected.states.logits)


def test_padding_of_a_batch_gives_no_map(folder: str, tiles: NDArray[np.uint8]) -> None:
    """Of a batch of four with two real tiles come two maps, in their order."""
    segmenter = Segmenter.load(folder, device="cpu")
    segmenter._runner = segmenter._runner_on(FakeDevice(2), lambda f: f)
    whole = segmenter.predict(tiles[:4])
    assert_same(segmenter.predict(tiles[:4], count=2), whole[:2])


@pytest.mark.parametrize("task", get_args(Task))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_asked_of_the_device_between_pixels_and_buffer(
    folder: str, tiles: NDArray[np.uint8], task: Task, precision: str
) -> None:
    """From the second batch on, network and fusion run no operation that the host would wait for."""
    segmenter = Segmenter.load(folder, device="cpu", task=task, precision=precision)
    runner = segmenter._runner_on(FakeDevice(0), lambda f: f)
    pixels = torch.from_numpy(tiles[:2].copy())
    runner.run(pixels)  # builds constants
    with Waits() as waits:
        runner.run(pixels)
    assert waits.seen == []


def test_one_wait_per_batch(folder: str, tiles: NDArray[np.uint8]) -> None:
    """Three batches, read one late: the host waits three times, once for each copy of a whole batch."""
    segmenter = Segmenter.load(folder, device="cpu")
    device = FakeDevice(0)
    segmenter._runner = segmenter._runner_on(device, lambda f: f)
    waiting = [segmenter.start(tiles[i : i + 2]) for i in (0, 2)]
    maps = waiting[0]()
    waiting.append(segmenter.start(tiles[4:]))
    maps += waiting[1]() + waiting[2]()
    assert len(maps) == 6
    assert device.host_waits == 3


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_gpu
@pytest.mark.parametrize("task", get_args(Task))
def test_a_gpu_gives_what_the_cpu_gives(folder: str, tiles: NDArray[np.uint8], task: Task) -> None:
    """In fp32 the maps agree but for pixels and masks on an edge: at least 98 % of the pixels' classes are equal."""
    expected = Segmenter.load(folder, device="cpu", task=task).predict(tiles)
    got = Segmenter.load(folder, device="cuda", task=task, precision="fp32").predict(tiles)
    for a, b in zip(got, expected, strict=True):
        classes = [np.append(-1, m.label_ids)[m.labels] for m in (a, b)]
        assert (classes[0] == classes[1]).mean() > 0.98


@needs_gpu
def test_a_replayed_batch_equals_an_eager_one(folder: str, tiles: NDArray[np.uint8]) -> None:
    """On a GPU the first two batches run eagerly and the later ones as a graph: the same bits, also in turns."""
    segmenter = Segmenter.load(folder, device="cuda", precision="bf16")
    batches = [tiles[:2], tiles[2:4], tiles[4:]]
    eager = Segmenter.load(folder, device="cuda", precision="bf16")
    eager._runner = eager._runner_on(_cuda(), lambda f: f)
    for _ in range(4):
        for batch in batches:
            assert_same(segmenter.predict(batch), eager.predict(batch))


@needs_gpu
@pytest.mark.parametrize("task", get_args(Task))
def test_a_gpu_is_never_waited_for_inside(folder: str, tiles: NDArray[np.uint8], task: Task) -> None:
    """CUDA itself raises on any synchronising call between pixels and buffer."""
    segmenter = Segmenter.load(folder, device="cuda", task=task)
    runner = segmenter._runner_on(_cuda(), lambda f: f)
    pixels = torch.from_numpy(tiles[:2].copy()).cuda()
    runner.run(pixels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        runner.run(pixels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _cuda() -> CudaDevice:
    return CudaDevice(torch.device("cuda"))
