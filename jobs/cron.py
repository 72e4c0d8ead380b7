"""Cron expressions: five fields, checked before they go into a manifest that nobody watches at night."""

from __future__ import annotations

import re

from panoptile.jobs.exits import invalid

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_PART = re.compile(r"^(\*|[a-z0-9]+(?:-[a-z0-9]+)?)(?:/([0-9]+))?$")


def check_cron(text: str) -> str:
    """The expression with single spaces. Raises :class:`JobError` (exit 2) that names the wrong field.

    Understood by cron, Kubernetes, KubeRay and Airflow alike: ``*``, numbers, English names of months and days,
    ranges, steps and lists; no ``@daily`` and no seconds, which not all of them know.
    """
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise invalid(
            f"--cron wants five fields (minute, hour, day, month, weekday), such as '0 2 * * *'; got {text!r}."
        )
    for part, field in zip(parts, _FIELDS, strict=True):
        for item in part.lower().split(","):
            _check_item(item, field, text)
    return " ".join(parts)


def _check_item(item: str, field: tuple[str, int, int, tuple[str, ...]], text: str) -> None:
    name, low, high, _ = field
    matched = _PART.match(item)
    if matched is None:
        raise invalid(f"--cron {text!r}: {item!r} is no {name}.")
    span, step = matched.groups()
    if step is not None and not 1 <= int(step) <= high:
        raise invalid(f"--cron {text!r}: a step of {step} is out of range for the {name}.")
    if span == "*":
        return
    ends = [_number(word, field) for word in span.split("-")]
    if any(end is None or not low <= end <= high for end in ends) or (len(ends) == 2 and ends[0] > ends[1]):  # type: ignore[operator]
        raise invalid(f"--cron {text!r}: {item!r} is no {name} ({low}-{high}).")


def _number(word: str, field: tuple[str, int, int, tuple[str, ...]]) -> int | None:
    _, low, _, names = field
    if word in names:
        return names.index(word) + low
    return int(word) if word.isdigit() else None
