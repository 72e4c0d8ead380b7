"""The plans there are: a raster's or a video's. Nothing else needs to tell them apart."""

from __future__ import annotations

from panoptile.pipeline.plan import RasterPlan, kind_of
from panoptile.pipeline.video_plan import VideoPlan

AnyPlan = RasterPlan | VideoPlan


def plan_from_json(data: bytes) -> AnyPlan:
    """The stored plan of an input of any kind. Raises ``ValueError`` for a kind that this version does not know."""
    kind = kind_of(data)
    if kind == "raster":
        return RasterPlan.from_json(data)
    if kind == "video":
        return VideoPlan.from_json(data)
    raise ValueError(f"The plan is for a {kind!r}, which this version does not know.")
