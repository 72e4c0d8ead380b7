"""A rectangle of pixels: the one way in which this project says "where"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A rectangle of pixels in one raster; rows grow southwards."""

    row: int
    """First row."""
    col: int
    """First column."""
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ValueError(f"A window needs a positive size, got {self.height}x{self.width}.")

    @property
    def stop_row(self) -> int:
        """The row after the last one."""
        return self.row + self.height

    @property
    def stop_col(self) -> int:
        """The column after the last one."""
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @classmethod
    def span(cls, row: int, col: int, stop_row: int, stop_col: int) -> Window:
        """The window from (row, col) up to, but without, (stop_row, stop_col)."""
        return cls(row, col, stop_row - row, stop_col - col)

    def intersect(self, other: Window) -> Window | None:
        """The common rectangle, or None where there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        stop_row, stop_col = min(self.stop_row, other.stop_row), min(self.stop_col, other.stop_col)
        if stop_row <= row or stop_col <= col:
            return None
        return Window.span(row, col, stop_row, stop_col)

    def slices(self, within: Window) -> tuple[slice, slice]:
        """Index of this window in an array that shows ``within``; it must lie inside."""
        if self.intersect(within) != self:
            raise ValueError(f"{self} does not lie inside {within}.")
        row, col = self.row - within.row, self.col - within.col
        return slice(row, row + self.height), slice(col, col + self.width)
