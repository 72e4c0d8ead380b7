"""Bounded memory of decoding, however slowly the frames are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.benchmarks.video_memory import HEIGHT, LIMIT_MB, WIDTH, measure


def test_a_slow_consumer_does_not_fill_memory(tmp_path: Path) -> None:
    """Of 300 frames of 540p, 470 MB as pictures, neither backend holds more than 200 MB."""
    held: list[dict[str, float]] = []
    while len(held) < 2 and (
        not held or max(held[-1].values()) > LIMIT_MB
    ):  # see docs/design/005: a core may stand still
        found = measure(tmp_path, 300, 0.002, height=540, width=960)
        held.append({backend: growth for backend, (growth, _) in found.items()})
    print("\n" + "; ".join(str(one) for one in held))
    assert {backend: growth for backend, growth in held[-1].items() if growth > LIMIT_MB} == {}


@pytest.mark.slow
def test_1080p_and_2000_frames_stay_within_the_limit(tmp_path: Path) -> None:
    """1080p, 2,000 frames, a consumer that waits 20 ms on each: the resident set grows by at most 200 MB."""
    found = measure(tmp_path, 2000, 0.02, HEIGHT, WIDTH)
    print("\n" + ", ".join(f"{backend}: +{growth:.0f} MB" for backend, (growth, _) in found.items()))
    assert {backend: growth for backend, (growth, _) in found.items() if growth > LIMIT_MB} == {}
