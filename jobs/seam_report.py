"""Seam figures of a run in JSON and in one line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from panoptile.pipeline.seam_quality import SeamQuality


def seam_fields(seams: Iterable[SeamQuality], suspects: int) -> dict[str, Any]:
    """The ``seams`` of metrics.json: counts summed over the inputs, and the figures that follow from them."""
    total = sum(seams, SeamQuality())
    return {
        "discontinuity_ratio": total.discontinuity,
        "cut_things_per_1000": total.cut_share,
        "cut_things": total.cut_things,
        "things": total.things,
        "suspects": suspects,
        "seam_pairs": total.seam_pairs,
        "seam_changes": total.seam_changes,
        "other_pairs": total.other_pairs,
        "other_changes": total.other_changes,
    }


def seam_line(fields: dict[str, Any]) -> str:
    """One line of the summary that ``segment`` ends with; empty where no tile has a neighbour."""
    if not fields["seam_pairs"]:
        return ""
    ratio = fields["discontinuity_ratio"]
    shown = "no segment ends elsewhere" if ratio is None else f"{ratio:.2f}"
    return (
        f"seams   discontinuity ratio {shown} (1 = no trace of the tiles), things cut straight along a seam "
        f"{fields['cut_things_per_1000']:.1f} per 1,000, suspects {fields['suspects']}"
    )
