"""What a run says while it works: messages on stderr, data on stdout, no animation off a terminal.

Whatever is said goes through redaction first: no secret of the environment is ever shown. The one exception is a
manifest, which was looked through before.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from panoptile.pipeline.redaction import redacted, redacted_json

_LINE_EVERY = 10.0
"""Seconds between progress lines where there is no terminal."""


def counted(n: int, noun: str) -> str:
    """'1 raster', '1,000 rasters'."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


class Console:
    """Speaks for one command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def say(self, message: str) -> None:
        """A message for the user."""
        if not self._quiet:
            self._err.print(redacted(message), markup=False)

    def error(self, message: str) -> None:
        self._err.print(redacted(f"error: {message}"), markup=False)

    def data(self, text: str, fields: dict[str, Any], *, as_is: bool = False) -> None:
        """The command's result: ``text`` for people, ``fields`` with --json.

        ``as_is``: nothing is masked. Only for a text that was looked through for secrets, and that another program reads.
        """
        if not as_is:
            text, fields = redacted(text), redacted_json(fields)
        print(json.dumps({"schema_version": 1, **fields}) if self.as_json else text, flush=True)

    def progress(self, total: int) -> ProgressBar:
        return ProgressBar(self._err, total, quiet=self._quiet)


class ProgressBar:
    """Tiles done, with an estimate of the time left; plain lines where stderr is no terminal."""

    def __init__(self, console: RichConsole, total: int, *, quiet: bool) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._quiet = quiet
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.percentage:>3.0f}%"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("tiles  {task.fields[rate]}  failed {task.fields[failed]}  ETA"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("tiles", total=total, rate="", failed=0)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, tiles: int) -> None:
        self._done += tiles
        self._show()

    def fail(self) -> None:
        self._failed += 1
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        rate = self._done / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:.1f}/s", failed=self._failed)
        elif not self._quiet and (now - self._said >= _LINE_EVERY or self._done == self._total):
            self._said = now
            left = (self._total - self._done) / rate if rate else 0.0
            print(
                f"{self._done}/{self._total} tiles  {rate:.1f} tiles/s  failed {self._failed}  ETA {left:.0f} s",
                file=sys.stderr,
                flush=True,
            )
