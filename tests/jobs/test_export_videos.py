"""Exports of tracks from a finished video job, read back as ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.jobs.exported import finished
from tests.jobs.test_video_jobs import clip, in_memory, job, maps
from tests.jobs.test_video_jobs import run as run_video

from panoptile.jobs.exits import JobError
from panoptile.jobs.export import export_to
from panoptile.pipeline.store import open_store
from panoptile.pipeline.video_labels import is_vis_document

__all__ = ["clip", "finished", "job"]  # fixtures, and what they need


def test_both_formats_hold_the_tracks(clip, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The colours of every frame are the published map; YouTube-VIS is recognised by panoptile's own reader."""
    out = in_memory()
    run_video(clip, out)
    labels, numbers = maps(open_store(out), tmp_path)

    export_to(out, "coco-panoptic-video", str(tmp_path / "panoptic"), ())
    document = json.loads((tmp_path / "panoptic/panoptic.json").read_text())
    [video] = document["videos"]
    for image, expected in zip(video["images"], labels, strict=True):
        path = tmp_path / "panoptic/panomasksRGB" / video["video_id"] / image["file_name"]
        red, green, blue = np.moveaxis(np.asarray(Image.open(path)).astype(np.int64), -1, 0)
        np.testing.assert_array_equal(red + 256 * green + 65_536 * blue, expected)

    export_to(out, "ytvis", str(tmp_path / "ytvis"), ())
    [path] = (tmp_path / "ytvis").iterdir()
    assert is_vis_document(str(path))
    assert json.loads(path.read_text())["videos"][0]["length"] == len(numbers)

    for to, target, classes, words in (
        ("ytvis", "ytvis", (), "is there already"),
        ("ytvis", "x", ("car",), "--classes|No class is called"),
        ("coco", "x", (), "only videos"),
    ):
        with pytest.raises(JobError, match=words) as e:
            export_to(out, to, str(tmp_path / target), classes)
        assert int(e.value.code) == 2
    assert not (tmp_path / "x").exists()


def test_rasters_are_no_videos(finished: Path, tmp_path: Path) -> None:
    """One sentence that names the formats of images."""
    with pytest.raises(JobError, match="holds no videos"):
        export_to(str(finished), "ytvis", str(tmp_path / "x"), ())


@pytest.mark.parametrize("target", ["s3://bucket/tracks", "file:///tmp/tracks"])
def test_a_uri_is_no_place_for_an_export(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Exports are local files: a URI is refused, not taken for a folder of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match="written to this machine") as refused:
        export_to(str(finished), "ytvis", target, ())
    assert int(refused.value.code) == 2
    assert list(tmp_path.iterdir()) == []
