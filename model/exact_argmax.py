"""Which of many weighted maps is highest at each pixel of a larger image, without resizing all of them.

Unusual: the result is that of ``(weights * F.interpolate(maps, size)).argmax(0)``, bit for bit, but most pixels are
never computed. A bilinear sample lies between the smallest and the largest of its neighbours, so in a tile only the
maps whose maximum reaches the largest minimum can win, and where one is left the tile is its own. What is left is
sampled with the arithmetic of ``F.interpolate`` itself; the order of its one fused multiplication differs between
processors and is found by trial, once. Where no order matches, each map is resized as a whole, one at a time.

Letters: n maps, H W pixels of the image, h w pixels of the maps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

_TILE = 64
"""Pixels of the image along a tile: some ten of a map, so that few maps compete in it."""
_SLACK = 1e-5
"""Relative width of the doubt about bounds, far above rounding."""
_PIXEL_CHANNELS = 3
"""torch resizes arrays of just this many channels by a kernel of its own, which rounds differently."""
_SMALL = 1 << 16
"""Pixels up to which all maps are resized together: for small images too torch has another kernel."""

Combine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``first * weight_first + second * weight_second`` with one of several roundings."""


class Winners(NamedTuple):
    """The winning map of each pixel, and what the rules on areas need."""

    winner: Tensor
    """(H, W) int32; of equal maps the first."""
    area: Tensor
    """(n,) int64 pixels that each map wins."""
    reach: Tensor
    """(n,) int64 pixels where each weighted map is at least the threshold."""


class _Taps(NamedTuple):
    """For each output along one axis, its two inputs and their weights."""

    first: Tensor
    second: Tensor
    weight_first: Tensor
    weight_second: Tensor

    def part(self, start: int, stop: int) -> _Taps:
        return _Taps(*(x[start:stop] for x in self))


def weighted_argmax(
    maps_nhw: Tensor, weights_n: Tensor, size: tuple[int, int], *, threshold: float = 0.0
) -> Winners:
    """``(weights * F.interpolate(maps, size, mode="bilinear", align_corners=False)).argmax(0)`` and its areas.

    ``maps`` must be fp32 and not negative, ``weights`` positive; at least one map.
    """
    is_special = len(maps_nhw) == _PIXEL_CHANNELS or size[0] * size[1] <= _SMALL
    if is_special or tuple(maps_nhw.shape[1:]) == size or _combine(maps_nhw.device) is None:
        return _running(maps_nhw, weights_n, size, threshold)
    return _tiled(maps_nhw.contiguous(), weights_n, size, threshold)


def _running(maps_nhw: Tensor, weights_n: Tensor, size: tuple[int, int], threshold: float) -> Winners:
    """The plain version: each map resized as a whole and compared with the best so far."""
    best = torch.full(size, -1.0, device=maps_nhw.device)
    index = torch.zeros(size, dtype=torch.int32, device=maps_nhw.device)
    reach = []
    for k, weighted in enumerate(_resized(maps_nhw, weights_n, size)):
        reach.append((weighted >= threshold).sum())
        index.masked_fill_(weighted > best, k)  # strictly: of equals the first wins
        torch.maximum(best, weighted, out=best)
    # A band at a time: the count makes an int64 copy.
    counts = [torch.bincount(band.flatten(), minlength=len(maps_nhw)) for band in torch.split(index, _TILE)]
    return Winners(index, torch.stack(counts).sum(0), torch.stack(reach))


