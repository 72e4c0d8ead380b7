"""Cron expressions: what is taken, how it is written, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptile.jobs.cron import check_cron
from panoptile.jobs.exits import JobError


@pytest.mark.parametrize("text", ["0 2 * * *", "*/15 0-5,22 1 * *", "5 4 * * 0", "0 0 31 12 *", "0 0 29 2 *",
    "0 0 1-31/2 * 1", "0 0 1,15 * 1-5", "0 0 */2 * *", "0 0 30 2 1"])  # fmt: skip
def test_cron_expressions(text: str) -> None:
    """What every scheduler understands alike passes as it is."""
    assert check_cron(f"  {text} ") == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 * * 1-7/2", "0 0 * * 0,1,3,5"),
        ("0 0 * * 0-7", "0 0 * * 0,1,2,3,4,5,6"),
        ("0 0 * JAN-Mar mon,Wed", "0 0 * 1-3 1,3"),
        ("5/10 8/4 * * 1/2", "5-59/10 8-23/4 * * 1-6/2"),
        ("*/1 05 5-5/2 */12 *", "* 5 5 */12 *"),
        ("0 0 1,* * 1", "0 0 * * 1"),
    ],
)
def test_cron_expressions_that_are_not_read_alike(text: str, written: str) -> None:
    """What one scheduler refuses or takes for something else is written as all of them read it."""
    assert check_cron(text) == written
    assert check_cron(written) == written


def numbers(field: str, low: int, high: int) -> set[int]:
    """What a field of numbers means to Kubernetes, where a step on one number goes on to the end."""
    found: set[int] = set()
    for item in field.split(","):
        span, _, step = item.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        end = int(last or (high if step else first))
        found |= set(range(int(first), end + 1, int(step or 1)))
    return found


@st.composite
def fields(draw: st.DrawFn, low: int, high: int) -> str:
    """A field of a cron expression: a list of all, numbers and ranges, with and without steps."""
    items = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high))
        last = draw(st.integers(first, high))
        span = draw(st.sampled_from(["*", f"{first}", f"{first}-{last}"]))
        items.append(span + draw(st.sampled_from(["", f"/{draw(st.integers(1, high))}"])))
    return ",".join(items)


@given(minute=fields(0, 59), weekday=fields(0, 6))
def test_a_rewritten_expression_means_the_same(minute: str, weekday: str) -> None:
    """The same minutes and the same days; nothing is left that schedulers read differently."""
    written = check_cron(f"{minute} 0 * * {weekday}")
    new_minute, *_, new_weekday = written.split()
    assert numbers(new_minute, 0, 59) == numbers(minute, 0, 59)
    assert numbers(new_weekday, 0, 6) == numbers(weekday, 0, 6)
    assert all("-" in item or "*" in item for item in written.replace(",", " ").split() if "/" in item)


@pytest.mark.parametrize(
    "text",
    ["", "0 2 * *", "60 2 * * *", "0 24 * * *", "0 2 0 * *", "0 2 * 13 *", "0 2 * * 8", "5-1 2 * * *", "@daily",
     "0 2 * * *; rm", "*/0 * * * *", "0 2 * * * *", "a * * * *", "1,,2 * * * *", "0 2 * * $(x)", "0 0 ? * *", "0 0 L * *",
     "0 0 * * 5L", "0 0 * * mon#1", "0 0 15W * *", "0 0 * * 6-8", "0 0 * * 7/2", "0 0 * * fri-sun", "0 0 */2 * 1",
     "0 0 1 * */2", "0 0 30 2 *", "0 0 31 2,4-6/2 *"],
)  # fmt: skip
def test_wrong_cron_expressions(text: str) -> None:
    """Each is refused in one sentence, before it waits for its night."""
    with pytest.raises(JobError, match="--cron"):
        check_cron(text)
