"""The query states that come with a map: the network's own last layer-normed states, and only when asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panoptile.model.segmenter import Segmenter


@pytest.fixture(scope="module")
def segmenter(swin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """A tiny network with things and fused stuff whose threshold lets many queries pass."""
    target = Path(shutil.copytree(swin_folder, tmp_path_factory.mktemp("embeddings") / "checkpoint"))
    config = json.loads((target / "config.json").read_text())
    config["panoptile"] = {"task": "panoptic", "thing_label_ids": [0, 1, 3, 4], "score_threshold": 0.2}
    (target / "config.json").write_text(json.dumps(config))
    return Segmenter.load(str(target), device="cpu", threads=1)


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (3, 3, 70, 101), dtype=np.uint8)


def test_embeddings_are_the_last_intermediate_states(
    segmenter: Segmenter, swin_folder: Path, frames: NDArray[np.uint8]
) -> None:
    """A segment's embedding is the row of its query in ``transformer_decoder_intermediate_states[-1]``, ours and
    transformers'; up to half precision (one part in 1,000) and the reference's rounding."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder).eval()
    found = 0
    for i, panoptic in enumerate(segmenter.predict(frames, embeddings="segments")):
        assert panoptic.queries is not None
        assert panoptic.embeddings is not None
        x = segmenter.prepare(torch.from_numpy(frames[i : i + 1]))
        with torch.inference_mode():
            ours = segmenter._network.model(x, output_hidden_states=True)
            theirs = reference.model(x, output_hidden_states=True)
        for output in (ours, theirs):
            states_QC = output.transformer_decoder_intermediate_states[-1][:, 0].numpy()
            np.testing.assert_allclose(
                panoptic.embeddings.astype(np.float32), states_QC[panoptic.queries], atol=4e-3
            )
        before_norm = ours.transformer_decoder_last_hidden_state[0].numpy()
        assert not np.allclose(panoptic.embeddings, before_norm[panoptic.queries], atol=4e-3)
        found += len(panoptic.queries)
    assert found >= 3


def test_the_query_of_a_segment_has_its_class(segmenter: Segmenter, frames: NDArray[np.uint8]) -> None:
    """The class of a segment is the most likely one of its query, in the logits that come with all queries."""
    found = 0
    for panoptic in segmenter.predict(frames, embeddings="queries"):
        assert panoptic.states is not None
        assert panoptic.queries is not None
        assert panoptic.states.embeddings.shape == (segmenter.num_queries, 32)
        likely = panoptic.states.logits.argmax(axis=1)
        np.testing.assert_array_equal(likely[panoptic.queries], panoptic.label_ids)
        found += len(panoptic.queries)
    assert found >= 3


def test_maps_are_the_same_with_and_without_states(segmenter: Segmenter, frames: NDArray[np.uint8]) -> None:
    """Asking for embeddings changes no map, class or score; not asking gives none."""
    plain = segmenter.predict(frames)
    for other in (
        segmenter.predict(frames, embeddings="segments"),
        segmenter.predict(frames, embeddings="queries"),
    ):
        for a, b in zip(plain, other, strict=True):
            assert a.embeddings is None
            assert a.states is None
            assert b.embeddings is not None
            np.testing.assert_array_equal(a.labels, b.labels)
            np.testing.assert_array_equal(a.label_ids, b.label_ids)
            np.testing.assert_array_equal(a.scores, b.scores)


def test_semantic_maps_have_no_single_query(swin_folder: Path, frames: NDArray[np.uint8]) -> None:
    """A class that many queries make up together has no query and an embedding of zeros."""
    segmenter = Segmenter.load(str(swin_folder), device="cpu", task="semantic", score_threshold=0.0)
    (panoptic, *_) = segmenter.predict(frames[:1], embeddings="segments")
    assert panoptic.queries is None
    assert panoptic.embeddings is not None
    assert panoptic.embeddings.shape == (len(panoptic.label_ids), 32)
    assert not panoptic.embeddings.any()
