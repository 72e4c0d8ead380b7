"""Cron expressions: five fields, checked before they go into a manifest that nobody watches at night.

Cron, Kubernetes' and KubeRay's parser (robfig/cron) and Airflow's (croniter) read most of them alike, not all:

- Sunday as 7, alone or at the end of a range, is an error to Kubernetes;
- ``5/10`` is 5-59/10 to Kubernetes and Airflow, and an error to cron;
- ranges and lists of names are not in cron's manual;
- where both day fields are given, a day suffices that is in one of them; but where one begins with ``*``, as ``*/2``
  does, cron wants a day that is in both;
- a date that never comes is an error to Airflow alone.

The first three are written in the one way that all read alike, the others are refused.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass

from panoptile.jobs.exits import invalid


@dataclass(frozen=True, slots=True)
class _Field:
    """What one of the five fields may hold."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """Of the values from ``low`` on."""

    @property
    def limit(self) -> int:
        """The largest number that may be written: 7 is a Sunday, too."""
        return 7 if self.name == _WEEKDAY else self.high


_WEEKDAY = "day of the week"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field(_WEEKDAY, 0, 6, _DAYS),
)
_PART = re.compile(r"(\*|[a-z0-9]{1,3}(?:-[a-z0-9]{1,3})?)(?:/([0-9]{1,3}))?")
_LEAP_YEAR = 2024


def check_cron(text: str) -> str:
    """The expression as all schedulers read it alike. Raises :class:`JobError` (exit 2) that names the wrong field.

    Taken are ``*``, numbers, English names of months and days, ranges, steps and lists; no ``@daily``, ``L`` or ``?``
    and no seconds, which not all of them know.
    """
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise invalid(
            f"--cron wants five fields (minute, hour, day, month, weekday), such as '0 2 * * *'; got {text!r}."
        )
    fields = [_rewritten(part.lower(), field, text) for part, field in zip(parts, _FIELDS, strict=True)]
    _check_days(*fields[2:], text=text)
    return " ".join(fields)


def _rewritten(part: str, field: _Field, text: str) -> str:
    items = [_item(item, field, text) for item in part.split(",")]
    return "*" if "*" in items else ",".join(items)


def _item(item: str, field: _Field, text: str) -> str:
    """A part of a list, in numbers; a step has a range before it, and Sunday is 0."""
    matched = _PART.fullmatch(item)
    if matched is None:
        raise invalid(f"--cron {text!r}: {item!r} is no {field.name}.")
    span, step = matched.groups()
    every = 1 if step is None else int(step)
    if not 1 <= every <= field.limit:
        raise invalid(f"--cron {text!r}: a step of {step} is out of range for the {field.name}.")
    if span == "*":
        return "*" if every == 1 else f"*/{every}"
    ends = [_number(word, field) for word in span.split("-")]
    first, last = ends[0], ends[-1] if step is None or len(ends) == 2 else field.high
    if first is None or last is None or not field.low <= first <= last <= field.limit:
        raise invalid(f"--cron {text!r}: {item!r} is no {field.name} ({field.low}-{field.limit}).")
    if last > field.high:
        return ",".join(str(day) for day in sorted({day % 7 for day in range(first, last + 1, every)}))
    if first == last:
        return str(first)
    return f"{first}-{last}" + (f"/{every}" if every > 1 else "")


def _number(word: str, field: _Field) -> int | None:
    if word in field.names:
        return field.names.index(word) + field.low
    return int(word) if word.isdigit() else None


def _check_days(day: str, month: str, weekday: str, *, text: str) -> None:
    """What the schedulers understand differently, or never comes."""
    if "*" not in (day, weekday) and (day.startswith("*") or weekday.startswith("*")):
        raise invalid(
            f"--cron {text!r}: a step over all days beside another day field means different days to different "
            "schedulers: write its range, such as 1-31/2."
        )
    longest = max(calendar.monthrange(_LEAP_YEAR, number)[1] for number in _values(month, 1, 12))
    if weekday == "*" and min(_values(day, 1, 31)) > longest:
        raise invalid(f"--cron {text!r}: there is no such date in any year.")


def _values(part: str, low: int, high: int) -> Iterator[int]:
    """The numbers of a rewritten field."""
    for item in part.split(","):
        span, _, step = item.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))
