"""Many inputs: each is published as soon as its units are done, beside the units of the others."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.jobs.runs import published
from tests.pipeline.rasters import write_raster
from tests.pipeline.trigger_replica import CLASSES, TriggerFactory

from panoptile.jobs import prepare as prepare_module
from panoptile.jobs import publishing
from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.event_log import read_events
from panoptile.jobs.exits import Exit
from panoptile.jobs.models import ResolvedModel
from panoptile.jobs.publishing import PublishCall, StreamedPublishing, longest_first, make_background
from panoptile.jobs.replicas import PUBLISHER_BYTES, publishers
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.background import Background
from panoptile.pipeline.driver import Listener
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.store import open_store

MODEL = ResolvedModel(TriggerFactory(), CLASSES, 3, "0" * 64, 0, 0, "trigger", lambda raster: None)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Three rasters of 1, 16 and 4 tiles."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name, side in (("a", 64), ("b", 256), ("c", 128)):
        write_raster(folder / f"{name}.tif", np.full((3, side, side), 100, np.uint8))
    return folder


def run(scenes: Path, out: Path) -> Summary:
    spec = JobSpec((str(scenes),), str(out), model="trigger", tile=64, overlap=0, local=True, workers=1)
    with mock.patch.object(prepare_module, "resolve_model", return_value=MODEL):
        return run_job(prepare_module.prepare(spec), Console(quiet=True))


def test_inputs_are_published_while_others_run_and_the_bytes_are_the_same(
    scenes: Path, tmp_path: Path
) -> None:
    """The largest input comes first and is published before the last unit is done; the tree equals a run that
    publishes at its end."""
    events: list[str] = []
    real_submit, real_listener = StreamedPublishing.input_done, Listener

    def input_done(streamed: StreamedPublishing, key: str) -> str | None:
        events.append(f"publish {key[0]}")
        return real_submit(streamed, key)

    def listener(*, on_done: Callable[[UnitReport], None], **others: object) -> Listener:
        def note(report: UnitReport) -> None:
            events.append(f"unit {report.unit.key[0]}")
            on_done(report)

        return real_listener(on_done=note, **others)  # type: ignore[arg-type]

    with (
        mock.patch.object(StreamedPublishing, "input_done", input_done),
        mock.patch("panoptile.jobs.open_units_run.Listener", listener),
    ):
        summary = run(scenes, tmp_path / "streamed")
    assert summary.exit is Exit.DONE
    logged = [e["input"] for e in read_events(open_store(tmp_path / "streamed")) if e["event"] == "publish"]
    assert sorted(map(Path, logged)) == sorted(scenes.iterdir())
    published_in_turn = [e for e in events if e.startswith("publish")]
    assert published_in_turn[0] == "publish b"
    assert sorted(published_in_turn) == [
        "publish a",
        "publish b",
        "publish c",
    ]  # the small ones may end together
    assert events.index("publish b") < events.index("unit a")
    results = tmp_path / "streamed" / "_state" / "results"
    assert len(list(results.iterdir())) == 3
    with mock.patch("panoptile.jobs.open_units_run.make_background", return_value=None):
        run(scenes, tmp_path / "at_end")
    assert published(tmp_path / "streamed") == published(tmp_path / "at_end")


def test_a_publication_that_fails_beside_the_run_is_made_at_its_end(scenes: Path, tmp_path: Path) -> None:
    """The background is a short cut, never the only way."""

    def broken(call: PublishCall) -> None:
        raise OSError("no scratch space here")

    with mock.patch.object(publishing, "ProcessBackground", InlineBackground), mock.patch.object(
        PublishCall, "__call__", broken
    ):  # fmt: skip
        summary = run(scenes, tmp_path / "out")
    assert summary.exit is Exit.DONE
    assert json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())["inputs"] == 3


class InlineBackground:
    """Runs each call when its result is asked for."""

    def __init__(self, count: int, threads: int) -> None:
        self.queue: list[tuple[str, Callable[[], object]]] = []

    def widen(self, count: int) -> None:
        """Everything is done at once anyway."""

    def submit(self, key: str, call: Callable[[], object], *, seconds: float) -> None:
        assert seconds > 1800
        self.queue.append((key, call))

    def pending(self) -> int:
        return len(self.queue)

    def poll(self, timeout: float = 0.0) -> list[object]:
        from panoptile.pipeline.background import TaskResult

        results: list[object] = []
        for key, call in self.queue:
            try:
                results.append(TaskResult(key, call()))
            except OSError as e:
                results.append(TaskResult(key, None, str(e)))
        self.queue.clear()
        return results

    def close(self) -> None: ...


def test_one_input_and_a_store_of_one_process_need_no_background() -> None:
    """Nothing is started where nothing could be gained, or where another process would not see the store."""
    local = JobSpec(("a",), "out", local=True)
    assert make_background(local, 1, 3) is None
    assert make_background(JobSpec(("a",), "memory://out", local=True), 5, 3) is None
    background = make_background(local, 5, 3)
    assert background is not None
    background.close()


@pytest.mark.parametrize(
    ("cores", "replicas", "threads", "machines", "expected"),
    [
        (2, 1, 1, 1, 1),  # no core to spare, yet one input is published at a time
        (8, 8, 1, 1, 1),
        (8, 1, 1, 1, 6),
        (8, 1, 4, 1, 3),
        (64, 8, 1, 1, 8),
        (192, 24, 1, 3, 24),
        (6, 3, 1, 3, 3),  # one a machine
    ],
)
def test_spare_cores_publish(cores: int, replicas: int, threads: int, machines: int, expected: int) -> None:
    """What the replicas leave over, at most eight a machine, at least one."""
    assert publishers(replicas, threads, cores=cores, machines=machines) == expected


def test_spare_cores_publish_no_more_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine free memory counts."""
    monkeypatch.setattr("panoptile.jobs.replicas.usable_cores", lambda: 16)
    memory = namedtuple("memory", "available")
    for free, expected in ((2**40, 8), (int(3.5 * PUBLISHER_BYTES), 3), (0, 1)):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: memory(free))
        assert publishers(1, 1) == expected


def test_as_many_inputs_are_published_at_once_as_may(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the machine has to spare is what the background gets, and the bytes are the same."""
    given: list[int] = []

    def made(spec: JobSpec, inputs: int, at_once: int) -> Background | None:
        given.append(at_once)
        return make_background(spec, inputs, at_once)

    monkeypatch.setattr("panoptile.jobs.open_units_run.make_background", made)
    run(scenes, tmp_path / "one")
    monkeypatch.setattr("panoptile.jobs.replicas.publishers", lambda *_, **__: 3)
    run(scenes, tmp_path / "three")
    assert given[1] == 3
    assert published(tmp_path / "one") == published(tmp_path / "three")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 99)), max_size=60))
def test_units_go_by_input_the_longest_first(pairs: list[tuple[str, int]]) -> None:
    """No unit is lost, those of an input follow each other in their order, longer inputs come first."""
    units = [Unit(key, first, 1) for key, first in pairs]
    ordered = longest_first(units)
    assert sorted(ordered) == sorted(units)
    keys = list(dict.fromkeys(u.key for u in ordered))
    lengths = [sum(u.key == key for u in units) for key in keys]
    assert lengths == sorted(lengths, reverse=True)
    for key in keys:
        assert [u for u in ordered if u.key == key] == [u for u in units if u.key == key]
    runs = [key for i, u in enumerate(ordered) for key in [u.key] if i == 0 or ordered[i - 1].key != key]
    assert len(runs) == len(keys)
