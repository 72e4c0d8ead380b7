"""The joining pass of one video: its committed fragments, read once in time, give every segment a track.

What grows with the video is spooled (one number a segment); memory follows the tracks and one unit's tables. Inside
a unit overlaps come from the worker; at a border of units, and wherever a worker did not see two frames together,
they are counted here from the two stored maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.camera_motion import NO_SHIFT, moved_iou, picture_shift, view_step
from panoptile.pipeline.commit import Commit, read_commit
from panoptile.pipeline.frame_segments import FrameSegments
from panoptile.pipeline.label_runs import column_runs, common_pixels
from panoptile.pipeline.link import Linker, TrackLinker
from panoptile.pipeline.link_options import LinkOptions
from panoptile.pipeline.minvis import MinVisLinker
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.store import Store
from panoptile.pipeline.tracks import Tracks, TrackVotes
from panoptile.pipeline.video_fragment_file import StoredFrame, VideoFragment
from panoptile.pipeline.video_plan import VideoPlan


class VideoFragments:
    """The committed fragments of one video, opened one at a time."""

    def __init__(self, store: Store, plan: VideoPlan) -> None:
        self.plan = plan
        self._store = store
        self.commits: dict[Unit, Commit] = {
            unit: commit for unit in plan.units() if (commit := read_commit(store, unit)) is not None
        }

    def __iter__(self) -> Iterator[tuple[Unit, VideoFragment | None]]:
        """All units in time, with their fragments; None for a unit that is not committed."""
        for unit in self.plan.units():
            commit = self.commits.get(unit)
            if commit is None:
                yield unit, None
                continue
            with self._store.open(commit.fragment) as stream:
                fragment = VideoFragment.opened(stream)
                try:
                    yield unit, fragment
                finally:
                    fragment.close()

    def damaged(self) -> list[Unit]:
        """Units whose fragment is not what was committed; reads every fragment once."""
        return [
            unit
            for unit, commit in self.commits.items()
            if hashlib.sha256(self._store.read_bytes(commit.fragment)).hexdigest() != commit.sha256
        ]


@dataclass(frozen=True, slots=True)
class LinkedVideo:
    """A video whose segments have tracks."""

    tracks: Tracks
    ids: Path
    """int32 track id of every segment but void, in the order of the fragments."""
    queries_used: NDArray[np.int32]
    """(F,) queries that passed the threshold; -1 for frames that were not segmented."""


def link_video(
    fragments: VideoFragments, thing_class_ids: frozenset[int], options: LinkOptions, spool: Path
) -> LinkedVideo:
    """Link the segments of all frames; ids go to the file ``spool``.

    Raises ``ValueError`` for ``--link minvis`` over fragments without the states of all queries.
    """
    linker: Linker
    linker = (
        MinVisLinker(thing_class_ids) if options.method == "minvis" else TrackLinker(thing_class_ids, options)
    )
    votes = TrackVotes()
    times = fragments.plan.times_s
    used = np.full(len(times), -1, np.int32)
    tail = _Tail()
    with spool.open("wb") as out:
        for _, fragment in fragments:
            if fragment is None:
                continue
            for frame, segments in fragment.segments():
                if tail.item != frame.item - 1:
                    linker.skip()
                elif segments.overlap is None:
                    segments = tail.compared(segments, fragment, frame)
                ids = linker.link(replace(segments, time_s=float(times[frame.item])))
                votes.add(ids, segments.class_ids, segments.scores)
                used[frame.item] = frame.queries_used
                out.write(ids.tobytes())
                tail.follow(fragment, frame)
            tail.detach()
    tracks = votes.counted()
    if isinstance(linker, MinVisLinker):
        _take_slot_classes(tracks, linker)
    return LinkedVideo(tracks, spool, used)


def _take_slot_classes(tracks: Tracks, linker: MinVisLinker) -> None:
    """MinVIS takes the class of a slot from its mean logits, not from votes of segments."""
    for track in tracks.votes:
        class_id = linker.class_of(track)
        if class_id is not None:
            tracks.class_ids[track] = class_id


class _Tail:
    """The last frame that was linked: what the next one may have to be compared with."""

    def __init__(self) -> None:
        self.item = -2
        self._fragment: VideoFragment | None = None
        self._frame: StoredFrame | None = None
        self._texts: list[str] = []
        self._view: NDArray[np.uint8] | None = None

    def follow(self, fragment: VideoFragment, frame: StoredFrame) -> None:
        self.item, self._fragment, self._frame = frame.item, fragment, frame

    def detach(self) -> None:
        """Read what is needed of the frame before its fragment is closed."""
        if self._fragment is not None and self._frame is not None:
            self._texts, self._view = self._fragment.texts(self._frame), self._fragment.view(self._frame)
        self._fragment = None

    def compared(self, segments: FrameSegments, fragment: VideoFragment, frame: StoredFrame) -> FrameSegments:
        """The segments of the next frame with their overlaps with this one: as a worker would have counted them."""
        self.detach()
        shape, p, n = fragment.shape, len(self._texts), len(segments)
        before, now = column_runs(self._texts, shape), column_runs(fragment.texts(frame), shape)
        iou, view = None, fragment.view(frame)
        if view is not None and self._view is not None:
            shift = picture_shift(self._view, view, view_step(*shape))
            if shift != NO_SHIFT:
                # the runs go down the columns, so their map is turned, and so is the shift
                iou = moved_iou(before.to_labels(), now, p, n, shift[::-1])
        return replace(segments, overlap=common_pixels(before, now, p, n), moved_iou=iou)
