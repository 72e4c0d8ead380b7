"""The overlay's clock: frames at the times of the source, whatever times a source may have."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.pipeline.moving_worlds import TABLE
from tests.pipeline.video_files import write_video
from tests.pipeline.video_flow import plan_video

from panoptile.pipeline.overlay import write_overlay
from panoptile.pipeline.video_preview import write_contact_sheet
from panoptile.pipeline.video_tables import MaskWriter

HOUR = 3600


def overlay_times(video: Path) -> tuple[list[float], list[float]]:
    """(seconds of the plan's frames, of the overlay's), each from its first frame."""
    plan = plan_video(video, 8)
    MaskWriter(video.parent / "masks.parquet").close()
    drawn = video.parent / "overlay.mp4"
    write_overlay(drawn, plan, video.parent / "masks.parquet", TABLE)
    with av.open(str(drawn)) as container:
        shown = [float(frame.time) for frame in container.decode(video=0) if frame.time is not None]
    return (plan.times_s - plan.times_s[0]).tolist(), [t - shown[0] for t in shown]


@pytest.mark.parametrize(
    ("ending", "base", "times"),
    [
        ("mp4", Fraction(1, 25), list(range(12))),
        ("mp4", Fraction(1, 90_000), [0, 3600, 9000, 90_000 * HOUR, 90_000 * 3 * HOUR]),
        ("mkv", Fraction(1, 1000), [0, 40, 1000 * 24 * HOUR, 1000 * 240 * HOUR, 1000 * 241 * HOUR]),
    ],
    ids=["steady", "hours at 90 kHz", "days at 1 kHz"],
)
def test_frames_keep_their_times(tmp_path: Path, ending: str, base: Fraction, times: list[int]) -> None:
    """A clock that MP4 cannot hold for gaps of hours or days gives way to a coarser one, not the overlay to an error."""
    video = write_video(tmp_path / f"v.{ending}", numbers=range(len(times)), times=times, time_base=base)
    planned, shown = overlay_times(video)
    assert planned == pytest.approx([float(t * base) for t in times], abs=1e-9)
    assert shown == pytest.approx(planned, abs=0.005)


def test_frames_of_equal_times_follow_each_other(tmp_path: Path) -> None:
    """A transport stream joined with itself has each time twice; no frame is dropped, and each comes a tick later."""
    once = write_video(tmp_path / "once.ts", numbers=range(8))
    video = tmp_path / "v.ts"
    video.write_bytes(once.read_bytes() * 2)
    planned, shown = overlay_times(video)
    assert len(shown) == len(planned) == 16
    assert sorted(set(shown)) == shown
    assert shown == pytest.approx(planned, abs=0.001)


def test_frames_that_are_not_to_be_seen_are_blank_at_their_times(tmp_path: Path) -> None:
    """The video is gone: overlay and contact sheet are drawn from what is known of it, as many frames at the same times."""
    video = write_video(tmp_path / "v.mp4", numbers=range(12), time_base=Fraction(1, 25))
    plan = plan_video(video, 8)
    masks, tracks, drawn, sheet = (
        tmp_path / n for n in ("masks.parquet", "tracks.parquet", "o.mp4", "p.png")
    )
    MaskWriter(masks).close()
    pq.write_table(
        pa.table({"class_name": pa.array([], pa.string()), "is_thing": pa.array([], pa.bool_())}), tracks
    )
    video.unlink()
    write_overlay(drawn, plan, masks, TABLE, photograph=False)
    write_contact_sheet(sheet, plan, masks, tracks, TABLE, photograph=False)
    with av.open(str(drawn)) as container:
        frames = list(container.decode(video=0))
    times = [float(frame.time or 0.0) for frame in frames]
    assert times == pytest.approx((plan.times_s - plan.times_s[0]).tolist(), abs=0.005)
    assert all(frame.to_ndarray(format="rgb24").min() > 200 for frame in frames)
    assert sheet.exists()
