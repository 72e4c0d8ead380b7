"""Exit codes, and the errors that carry them. See the README for the table that users read."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    INTERNAL = 1
    INVALID = 2
    """Invalid input or usage; nothing was started."""
    QUARANTINED = 3
    """Finished, but some units are missing from the result."""
    FAILED = 4
    OTHER_JOB = 5
    """The output folder holds another job, or another live run."""
    UNREACHABLE = 6
    """Cluster or storage cannot be reached, or refuses."""
    MISMATCH = 7
    OVER_BUDGET = 8
    INTERRUPTED = 130


class JobError(Exception):
    """Ends a command with one clear sentence and an exit code."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> JobError:
    """An error in the input or the usage: exit 2."""
    return JobError(Exit.INVALID, message)
