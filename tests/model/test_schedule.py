"""Learning rates over a run: exact factors of the three schedules."""

from __future__ import annotations

import itertools

import pytest

from panoptile.model.schedule import SCHEDULES, Schedule, learning_rate_factor


def factors(schedule: Schedule, steps: int = 1000, **options: float) -> list[float]:
    return [
        learning_rate_factor(step, steps=steps, schedule=schedule, **options)  # type: ignore[arg-type]
        for step in range(steps)
    ]


def test_poly_is_the_papers() -> None:
    """(1 - t / T) ** 0.9, from 1 down to nearly 0."""
    found = factors("poly")
    assert found[0] == 1.0
    assert found[500] == pytest.approx(0.5**0.9)
    assert found[999] == pytest.approx(0.001**0.9)


def test_step_falls_to_a_tenth_twice() -> None:
    """1 until 88.9 % of the steps, a tenth until 96.3 %, then a hundredth."""
    found = factors("step")
    assert found[:889] == [1.0] * 889
    assert found[889:963] == pytest.approx([0.1] * 74)
    assert found[963:] == pytest.approx([0.01] * 37)


def test_linear_stays_and_falls_to_zero() -> None:
    """Constant, then linear to 0; lengthening a run leaves its constant part as it was."""
    found = factors("linear", 100, warmup_steps=10, decay_share=0.25)
    assert found[0] == pytest.approx(0.1)
    assert found[9:76] == [1.0] * 67
    assert learning_rate_factor(100, steps=100, schedule="linear", decay_share=0.25) == 0.0
    assert all(a > b for a, b in itertools.pairwise(found[75:]))
    assert factors("linear", 300, warmup_steps=10, decay_share=0.25)[:75] == found[:75]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_rise_first(schedule: Schedule) -> None:
    """Over the warm-up the rate rises linearly, whatever comes after."""
    plain, warm = factors(schedule), factors(schedule, warmup_steps=50)
    for step in range(50):
        assert warm[step] == pytest.approx(plain[step] * (step + 1) / 50, rel=1e-9)
    assert warm[50:] == plain[50:]
