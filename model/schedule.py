"""Learning rates over the steps of a run, as factors on the base rate."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["poly", "step", "linear"]
SCHEDULES: tuple[Schedule, ...] = ("poly", "step", "linear")

POLY_POWER = 0.9
"""As in the paper's runs on ADE20K and Cityscapes."""
STEP_MILESTONES = (0.889, 0.963)
"""Shares of the steps after which the rate falls to a tenth: the paper's run on COCO."""


def learning_rate_factor(
    step: int, *, steps: int, schedule: Schedule = "poly", warmup_steps: int = 0, decay_share: float = 0.3
) -> float:
    """Factor on the learning rate of ``step`` (from 0) in a run of ``steps``.

    ``poly``: ``(1 - step / steps) ** 0.9``. ``step``: 1, and a tenth of it after each milestone. ``linear``: 1, then
    down to zero over the last ``decay_share`` of the steps. All rise linearly over ``warmup_steps`` first.
    """
    rising = min((step + 1) / max(warmup_steps, 1), 1.0)
    if schedule == "poly":
        return float(rising * max(1 - step / steps, 0.0) ** POLY_POWER)
    if schedule == "step":
        return float(rising * 0.1 ** sum(step >= share * steps for share in STEP_MILESTONES))
    return max(min(rising, (steps - step) / max(decay_share * steps, 1)), 0.0)
