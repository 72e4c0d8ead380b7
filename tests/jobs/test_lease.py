"""The lease: one run at a time, taken over from the dead, harmless to those who wake up late."""

from __future__ import annotations

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.jobs.runs import WorldFiles, published, run, threads

from panoptile.jobs import lease, segment
from panoptile.jobs.cancellation import CANCEL
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.follow import Followed, _Waiting, take_lease
from panoptile.jobs.interrupt import Terminated
from panoptile.jobs.lease import Lease, Observer, beat_key, claim, highest_epoch, lease_key
from panoptile.jobs.open_units_run import OpenUnitsRun
from panoptile.jobs.prepare import prepare
from panoptile.jobs.spec import IfRunning, JobSpec
from panoptile.pipeline.store import Store, open_store
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.store_object import ObjectStore

WORLD = (43, 200, 210)
TILING = {"tile": 80, "overlap": 24}
QUIET = Console(quiet=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "out")


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead after a second without a beat, instead of a minute."""
    monkeypatch.setenv(lease.PATIENCE_VARIABLE, "1")


def foreign(store: Store, epoch: int = 1, count: int = 1) -> None:
    """A lease of a process on a machine that we cannot see."""
    record = {"token": "t", "host": "elsewhere", "pid": 7, "machine": "another kernel", "started": "1"}
    store.put_if_absent(lease_key(epoch), json.dumps(record).encode())
    store.put_bytes(beat_key(epoch), json.dumps({"token": "t", "count": count}).encode())


class Clock:
    """A monotonic clock that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_of_many_claims_one_wins(store: Store) -> None:
    """Sixteen threads claim the same epoch: one holds it."""
    with ThreadPoolExecutor(16) as pool:
        won = [held for held in pool.map(lambda _: claim(store, 0), range(16)) if held is not None]
    assert len(won) == 1
    assert won[0].still_held()
    won[0].release(0)
    assert Observer(store).look().state == "free"


def test_a_foreign_holder_is_dead_only_after_the_patience_of_the_observer(store: Store) -> None:
    """Without a change of the beat: unknown, then dead, by the observer's clock alone; a change makes it alive."""
    clock = Clock()
    observer = Observer(store, clock)
    foreign(store)
    assert observer.look().state == "unknown"
    clock.now += 0.9
    assert observer.look().state == "unknown"
    foreign(store, count=2)
    assert observer.look().state == "alive"
    clock.now += 0.9
    assert observer.look().state == "alive"
    clock.now += 0.2
    assert observer.look().state == "dead"


def test_wall_clocks_do_not_matter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this machine's clock an hour ahead, then an hour behind, a beating holder is alive and a silent one is not."""
    clock = Clock()
    for skew in (3600, -3600):
        real = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: real() + skew)  # noqa: B023  (called within the loop's turn)
            observer = Observer(store, clock)
            foreign(store, count=skew)
            assert observer.look().state == "unknown"
            foreign(store, count=skew + 1)
            assert observer.look().state == "alive"
            clock.now += 1.1
            assert observer.look().state == "dead"


def test_a_dead_process_of_this_machine_is_seen_at_once(store: Store) -> None:
    """A holder whose process is gone, or whose number another process has now, is dead without any wait."""
    identity = lease._process_identity()
    if not identity:
        pytest.skip("this system has no /proc: a dead holder is NOT seen at once here")
    record = {"token": "t", "host": "here", "pid": 1, **identity, "started": "0"}
    store.put_if_absent(lease_key(1), json.dumps(record).encode())
    assert Observer(store).look().state == "dead"


def test_a_late_holder_sees_that_it_was_taken_over(store: Store) -> None:
    """A holder that could not beat is taken over; when it wakes up it knows, and its release changes nothing."""
    with mock.patch.object(Lease, "start"):  # it holds the lease and never beats
        late = claim(store, 0)
    assert late is not None
    successor = claim(store, 1)
    assert successor is not None
    assert not late.still_held()
    assert late.lost
    late.release(0, "I am done")
    sight = Observer(store).look()
    assert (sight.epoch, sight.ending) == (2, None)
    successor.release(3)


def test_a_claim_from_an_old_look_is_void(store: Store) -> None:
    """Epochs that came and were collected meanwhile: the claim of a low epoch does not count."""
    foreign(store, epoch=5)
    assert claim(store, 0) is None
    assert highest_epoch(store) == 5


@pytest.mark.parametrize(("if_running", "code"), [("fail", Exit.OTHER_JOB), ("skip", Exit.DONE)])
def test_beside_a_live_run(store: Store, if_running: IfRunning, code: Exit) -> None:
    """--if-running fail ends with exit 5 and says who is at work; skip ends with exit 0."""
    held = claim(store, 0)
    assert held is not None
    if if_running == "skip":
        assert take_lease(store, "skip", QUIET, 1) == Followed(code, skipped=True)
    else:
        with pytest.raises(JobError, match="is working on") as e:
            take_lease(store, "fail", QUIET, 1)
        assert e.value.code is code
    held.release(0)


@pytest.mark.parametrize(
    ("ending", "outcome"), [(0, Exit.DONE), (3, Exit.QUARANTINED), (4, None), (143, "taken over")]
)
def test_who_attaches_ends_as_the_run_that_it_follows(
    store: Store, ending: int, outcome: Exit | str | None
) -> None:
    """Exit 0 and 3 are returned, an error is raised again, and an interrupted run is taken over."""
    held = claim(store, 0)
    assert held is not None
    timer = threading.Timer(0.5, held.release, (ending, "no space left"))
    timer.start()
    if outcome is None:
        with pytest.raises(JobError, match="no space left") as e:
            take_lease(store, "attach", QUIET, 1)
        assert e.value.code is Exit.FAILED
    else:
        taken = take_lease(store, "attach", QUIET, 1)
        if isinstance(taken, Lease):
            assert (outcome, taken.epoch) == ("taken over", 2)
            taken.release(0)
        else:
            assert taken == Followed(Exit(ending), skipped=False)
    timer.join()


