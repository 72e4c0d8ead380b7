"""How the picture as a whole moved between two frames: one shift, from two small grey views of them.

From a drone or a car everything on the ground wanders over the picture, and after a few frames no object overlaps its
own place any more. Moved by the shift of the whole picture, what stands still on the ground overlaps itself again.

The shift is the peak of the phase correlation (Kuglin and Hines, "The phase correlation image alignment method", 1975),
taken between pixels as the ratio of the two highest neighbours (Foroosh, Zerubia and Berthod, "Extension of phase
correlation to subpixel registration", 2002, section III). It is believed only where the two views, laid over each other
with it, are much more alike than without: noise, a cut and a picture that turns have a peak, too.

Letters: H, W of a frame; h, w of a view; P segments of the frame before, N of this one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

from panoptile.pipeline.label_runs import LabelRuns, pair_table

VIEW_SIDE = 192
"""Longer side of a view at most, in pixels."""
_SAMPLES = 4
"""Pixels of the frame along each side of a pixel of the view are thinned to no fewer than these before averaging."""
_SMALLEST_SIDE = 16
"""A view with a shorter side says nothing: a strip."""
_GAIN = 0.8
"""The shift counts where it leaves less than this share of the difference of the views."""
_COMMON = 0.25
"""Share of the view that both frames must see."""

NO_SHIFT = (0, 0)


def grey_view(frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A small grey picture (h, w) of a frame (H, W, 3): averages over squares of ``view_step`` pixels."""
    step, thin = _steps(frame_HWC.shape[0], frame_HWC.shape[1])
    thinned = np.ascontiguousarray(frame_HWC[::thin, ::thin])
    grey = np.asarray(Image.fromarray(thinned).convert("L").reduce(step // thin))
    view: NDArray[np.uint8] = grey[: frame_HWC.shape[0] // step, : frame_HWC.shape[1] // step]
    return view


def view_step(height: int, width: int) -> int:
    """Pixels of a frame (``height``, ``width``) along each side of a pixel of its view."""
    return _steps(height, width)[0]


def _steps(height: int, width: int) -> tuple[int, int]:
    least = max(1, -(-max(height, width) // VIEW_SIDE))
    thin = max(1, least // _SAMPLES)
    return thin * -(-least // thin), thin


def picture_shift(before: NDArray[np.uint8], now: NDArray[np.uint8], step: int) -> tuple[int, int]:
    """(rows, columns) in pixels of the frames by which ``before`` must be moved to lie on ``now``; (0, 0) if unsure.

    Args:
        before, now: views (h, w) of the two frames.
        step: see :func:`view_step`.
    """
    if before.shape != now.shape or min(now.shape) < _SMALLEST_SIDE:
        return NO_SHIFT
    rows, cols = _peak(_correlation(before, now))
    if not _is_better(before, now, round(rows), round(cols)):
        return NO_SHIFT
    return round(rows * step), round(cols * step)


def moved_iou(
    before: NDArray[np.integer], now: LabelRuns, p: int, n: int, shift: tuple[int, int]
) -> NDArray[np.float32]:
    """(P, N) intersection over union of the segments of two frames, the one before moved by ``shift``.

    Areas are counted over what both frames see, so what leaves the picture or comes into it is not held against a pair.

    Args:
        before: map (H, W) of labels 0…P.
        now: the runs of the map of labels 0…N.
    """
    unseen = p + 1
    table = pair_table(LabelRuns.of(moved(before, shift, unseen)), now, unseen, n)[:unseen]
    common = table[1:, 1:]
    union = table[1:].sum(axis=1)[:, None] + table[:, 1:].sum(axis=0)[None] - common
    iou: NDArray[np.float32] = (common / np.maximum(union, 1)).astype(np.float32)
    return iou


def moved(labels: NDArray[np.integer], shift: tuple[int, int], unseen: int) -> NDArray[np.integer]:
    """The map (H, W) moved by ``shift`` (rows, columns); ``unseen`` where nothing is known."""
    out = np.full_like(labels, unseen)
    source, target = _common(labels.shape[0], shift[0]), _common(labels.shape[1], shift[1])
    out[source[1], target[1]] = labels[source[0], target[0]]
    return out


def _correlation(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(h, w) phase correlation of the views, faded out towards their edges."""
    fade = np.outer(*(np.hanning(side + 2)[1:-1] for side in now.shape))
    spectra = [fft.rfft2((view - view.mean()) * fade) for view in (before, now)]
    cross = spectra[1] * np.conj(spectra[0])
    length = np.abs(cross)
    correlation: NDArray[np.float64] = fft.irfft2(
        np.divide(cross, length, out=np.zeros_like(cross), where=length > 0), s=now.shape
    )
    return correlation


def _peak(correlation: NDArray[np.float64]) -> tuple[float, float]:
    """Where the peak lies between the pixels, as a shift in (-h/2, h/2] and (-w/2, w/2]."""
    at = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
    found = []
    for axis, side in enumerate(correlation.shape):
        line = np.take(correlation, at[1 - axis], axis=1 - axis)
        here = int(at[axis])
        low, peak, high = line[here - 1], line[here], line[(here + 1) % side]
        beside, sign = (high, 1) if high > low else (low, -1)
        part = sign * float(beside / (beside + peak)) if beside > 0 else 0.0
        found.append(here + part - (side if here > side // 2 else 0))
    return found[0], found[1]


def _is_better(before: NDArray[np.uint8], now: NDArray[np.uint8], rows: int, cols: int) -> bool:
    """True where the views differ much less once ``before`` is moved; False for a shift of nothing."""
    if (rows, cols) == NO_SHIFT:
        return False
    down, right = _common(now.shape[0], rows), _common(now.shape[1], cols)
    there = now[down[1], right[1]].astype(np.int16)
    if there.size < _COMMON * now.size:
        return False
    aligned = np.abs(there - before[down[0], right[0]]).mean()
    still = np.abs(there - before[down[1], right[1]]).mean()
    return bool(aligned < _GAIN * still)


def _common(side: int, shift: int) -> tuple[slice, slice]:
    """Where what both frames see lies in the one before, and in this one."""
    size = max(0, side - abs(shift))
    source, target = max(0, -shift), max(0, shift)
    return slice(source, source + size), slice(target, target + size)
