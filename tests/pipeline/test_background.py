"""Background tasks: all come back, a dead process costs a try, an error comes back in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.pipeline.background_calls import Devices, Double, Hang, Meet

from panoptile.pipeline.background import TRIES, Background, ProcessBackground, TaskResult

Make = Callable[[int], Background]


def _processes(count: int) -> Background:
    return ProcessBackground(count)


def _ray(count: int) -> Background:
    from panoptile.pipeline.ray_background import RayBackground

    return RayBackground(count)


@pytest.fixture(params=["processes", "ray"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Background] = []
    if request.param == "ray":
        request.getfixturevalue("small_ray")

    def one(count: int) -> Background:
        made.append(_ray(count) if request.param == "ray" else _processes(count))
        return made[-1]

    yield one
    for background in made:
        background.close()


def collect(background: Background, seconds: float = 120) -> dict[str, TaskResult]:
    """All results, within a time."""
    until, found = time.monotonic() + seconds, {}
    while background.pending() and time.monotonic() < until:
        for result in background.poll(0.2):
            assert result.key not in found
            found[result.key] = result
    assert not background.pending()
    return found


def test_every_task_comes_back_once_whatever_happens_to_its_process(make: Make, tmp_path: Path) -> None:
    """A process that dies is replaced and its task tried again; one that always dies is said to, with its error."""
    background = make(2)
    calls = {str(i): Double(i, tmp_path) for i in range(6)}
    calls["2"] = Double(2, tmp_path, deaths=1)
    calls["3"] = Double(3, tmp_path, raises=True)
    calls["4"] = Double(4, tmp_path, deaths=99)
    for key, call in calls.items():
        background.submit(key, call)
    found = collect(background)
    assert {key: r.value for key, r in found.items()} == {
        "0": 0,
        "1": 2,
        "2": 4,
        "3": None,
        "4": None,
        "5": 10,
    }
    assert "cannot be doubled" in found["3"].error
    assert found["4"].error
    assert not found["2"].error
    assert len(list(tmp_path.glob("4-*"))) == TRIES


def test_a_task_that_hangs_is_ended_and_tried_again(make: Make, tmp_path: Path) -> None:
    """One try takes too long: its process is killed and the next try succeeds."""
    background = make(1)
    background.submit("once", Hang(tmp_path, 1), seconds=8)
    background.submit("next", Double(4, tmp_path.parent))
    found = collect(background)
    assert (found["once"].value, found["once"].error) == (2, "")
    assert found["next"].value == 8


def test_a_task_that_always_hangs_ends_with_its_error(make: Make, tmp_path: Path) -> None:
    """After the last try it is said how it went, and the process is free for others."""
    background = make(1)
    background.submit("always", Hang(tmp_path, 99), seconds=2.5)
    background.submit("other", Double(4, tmp_path.parent))
    found = collect(background)
    assert found["always"].value is None
    assert "not done within" in found["always"].error
    assert f"{TRIES} times" in found["always"].error
    assert found["other"].value == 8


def test_more_tasks_run_at_once_once_there_is_room(make: Make, tmp_path: Path) -> None:
    """Two tasks that need each other end after the background was widened; it never shrinks."""
    a, b = tmp_path / "a", tmp_path / "b"
    background = make(1)
    background.submit("a", Meet(a, b))
    background.submit("b", Meet(b, a))
    background.widen(2)
    background.widen(1)
    assert {key: r.value for key, r in collect(background).items()} == {"a": True, "b": True}


def test_background_tasks_see_no_gpu(make: Make) -> None:
    """A publishing task must not open a context on a replica's GPU."""
    background = make(1)
    background.submit("devices", Devices())
    assert collect(background)["devices"].value == ""


def test_nothing_is_started_before_there_is_work(tmp_path: Path) -> None:
    """A run over one input pays nothing for what only many inputs need."""
    background = ProcessBackground(2)
    assert background.poll() == []
    assert background._processes == []
    background.submit("one", Double(1, tmp_path))
    assert sum(p.pid is not None for p in background._processes) == 1
    assert collect(background)["one"].value == 2
    background.close()