def test_a_silent_holder_is_taken_over(store: Store) -> None:
    """Attached to a holder elsewhere that never beats again: the lease is taken after the patience, not before."""
    foreign(store)
    began = time.monotonic()
    taken = take_lease(store, "attach", QUIET, 1)
    assert isinstance(taken, Lease)
    assert 1.0 <= time.monotonic() - began < 30
    taken.release(0)


def test_whoever_tidies_the_folder_is_waited_for_and_never_followed(store: Store) -> None:
    """gc holds the lease like a run, and leaves the ending of the run before: nobody ends as that one did."""
    for if_running in ("attach", "skip", "fail"):
        held = claim(store, highest_epoch(store), "upkeep")
        assert held is not None
        timer = threading.Timer(0.3, held.release, (4, "1 units failed for good"))
        timer.start()
        taken = take_lease(store, if_running, QUIET, 1)
        assert isinstance(taken, Lease)
        assert taken.epoch == held.epoch + 1
        taken.release(0)
        timer.join()


def test_a_follower_learns_the_end_from_who_tidied_after_it(store: Store) -> None:
    """gc slips in before the follower looks again: it has left the ending that it found."""
    held = claim(store, 0)
    assert held is not None
    waiting = _Waiting(store, "attach", QUIET, 1)
    waiting._followed = held.epoch
    held.release(4, "no space left")
    tidy = claim(store, held.epoch, "upkeep")
    assert tidy is not None
    tidy.release(4, "no space left")
    with pytest.raises(JobError, match="no space left"):
        waiting.until_ours("run")


def test_who_follows_a_job_ends_with_it_when_it_is_cancelled(store: Store) -> None:
    """cancel OUT ends the job: the follower does not take it up again; an interruption alone is taken over."""
    held = claim(store, 0)
    assert held is not None
    store.put_bytes(CANCEL, json.dumps({"epoch": held.epoch}).encode())
    timer = threading.Timer(0.3, held.release, (143, "terminated"))
    timer.start()
    with pytest.raises(Terminated):
        take_lease(store, "attach", QUIET, 1)
    timer.join()
    after = take_lease(store, "attach", QUIET, 1)  # a new command begins anew
    assert isinstance(after, Lease)
    after.release(0)


# --- whole runs ----------------------------------------------------------------------------------------


def test_two_runs_at_once_run_every_unit_once(
    files: WorldFiles, calm_tree: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one job start together: one works, the other returns its exit code; no unit is run twice."""
    monkeypatch.setenv(
        lease.PATIENCE_VARIABLE, "30"
    )  # a busy machine may keep a thread from beating for a second
    spec = JobSpec(
        (str(files.image),), str(tmp_path / "out"), model=files.model, labels=str(files.table), local=True,
        workers=1, **TILING,  # type: ignore[arg-type]
    )  # fmt: skip
    prepared = prepare(spec)
    with threads(), ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda _: segment.run_job(prepared, QUIET), range(2))
    assert (a.exit, b.exit) == (Exit.DONE, Exit.DONE)
    assert sorted([a.already_done, b.already_done]) == [False, True]
    assert list(a.inputs) == list(b.inputs)
    assert published(tmp_path / "out") == calm_tree
    assert a.metrics["units_run"] == a.metrics["units"]


def test_a_job_that_another_run_begins_meanwhile_is_no_foreign_folder(
    files: WorldFiles, calm_tree: dict[str, str], tmp_path: Path
) -> None:
    """Between listing the folder and looking at it, another run writes job.json: this one goes on with the same job."""
    out = tmp_path / "out"
    run(files, out, **TILING)
    with mock.patch.object(LocalStore, "entries", side_effect=[["_state"], ["_state", "job.json"]]):
        (out / "_state" / "job.json").unlink()  # the copy comes after job.json
        assert run(files, out, **TILING).exit is Exit.DONE
    assert published(out) == calm_tree


def test_a_probe_that_another_run_has_just_removed_is_no_foreign_folder(files: WorldFiles) -> None:
    """In an object store the other's probe was listed and is gone: the folder is as good as new."""
    spec = JobSpec(
        (str(files.image),), f"memory://begun-{uuid.uuid4().hex}/out", model=files.model, labels=str(files.table),
        local=True, **TILING,  # type: ignore[arg-type]
    )  # fmt: skip
    with mock.patch.object(ObjectStore, "entries", side_effect=[["_state"], ["_state"], []]):
        assert prepare(spec).units  # lists to see that it can be written, then twice what is there


def test_a_run_that_was_taken_for_dead_does_no_harm(
    files: WorldFiles, calm_tree: dict[str, str], tmp_path: Path
) -> None:
    """Another run takes over in the middle: the first stops, follows, and both end with the same result."""
    taken = threading.Event()
    out = tmp_path / "out"
    real = OpenUnitsRun.execute

    def overtaken(*args: Any) -> object:
        """After the units, before publishing, a run elsewhere takes the lease for a second."""
        done = real(*args)
        if not taken.is_set():
            taken.set()
            store = open_store(out)
            foreign(store, epoch=highest_epoch(store) + 1)
            time.sleep(0.3)  # a beat comes in between, and sees it
        return done

    with mock.patch.object(OpenUnitsRun, "execute", overtaken):
        summary = run(files, out, **TILING)
    assert taken.is_set()
    assert highest_epoch(open_store(out)) == 3
    assert summary.exit is Exit.DONE
    assert published(out) == calm_tree
