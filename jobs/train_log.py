"""What a training says and keeps of itself: a JSONL of figures, TensorBoard's files, and progress with an ETA."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY = 30.0
"""Seconds between progress lines where there is no terminal."""

NO_TENSORBOARD = "TensorBoard files are not written: pip install 'panoptile[train]' brings what they need."


class MetricsLog:
    """Rows of ``metrics.jsonl``, each step once: rows after the step that a run resumes from are dropped."""

    def __init__(self, folder: Path, *, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        _drop_rows_after(self.path, step)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._board: Any = None
        self.note: str | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note = NO_TENSORBOARD
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def row(self, values: dict[str, Any]) -> None:
        """Append one row; its numbers go to TensorBoard too."""
        self._file.write(json.dumps(values) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, values["step"])


def _drop_rows_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (row := _parsed(line)) is not None and row["step"] <= step]
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(scratch, path)


def _parsed(line: str) -> dict[str, Any] | None:
    """A row; None for a last line that a kill cut short."""
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row


class TrainProgress:
    """Steps done, the loss and the time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, steps: int, done: int, *, quiet: bool) -> None:
        self._steps, self._first, self._done = steps, done, done
        self._started = self._said = time.monotonic()
        self._quiet = quiet
        console = RichConsole(stderr=True, highlight=False, emoji=False)
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.percentage:>3.0f}%"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps  {task.fields[text]}  ETA"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("steps", total=steps, completed=done, text="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, *, loss: float) -> None:
        """After a step."""
        self._done = step
        text = f"loss {loss:.3f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if not self._quiet and (now - self._said >= _LINE_EVERY or step == self._steps):
            self._said = now
            rate = (step - self._first) / max(now - self._started, 1e-9)
            left = (self._steps - step) / rate if rate else 0.0
            print(
                f"{step}/{self._steps} steps  {rate:.2f} steps/s  {text}  ETA {left:.0f} s",
                file=sys.stderr,
                flush=True,
            )
