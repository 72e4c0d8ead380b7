"""What is known of each track once a video has been linked: when it was seen, and what it is by its segments' votes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Tracks:
    """Tracks in columns; row ``i`` belongs to track id ``i``, row 0 and ids without a track have no segments."""

    class_ids: NDArray[np.uint16]
    """(T,) published class by vote; 0 where there is no track."""
    hits: NDArray[np.int64]
    """(T,) frames in which the track was seen."""
    votes: dict[int, list[tuple[int, float]]]
    """Of each track: (class id, summed scores), the heaviest first, of equals the lower class."""

    def __len__(self) -> int:
        return int(np.count_nonzero(self.hits))


class TrackVotes:
    """Counts votes frame by frame; memory follows the number of tracks."""

    def __init__(self) -> None:
        self._hits = np.zeros(1024, np.int64)
        self._votes: dict[tuple[int, int], float] = {}

    def add(self, ids: NDArray[np.int32], class_ids: NDArray[np.uint16], scores: NDArray[np.float32]) -> None:
        """Count the segments of one frame, each (N,)."""
        highest = int(ids.max(initial=0))
        if highest >= len(self._hits):
            self._hits = np.concatenate([self._hits, np.zeros(max(highest, len(self._hits)), np.int64)])
        self._hits[np.unique(ids)] += 1
        for track, class_id, score in zip(ids.tolist(), class_ids.tolist(), scores.tolist(), strict=True):
            self._votes[track, class_id] = self._votes.get((track, class_id), 0.0) + score

    def counted(self) -> Tracks:
        """The tracks and their classes."""
        by_track: dict[int, list[tuple[int, float]]] = {}
        for (track, class_id), weight in self._votes.items():
            by_track.setdefault(track, []).append((class_id, weight))
        size = max(by_track, default=0) + 1
        class_ids = np.zeros(size, np.uint16)
        for track, votes in by_track.items():
            votes.sort(key=lambda vote: (-vote[1], vote[0]))
            class_ids[track] = votes[0][0]
        return Tracks(class_ids, self._hits[:size].copy(), by_track)
