"""The seam rule against the rules of other tools, on noisy tiles."""

from __future__ import annotations

import pytest
from tests.benchmarks.seam_rules import compare


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_noisy_tiles_lose_nothing_against_an_untiled_run(seed: int) -> None:
    """PQ within 0.005 of an untiled run with the same noise, and above face merging and box NMS.

    The world has 2048² pixels: with fewer objects the chance of the noise alone is larger than 0.005.
    """
    pq = {name: values[0] for name, values in compare(seed, 2048, 512, 128).items()}
    ours = pq["overlap-band IoU + union-find (ours)"]
    print({name: round(value, 4) for name, value in pq.items()})
    assert ours >= pq["untiled, same noise (ceiling)"] - 0.005
    assert ours > pq["face merge"]
    assert ours > pq["box NMS .3"]
    assert ours > pq["core cut, no merge"]
