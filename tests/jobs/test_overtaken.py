"""Runs whose plan, or whose lease, is out of date: what others have finished meanwhile stays, and is listed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.jobs.nights import Nights
from tests.jobs.runs import published, threads

from panoptile.jobs import leased_run, results, segment, survey
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.follow import Followed, LeaseLost, take_lease
from panoptile.jobs.lease import claim, highest_epoch
from panoptile.jobs.leased_run import LeasedRun
from panoptile.jobs.prepare import Prepared, prepare
from panoptile.jobs.report_text import summary_fields
from panoptile.jobs.results import result_key
from panoptile.jobs.segment import run_job
from panoptile.jobs.survey import open_units
from panoptile.jobs.verify import verify
from panoptile.pipeline import layout
from panoptile.pipeline.store import open_store

WORLD = (6, 110, 150)
QUIET = Console(quiet=True)
ALL = {"a.tif", "b.tif", "c.tif"}


def overtake(nights: Nights) -> None:
    """A run that has taken the holder for dead works from its start to its end."""
    store = open_store(nights.out)
    lease = claim(store, highest_epoch(store))
    assert lease is not None
    LeasedRun(store, prepare(nights.spec()), QUIET, lease, True).to_its_end()


def is_whole(nights: Nights) -> bool:
    return nights.listed() == ALL and int(verify(open_store(nights.out)).exit) == 0


def test_a_plan_from_before_another_run_does_not_undo_it(nights: Nights) -> None:
    """Two commands name other sheets for one OUT; the second was planned before the first ran: both are there."""
    nights.add("a.tif", "b.tif", "c.tif")
    first = dataclasses.replace(nights.spec(), sources=(str(nights.sheets / "a.tif"),))
    rest = dataclasses.replace(
        nights.spec(), sources=(str(nights.sheets / "b.tif"), str(nights.sheets / "c.tif"))
    )
    planned = prepare(rest)
    with threads():
        run_job(prepare(first), QUIET)
        assert run_job(planned, QUIET).exit is Exit.DONE
    assert is_whole(nights)


def test_a_plan_from_beside_another_run_does_not_undo_it(nights: Nights) -> None:
    """The same, planned while the first was at work: its lease is the newest one then, too."""
    nights.add("a.tif", "b.tif", "c.tif")
    rest = dataclasses.replace(
        nights.spec(), sources=(str(nights.sheets / "b.tif"), str(nights.sheets / "c.tif"))
    )
    planned: list[Prepared] = []
    real = survey.survey

    def planning(*arguments: Any) -> Any:
        if not planned:
            planned.append(prepare(rest))
        return real(*arguments)

    first = dataclasses.replace(nights.spec(), sources=(str(nights.sheets / "a.tif"),))
    with threads(), mock.patch.object(leased_run, "survey", planning):
        run_job(prepare(first), QUIET)
        assert run_job(planned[0], QUIET).exit is Exit.DONE
    assert is_whole(nights)


def test_a_resumed_run_is_not_planned_twice(nights: Nights) -> None:
    """After a run that has ended, headers are read once: nobody can have worked since."""
    nights.add("a.tif")
    nights.run()
    nights.add("b.tif")
    planned = prepare(nights.spec())
    with threads(), mock.patch.object(leased_run, "prepare", side_effect=AssertionError):
        assert run_job(planned, QUIET).exit is Exit.DONE


@pytest.mark.parametrize("moment", ["state.planned", "manifest.before", "generation.before"])
def test_a_holder_that_wakes_up_late_lists_what_the_other_has_done(
    nights: Nights, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overtaken at any step by a run that knows one sheet more: the late one ends with all sheets listed."""
    nights.add("a.tif", "b.tif")
    at = survey if moment.startswith("state") else leased_run

    def other_run() -> None:
        nights.add("c.tif")
        overtake(nights)

    _once_at(moment, other_run, at, monkeypatch)
    assert nights.run().exit is Exit.DONE
    assert is_whole(nights)


