"""How segments of successive frames become tracks: the options, apart from all that computes with them.

The command line reads this module for ``--help``, so it imports nothing large.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

LinkMethod = Literal["panoptile", "minvis"]


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """What decides which segments become one track; nothing of it needs the network again."""

    method: LinkMethod = "panoptile"
    max_age: float = 1.0
    """Seconds that a track may stay unseen and keep its id."""
    match_threshold: float = 1.0
    """Cost from which a segment starts a track of its own rather than going on with one."""
    iou_weight: float = 0.5
    """Weight of 1 - IoU with the track's mask of the frame before; 0 is the IoU of one that was not seen there."""
    class_weight: float = 0.3
    """Cost of another class."""
    min_cosine: float = 0.5
    min_iou: float = 0.1
    """A pair below both ``min_cosine`` and ``min_iou`` is never joined."""
    birth_score: float = 0.5
    """A segment with a lower score neither starts a lasting track nor changes a track's memory."""
    min_hits: int = 3
    """Tracks seen in fewer frames are published as not confirmed."""
    camera_motion: bool = True
    """Count overlaps after the frame before is moved as the whole picture has, where that is plain to see."""
    scene_cut: float = 0.5
    """Change of the colour histogram (0-1, total variation) from which overlaps with the frame before say nothing."""

    def __post_init__(self) -> None:
        if self.method not in get_args(LinkMethod):
            raise ValueError(f"--link is panoptile or minvis, got {self.method!r}.")
        if not 0 <= self.max_age < math.inf:
            raise ValueError(f"--max-age must be seconds from 0, got {self.max_age}.")
        for name in ("match_threshold", "iou_weight", "class_weight"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(
                    f"--{name.replace('_', '-')} must lie between 0 and 10, got {getattr(self, name)}."
                )
        for name in ("min_cosine", "min_iou", "birth_score", "scene_cut"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must lie between 0 and 1, got {getattr(self, name)}."
                )
        if self.min_hits < 1:
            raise ValueError(f"--min-hits must be at least 1, got {self.min_hits}.")

    def to_json(self) -> dict[str, object]:
        return asdict(self)
