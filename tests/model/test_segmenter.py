"""The segmenter: from uint8 tiles to maps, deterministic and independent of batch-mates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panoptile.model.segmenter import Segmenter, choose_device

LABELS = [{"name": n, "is_thing": n != "road"} for n in ("roof", "tree", "road", "car", "pool")]


@pytest.fixture(scope="module")
def folder(swin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that says its own split and normalisation."""
    target = Path(shutil.copytree(swin_folder, tmp_path_factory.mktemp("segmenter") / "checkpoint"))
    config = json.loads((target / "config.json").read_text())
    config["panoptile"] = {"task": "panoptic", "thing_label_ids": [0, 1, 3, 4], "score_threshold": 0.2}
    (target / "config.json").write_text(json.dumps(config))
    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5], "rescale_factor": 1 / 255}
    (target / "preprocessor_config.json").write_text(json.dumps(values))
    return str(target)


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    """Five noisy tiles of an odd size."""
    return np.random.default_rng(0).integers(0, 256, (5, 3, 70, 101), dtype=np.uint8)


def test_a_tile_alone_equals_the_tile_in_a_batch(folder: str, tiles: NDArray[np.uint8]) -> None:
    """On a CPU the maps, classes and scores of a tile are bit for bit the same in any batch, and in any order."""
    segmenter = Segmenter.load(folder, device="cpu", threads=1)
    together = segmenter.predict(tiles)
    backwards = segmenter.predict(tiles[::-1])[::-1]
    assert sum(len(m.label_ids) for m in together) > 0, "nothing was found: the test would prove nothing"
    for i, whole in enumerate(together):
        for other in (segmenter.predict(tiles[i : i + 1])[0], backwards[i]):
            assert np.array_equal(whole.labels, other.labels)
            assert np.array_equal(whole.label_ids, other.label_ids)
            assert np.array_equal(whole.scores, other.scores)


def test_maps_have_the_tile_size_and_consistent_tables(folder: str, tiles: NDArray[np.uint8]) -> None:
    """Each map has the tile's shape; its ids are 1…N, each present, with one class and score in 0-1."""
    for task in ("panoptic", "instance", "semantic"):
        segmenter = Segmenter.load(folder, device="cpu", task=task, score_threshold=0.0)
        for result in segmenter.predict(tiles[:2]):
            assert result.labels.shape == (70, 101)
            ids = set(np.unique(result.labels)) - {0}
            assert ids == set(range(1, len(result.label_ids) + 1))
            assert ((result.scores >= 0) & (result.scores <= 1)).all()
            assert result.queries_used <= segmenter.num_queries
            assert set(result.label_ids) <= {c.label_id for c in segmenter.classes}
            if task == "instance":
                assert set(result.label_ids) <= segmenter.classes.thing_label_ids
            if task == "semantic":
                assert (result.labels > 0).all()
                assert not segmenter.classes.thing_label_ids


def test_stuff_is_one_segment_and_fuse_extends_to_things(folder: str, tiles: NDArray[np.uint8]) -> None:
    """Fused classes have at most one segment per tile."""
    every = [f"LABEL_{i}" for i in range(5)]
    fused = Segmenter.load(folder, device="cpu", fuse=every, score_threshold=0.0)
    for result in fused.predict(tiles[:2]):
        assert len(set(result.label_ids)) == len(result.label_ids)


def test_preparation_normalises_and_pads_with_zeros(folder: str, tiles: NDArray[np.uint8]) -> None:
    """Pixels are (grey / 255 - mean) / std; rows and columns beyond the tile are zero, to a multiple of 32."""
    segmenter = Segmenter.load(folder, device="cpu")
    x = segmenter.prepare(torch.from_numpy(tiles)).numpy()
    assert x.shape == (5, 3, 96, 128)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    expected = (tiles / 255 - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(x[:, :, :70, :101], expected, atol=1e-5)
    assert not x[:, :, 70:].any()
    assert not x[:, :, :, 101:].any()
    assert segmenter.mean_pixel == (128, 102, 76)


def test_only_the_wanted_part_of_a_fixed_batch_is_returned(folder: str, tiles: NDArray[np.uint8]) -> None:
    """``count`` leaves out the padding of a batch and changes nothing else."""
    segmenter = Segmenter.load(folder, device="cpu")
    assert len(segmenter.predict(tiles, count=0)) == 0
    part, whole = segmenter.predict(tiles, count=2), segmenter.predict(tiles)
    assert len(part) == 2
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(part, whole, strict=False))


def test_wrong_input_is_refused(folder: str, tiles: NDArray[np.uint8]) -> None:
    """Other channels or types give one sentence that names both sides."""
    segmenter = Segmenter.load(folder, device="cpu")
    with pytest.raises(
        ValueError, match=r"Expected uint8 tiles of shape \(B, 3, H, W\), got uint8 of shape \(5, 2,"
    ):
        segmenter.predict(tiles[:, :2])
    with pytest.raises(ValueError, match="got float32"):
        segmenter.predict(tiles.astype(np.float32))


def test_labels_replace_the_checkpoint_names(folder: str, tmp_path: Path) -> None:
    """A class table given by the caller names the classes and their split."""
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(LABELS))
    classes = Segmenter.load(folder, device="cpu", labels=str(path)).classes
    assert [c.name for c in classes] == ["roof", "tree", "road", "car", "pool"]
    assert classes.thing_label_ids == {0, 1, 3, 4}


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the message on a machine without CUDA")
def test_a_missing_gpu_is_said_at_once() -> None:
    """Asking for cuda without one is an error; auto takes the CPU."""
    with pytest.raises(ValueError, match="no CUDA GPU"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
