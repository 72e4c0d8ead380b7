"""The seam rule against the rules of other tools, on noisy tiles."""

from __future__ import annotations

import pytest
from tests.benchmarks.seam_rules import compare


@pytest.mark.parametrize(("seed", "tile", "overlap"), [(0, 384, 96), (1, 512, 128)])
def test_noisy_tiles_lose_nothing_against_an_untiled_run(seed: int, tile: int, overlap: int) -> None:
    """PQ within 0.005 of an untiled run with the same noise, and above face merging and box NMS."""
    pq = {name: values[0] for name, values in compare(seed, 1280, tile, overlap).items()}
    ours = pq["overlap-band IoU + union-find (ours)"]
    print({name: round(value, 4) for name, value in pq.items()})
    assert ours >= pq["untiled, same noise (ceiling)"] - 0.005
    assert ours > pq["face merge"]
    assert ours > pq["box NMS .3"]
    assert ours > pq["core cut, no merge"]
