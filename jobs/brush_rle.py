"""The run-length code of Label Studio's brush: masks as runs of RGBA bytes, in the bit format of thi.ng's rle-pack.

A stream is a head (32 bits: number of values; 5: bits of a value less one; four times 4: bits of each size of run
counter less one) and then runs: a bit 1 for "repeat", 2 bits for which counter, the run's length less one, the value.
A mask of N pixels is 4 N values, the four channels of each pixel, 255 inside and 0 outside.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COUNTER_BITS = (4, 8, 12, 16)
"""Sizes of the counter of a run."""
LONGEST_RUN = 1 << COUNTER_BITS[-1]
VALUE_BITS = 8
CHANNELS = 4


def brush_rle(starts: NDArray[np.int64], lengths: NDArray[np.int64], pixels: int) -> list[int]:
    """The bytes of a mask of ``pixels`` pixels that is set in runs (ascending, apart) in scan order."""
    if pixels * CHANNELS >= 1 << 32:
        raise ValueError(f"A brush mask has fewer than 2³⁰ pixels, got {pixels:,}.")
    edges = np.stack([starts, starts + lengths], axis=1).ravel()
    sizes = np.diff(np.concatenate([[0], edges, [pixels]]))
    values = np.where(np.arange(len(sizes)) % 2 == 1, 255, 0)
    used = sizes > 0
    run_lengths, run_values = _split(sizes[used] * CHANNELS, values[used])
    codes, bits = _codes(run_lengths, run_values)
    head = (pixels * CHANNELS, 32), (VALUE_BITS - 1, 5), *((b - 1, 4) for b in COUNTER_BITS)
    stream = [*(_bits(np.array([v]), np.array([n])) for v, n in head), _bits(codes, bits)]
    packed: list[int] = np.packbits(np.concatenate(stream)).tolist()
    return packed


def _split(
    sizes: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of at most ``LONGEST_RUN`` values."""
    pieces = -(-sizes // LONGEST_RUN)
    lengths = np.full(int(pieces.sum()), LONGEST_RUN, np.int64)
    lengths[np.cumsum(pieces) - 1] = sizes - (pieces - 1) * LONGEST_RUN
    return lengths, np.repeat(values, pieces)


def _codes(
    lengths: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each run as a number, and how many bits it has."""
    which = np.searchsorted([1 << b for b in COUNTER_BITS], lengths)
    counter = np.array(COUNTER_BITS)[which]
    code = ((0b100 | which) << counter | (lengths - 1)) << VALUE_BITS | values
    return code, 3 + counter + VALUE_BITS


def _bits(codes: NDArray[np.int64], bits: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest ``bits`` bits of each code, the highest first, one after another."""
    shifts = bits[:, None] - 1 - np.arange(int(bits.max()))
    every = codes[:, None] >> np.maximum(shifts, 0) & 1
    used: NDArray[np.uint8] = every[shifts >= 0].astype(np.uint8)
    return used