def test_a_manifest_that_was_written_over_is_made_again(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The late holder had asked, and was overtaken before it wrote: its older list does not stay."""
    nights.add("a.tif", "b.tif")
    real, done = results.manifest, threading.Event()

    def listed(*arguments: Any) -> bytes:
        data = real(*arguments)
        if not done.is_set():
            done.set()
            nights.add("c.tif")
            overtake(nights)
        return data

    monkeypatch.setattr(leased_run, "manifest", listed)
    assert nights.run().exit is Exit.DONE
    assert is_whole(nights)


def test_an_input_that_was_published_over_is_published_again(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overtaken while it publishes, the late holder leaves no record that its files are the right ones."""
    nights.add("a.tif")
    real, times = leased_run._finish, []

    def finishing(*arguments: Any) -> Any:
        finished = real(*arguments)
        times.append(finished)
        if len(times) == 1:
            overtake(nights)
            assert (nights.out / result_key(finished.plan.key)).exists()
        return finished

    monkeypatch.setattr(leased_run, "_finish", finishing)
    assert nights.run().exit is Exit.DONE
    assert len(times) == 3
    assert nights.listed() == {"a.tif"}
    assert int(verify(open_store(nights.out)).exit) == 0


def test_nothing_is_withdrawn_without_the_lease(nights: Nights) -> None:
    """Who has lost the lease takes neither _SUCCESS.json nor a commit away from a finished job."""
    nights.add("a.tif")
    nights.run()
    before = published(nights.out)
    store = open_store(nights.out)
    [commit, *_] = store.keys("_state/commits")
    store.put_bytes(commit, b"damaged")

    def lost() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        open_units(store, prepare(nights.spec()).plans, lost)
    assert store.exists(layout.SUCCESS)
    assert store.read_bytes(commit) == b"damaged"
    assert published(nights.out) == before


def test_who_followed_a_run_over_fewer_sheets_does_the_rest(nights: Nights) -> None:
    """A sheet came after the run that is followed had begun: the follower does it, and nothing has failed."""
    nights.add("a.tif", "b.tif")
    nights.run()
    nights.add("c.tif")
    followed = [Followed(Exit.DONE, skipped=False)]

    def attach(*arguments: Any) -> Any:
        return followed.pop() if followed else take_lease(*arguments)

    with mock.patch.object(segment, "take_lease", attach):
        assert nights.run().exit is Exit.DONE
    assert not followed
    assert is_whole(nights)


def test_a_stale_plan_withdraws_nothing_where_too_much_is_broken_now(nights: Nights) -> None:
    """Planned before another run and before a heap of broken files came: exit 4, and the finished result stays."""
    nights.add("a.tif", "b.tif")
    options = {"skip_invalid": True, "max_failures": "1"}
    planned = prepare(nights.spec(**options))
    with threads():
        run_job(prepare(dataclasses.replace(planned.spec, sources=(str(nights.sheets / "a.tif"),))), QUIET)
    for number in range(3):
        (nights.sheets / f"broken-{number}.tif").write_bytes(b"no raster")
    before = published(nights.out)
    with threads(), pytest.raises(JobError, match="more than --max-failures") as e:
        run_job(planned, QUIET)
    assert e.value.code is Exit.FAILED
    assert published(nights.out) == before
    assert open_store(nights.out).exists(layout.SUCCESS)


def test_what_is_said_at_the_end_is_what_was_done(nights: Nights) -> None:
    """A plan that was made anew is told of: the inputs that are skipped by now stand in the JSON."""
    nights.add("a.tif", "b.tif")
    planned = prepare(nights.spec(skip_invalid=True, max_failures="90%"))
    with threads():
        run_job(prepare(dataclasses.replace(planned.spec, sources=(str(nights.sheets / "a.tif"),))), QUIET)
    (nights.sheets / "broken.tif").write_bytes(b"no raster")
    with threads():
        summary = run_job(planned, QUIET)
    assert summary.exit is Exit.QUARANTINED
    assert [Path(s["uri"]).name for s in summary_fields(summary)["inputs_skipped"]] == ["broken.tif"]


def _once_at(moment: str, action: Callable[[], Any], module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``action`` the first time that a run of this process reaches a named point."""
    real, done = module.reach, threading.Event()

    def reached(name: str) -> None:
        if name == moment and not done.is_set():
            done.set()
            action()
        real(name)

    monkeypatch.setattr(module, "reach", reached)