def _resized(maps_nhw: Tensor, weights_n: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    is_whole = len(maps_nhw) == _PIXEL_CHANNELS or size[0] * size[1] <= _SMALL
    together = len(maps_nhw) if is_whole else 1
    for maps, weights in zip(torch.split(maps_nhw, together), torch.split(weights_n, together), strict=True):
        if tuple(maps.shape[1:]) != size:
            maps = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
        yield from maps * weights[:, None, None]


def resize_chosen(maps_Qhw: Tensor, chosen: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(maps, size)[chosen]``, bit for bit, without resizing the others."""
    if len(maps_Qhw) == _PIXEL_CHANNELS:
        return F.interpolate(maps_Qhw[None], size=size, mode="bilinear", align_corners=False)[0][chosen]
    parts = torch.split(chosen, 1) if len(chosen) == _PIXEL_CHANNELS else (chosen,)
    resized = [
        F.interpolate(maps_Qhw[part][None], size=size, mode="bilinear", align_corners=False)[0]
        for part in parts
    ]
    return torch.cat(resized)


def _tiled(maps_nhw: Tensor, weights_n: Tensor, size: tuple[int, int], threshold: float) -> Winners:
    count, device = len(maps_nhw), maps_nhw.device
    rows = _taps(maps_nhw.shape[1], size[0], device)
    cols = _taps(maps_nhw.shape[2], size[1], device)
    index = torch.empty(size, dtype=torch.int32, device=device)
    area, reach = torch.zeros((2, count), dtype=torch.int64, device=device)
    for top in range(0, size[0], _TILE):
        bottom = min(top + _TILE, size[0])
        band = _Band(maps_nhw, weights_n, rows.part(top, bottom), cols, threshold)
        reach += band.paint(index[top:bottom])
        area += torch.bincount(index[top:bottom].flatten(), minlength=count)
    return Winners(index, area, reach)


class _Band:
    """One row of tiles."""

    def __init__(
        self, maps_nhw: Tensor, weights_n: Tensor, rows: _Taps, cols: _Taps, threshold: float
    ) -> None:
        self.cols, self.threshold, self.weights_n11 = cols, threshold, weights_n[:, None, None]
        self.first_row = int(rows.first[0])
        self.maps = maps_nhw[:, self.first_row : int(rows.second[-1]) + 1]
        self.rows = rows._replace(first=rows.first - self.first_row, second=rows.second - self.first_row)

    def paint(self, index_tW: Tensor) -> Tensor:
        """Fill the band's rows of the index; returns (n,) the pixels that reach the threshold in them."""
        width = index_tW.shape[1]
        starts = list(range(0, width, _TILE))
        low_nT, high_nT = self._bounds(starts, width)
        may_win_nT = high_nT >= low_nT.amax(0)
        surely_nT = low_nT > self.threshold * (1 + _SLACK)
        doubtful_nT = (high_nT >= self.threshold * (1 - _SLACK)) & ~surely_nT
        pixels_T = torch.tensor([min(_TILE, width - s) * len(index_tW) for s in starts], device=low_nT.device)
        reach = (surely_nT * pixels_T).sum(1)
        competing, alone = may_win_nT | doubtful_nT, (may_win_nT.sum(0) == 1).tolist()
        single = may_win_nT.int().argmax(0).tolist()
        table = competing.T.cpu()
        for t, start in enumerate(starts):
            stop = min(start + _TILE, width)
            asked = table[t].nonzero()[:, 0].to(index_tW.device)
            if alone[t]:
                index_tW[:, start:stop] = single[t]
                asked = asked[doubtful_nT[asked, t]]
                if not len(asked):
                    continue
            values = self._sample(asked, start, stop)
            undecided = doubtful_nT[asked, t].nonzero()[:, 0]
            if len(undecided):
                reach[asked[undecided]] += (values[undecided] >= self.threshold).flatten(1).sum(1)
            if not alone[t]:
                index_tW[:, start:stop] = asked[_first_argmax(values)]
        return reach

    def _bounds(self, starts: list[int], width: int) -> tuple[Tensor, Tensor]:
        """(n, T) values that no pixel of a tile falls below, and none exceeds."""
        low_nw, high_nw = self.maps.amin(1), self.maps.amax(1)
        lows, highs = [], []
        for start in starts:
            stop = min(start + _TILE, width)
            part = slice(int(self.cols.first[start]), int(self.cols.second[stop - 1]) + 1)
            lows.append(low_nw[:, part].amin(1))
            highs.append(high_nw[:, part].amax(1))
        weights_n1 = self.weights_n11[:, 0]
        return (
            torch.stack(lows, 1) * weights_n1 * (1 - _SLACK),
            torch.stack(highs, 1) * weights_n1 * (1 + _SLACK),
        )

    def _sample(self, chosen: Tensor, start: int, stop: int) -> Tensor:
        """(len(chosen), rows, stop - start) weighted values, as ``F.interpolate`` rounds them."""
        combine = _combine(self.maps.device)
        assert combine is not None
        cols = self.cols.part(start, stop)
        left = int(cols.first[0])
        maps = self.maps[chosen, :, left : int(cols.second[-1]) + 1]
        cols = cols._replace(first=cols.first - left, second=cols.second - left)
        values = _mix(combine, _mix(combine, maps, cols, 2), self.rows, 1)
        return values.mul_(self.weights_n11[chosen])


@lru_cache(maxsize=16)
def _taps(inputs: int, outputs: int, device: torch.device) -> _Taps:
    """Which inputs a linear ``F.interpolate`` mixes for each output, with which fp32 weights.

    The position of an output is ``(i + 0.5) * scale - 0.5``, rounded once (where that is one fused operation).
    """
    with torch.inference_mode(False):
        scale = (torch.tensor(inputs, dtype=torch.float32) / outputs).double()
        position = (
            (scale * (torch.arange(outputs, dtype=torch.float64) + 0.5) - 0.5).clamp(min=0).float().to(device)
        )
        first = position.long().clamp(max=inputs - 1)
        second = (first + 1).clamp(max=inputs - 1)
        weight_second = (position - first).clamp(0, 1)
        return _Taps(first, second, 1 - weight_second, weight_second)


def _first_argmax(values_nrc: Tensor) -> Tensor:
    """``values.argmax(0)``, the first of equals, by passes over whole rows (an arg-max over columns is slow)."""
    count = len(values_nrc)
    rank_n11 = torch.arange(count, 0, -1, dtype=torch.int16, device=values_nrc.device)[:, None, None]
    return count - ((values_nrc == values_nrc.amax(0)) * rank_n11).amax(0).long()


def _mix(combine: Combine, maps_nhw: Tensor, taps: _Taps, axis: int) -> Tensor:
    """Maps resampled along one axis."""
    weights = [w if axis == 2 else w[:, None] for w in (taps.weight_first, taps.weight_second)]
    first, second = maps_nhw.index_select(axis, taps.first), maps_nhw.index_select(axis, taps.second)
    return combine(first, weights[0], second, weights[1])


def _plain(first: Tensor, weight_first: Tensor, second: Tensor, weight_second: Tensor) -> Tensor:
    return first * weight_first + second * weight_second


def _first_fused(first: Tensor, weight_first: Tensor, second: Tensor, weight_second: Tensor) -> Tensor:
    return (second * weight_second).addcmul_(first, weight_first)


def _second_fused(first: Tensor, weight_first: Tensor, second: Tensor, weight_second: Tensor) -> Tensor:
    return (first * weight_first).addcmul_(second, weight_second)


@lru_cache(maxsize=8)
def _combine(device: torch.device) -> Combine | None:
    """The rounding that ``F.interpolate`` has on this device, found on random maps; None if it is none of ours."""
    with torch.inference_mode(False):
        maps = torch.rand((4, 31, 29), generator=torch.Generator().manual_seed(0)).to(device)
        size = (173, 211)
        expected = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
        rows, cols = _taps(31, size[0], device), _taps(29, size[1], device)
        for combine in (_first_fused, _second_fused, _plain):
            got = _mix(combine, _mix(combine, maps, cols, 2), rows, 1)
            if torch.equal(got, expected):
                return combine
    log.info("torch resizes on %s in a way that cannot be pruned exactly: maps are resized whole.", device)
    return None
