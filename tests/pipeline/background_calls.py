"""Calls for background processes to make."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Double:
    """Doubles a number; dies the first ``deaths`` times, or raises."""

    number: int
    folder: Path
    deaths: int = 0
    raises: bool = False

    def __call__(self) -> int:
        before = len(list(self.folder.glob(f"{self.number}-*")))
        (self.folder / f"{self.number}-{before}").touch()
        if before < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.raises:
            raise ValueError(f"{self.number} cannot be doubled")
        return 2 * self.number


@dataclass(frozen=True)
class Hang:
    """Hangs the first ``times`` times, then returns how often it was called."""

    folder: Path
    times: int

    def __call__(self) -> int:
        before = len(list(self.folder.iterdir()))
        (self.folder / str(before)).touch()
        if before < self.times:
            time.sleep(3600)
        return before + 1


@dataclass(frozen=True)
class Devices:
    """What the process sees of GPUs."""

    def __call__(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Meet:
    """Two of these can end only while both are running."""

    own: Path
    other: Path

    def __call__(self) -> bool:
        self.own.touch()
        until = time.monotonic() + 60
        while not self.other.exists() and time.monotonic() < until:
            time.sleep(0.05)
        return self.other.exists()
