"""What stands in an option, or in a job file, as the value that the job holds."""

from __future__ import annotations

JOB_FILE_SUFFIXES = (".yaml", ".yml")
"""By which a job file is told from a source."""
_SECONDS = {"s": 1, "m": 60, "h": 3600}
DURATIONS = {"unit_timeout": "--timeout-unit", "start_timeout": "--start-timeout"}
"""Options whose text is a time; in a job file they are seconds, or such a text."""
NAME_LISTS = frozenset({"fuse", "classes", "exclude", "regions", "allow_drivers"})
"""Options whose text is a list of names."""


def names(option: str, text: str | None) -> tuple[str, ...]:
    """'a, b' -> ('a', 'b'). Raises ``ValueError`` for a list without a name: it would silently keep everything."""
    if text is None:
        return ()
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError(f"{option.replace('_', '-')} wants names separated by commas, got {text!r}.")
    return found


def seconds(option: str, text: str) -> float:
    """'90', '90s', '10m' or '1h' in seconds. Raises ``ValueError``."""
    number, unit = text.strip(), 1
    if number[-1:] in _SECONDS:
        number, unit = number[:-1], _SECONDS[number[-1]]
    try:
        return float(number) * unit
    except ValueError:
        raise ValueError(f"{option} wants a time such as 90, 90s, 10m or 1h, got {text!r}.") from None


def band_numbers(text: str | None) -> tuple[int, ...] | None:
    """'4,3,2' -> (4, 3, 2). Raises ``ValueError``."""
    if text is None:
        return None
    try:
        bands = tuple(int(part) for part in text.split(","))
    except ValueError:
        bands = ()
    if not bands or min(bands) < 1:
        raise ValueError(f"--bands wants band numbers from 1, such as 1,2,3; got {text!r}.")
    return bands
