"""``panoptile segment``: run a prepared job to its end.

Order of what is written: plan, unit commits, files of each input, classes, manifest, generation, and
``_SUCCESS.json`` last: readers trust only that. One run at a time works on a folder (the lease); what a killed run
left is taken up by the next.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from panoptile.jobs import interrupt
from panoptile.jobs.cancellation import is_cancelled
from panoptile.jobs.console import Console
from panoptile.jobs.deadletter import dead_letter, rows_of_run
from panoptile.jobs.event_log import EventLog
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.follow import Followed, LeaseLost, take_lease
from panoptile.jobs.incremental import grow_job
from panoptile.jobs.input_content import ContentHashes
from panoptile.jobs.interrupt import TERMINATED_EXIT, Terminated
from panoptile.jobs.job_status import write_totals
from panoptile.jobs.lease import Lease
from panoptile.jobs.metrics import job_metrics
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.publishing import StreamedPublishing, longest_first, make_background, publish_call
from panoptile.jobs.replicas import make_pool
from panoptile.jobs.results import (
    PUBLISHED_FOLDERS,
    commits_of,
    failed_items,
    load_result,
    manifest,
    result_key,
    save_result,
    succeed,
    withdraw_unlisted,
)
from panoptile.jobs.run_log import RunLog, earlier_runs
from panoptile.jobs.state import Finished, finished_before, read_json, store_errors, write_job
from panoptile.jobs.survey import Survey, open_units, survey, to_run
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.commit import Commit
from panoptile.pipeline.driver import Interrupted, Listener, TooManyFailures, run_units
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.finish import FinishedInput
from panoptile.pipeline.memory import allocate_frugally
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, PoolError
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.run_result import RunResult
from panoptile.pipeline.store import Store, StoreUnreachable, open_store, probe_store


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job ended."""

    exit: Exit
    out: str
    inputs: tuple[FinishedInput, ...]
    metrics: dict[str, Any]
    already_done: bool = False
    """Nothing was run: the result was there, or another run made it."""
    skipped: bool = False
    """Another run of this job is at work, and --if-running skip asked to leave it alone."""


def run_job(
    prepared: Prepared, console: Console, *, retry_quarantined: bool = True, relink: bool = False
) -> Summary:
    """Run the job, or follow the run that is at work: a summary with exit code 0 or 3, or :class:`JobError`.

    ``retry_quarantined=False`` leaves alone what an earlier run gave up; ``relink`` lets other linking options replace
    a finished result.
    """
    allocate_frugally()
    spec = prepared.spec
    allowed = _allowed_failures(prepared)
    store = open_store(spec.out)
    interrupt.remember(store.root)
    model = (prepared.model.description, prepared.model.sha256)
    with store_errors(spec.out):
        if note := probe_store(store).note:
            console.say(f"note    {note}")
        write_job(store, spec, prepared.fingerprint, model, prepared.uris)
        if not relink:
            _refuse_other_links(store, prepared)
        done = _finished(store, prepared, retry_quarantined)
    while done is None:
        with store_errors(spec.out, started=True):
            held = take_lease(store, spec.if_running, console, prepared.units)
        if isinstance(held, Followed):
            return _followed(store, prepared, held)
        try:
            return _Run(store, prepared, console, held, allowed, retry_quarantined).to_its_end()
        except LeaseLost:
            console.say("Another run has taken this one for dead and works on: following it.")
            done = None
    return done


def _allowed_failures(prepared: Prepared) -> int:
    """Units that may fail: what --max-failures allows of units and skipped inputs, less the skipped inputs."""
    skipped = len(prepared.skipped)
    allowed = prepared.spec.allowed_failures(prepared.units + skipped) - skipped
    if allowed < 0:
        raise JobError(
            Exit.FAILED,
            f"{skipped} inputs cannot be segmented, more than --max-failures {prepared.spec.max_failures} tolerates "
            f"(a skipped input counts as one unit; there are {prepared.units} others). The first: "
            f"{prepared.skipped[0].message}",
        )
    return allowed


def _finished(store: Store, prepared: Prepared, retry_quarantined: bool) -> Summary | None:
    """The result of an earlier run, where there is nothing left to do."""
    found = survey(store, prepared.plans)
    if to_run(store, found, retry_quarantined=retry_quarantined):
        return None
    done = _finished_as(store, prepared, found)
    return None if done is None else _summary_of(store, prepared, found, done)


def _finished_as(store: Store, prepared: Prepared, found: Survey) -> Finished | None:
    units = {
        u.id: found.commits[u.id].sha256 if u.id in found.commits else None
        for plan in prepared.plans
        for u in plan.units()
    }
    done = finished_before(store, prepared.fingerprint, units)
    return None if done is None or done.link != _link_fields(prepared) else done


def _link_fields(prepared: Prepared) -> dict[str, object]:
    return prepared.spec.link_fields() if prepared.videos else {}


def _refuse_other_links(store: Store, prepared: Prepared) -> None:
    """A finished result is not replaced because other linking options were given in passing: exit 5."""
    success = read_json(store, layout.SUCCESS) or {}
    wanted, there = _link_fields(prepared), success.get("link", {})
    differing = [name for name in wanted if name in there and wanted[name] != there[name]]
    if differing and success.get("fingerprint") == prepared.fingerprint:
        was = ", ".join(f"--{name.replace('_', '-')} {there[name]}" for name in differing)
        raise JobError(
            Exit.OTHER_JOB,
            f"{store.root} holds this job linked with {was}. Use the same options, or `panoptile relink` to link it anew.",
        )


def _summary_of(store: Store, prepared: Prepared, found: Survey, done: Finished) -> Summary:
    inputs = _known_results(store, prepared, found.commits)
    return Summary(done.exit, store.root, tuple(inputs.values()), done.metrics, already_done=True)


def _followed(store: Store, prepared: Prepared, held: Followed) -> Summary:
    if held.skipped:
        return Summary(held.exit, store.root, (), {}, already_done=True, skipped=True)
    with store_errors(prepared.spec.out, started=True):
        found = survey(store, prepared.plans)
        done = _finished_as(store, prepared, found)
        if done is None:
            raise JobError(
                Exit.FAILED,
                f"The run that was followed has ended, but {store.root} is not what it made: run the command again.",
            )
        return _summary_of(store, prepared, found, done)


def _known_results(
    store: Store, prepared: Prepared, commits: Mapping[str, Commit]
) -> dict[str, FinishedInput]:
    """What is published already and still right, by the inputs' keys."""
    records = store.read_all("_state/results")
    sizes = {s.key: s.size for folder in PUBLISHED_FOLDERS for s in store.walk(folder)}
    known = {}
    for plan in prepared.plans:
        data = records.get(result_key(plan.key))
        result = load_result(data, plan, prepared.result_name(plan), commits_of(plan, commits), sizes)
        if result is not None:
            known[plan.key] = result
    return known


class _Run:
    """The run that holds the lease."""

    def __init__(
        self,
        store: Store,
        prepared: Prepared,
        console: Console,
        lease: Lease,
        allowed_failures: int,
        retry_quarantined: bool,
    ) -> None:
        self._store, self._prepared, self._console = store, prepared, console
        self._lease, self._allowed, self._retry = lease, allowed_failures, retry_quarantined
        self._log = RunLog(store, f"{lease.epoch:08d}-{lease.token[:8]}")
        self._events = EventLog(store, self._log.run)
        for call in (self._log.save, self._events.flush_now_and_then, self._heed_cancel):
            lease.each_beat(call)

    def to_its_end(self) -> Summary:
        """Run; whatever happens, say in the store how it ended."""
        out = self._prepared.spec.out
        try:
            with store_errors(out, started=True):
                summary = self._work()
        except LeaseLost:
            raise
        except JobError as e:
            self._end(int(e.code), str(e))
            raise
        except KeyboardInterrupt:
            self._end(int(Exit.INTERRUPTED), "interrupted")
            raise
        except Terminated:
            self._end(TERMINATED_EXIT, "terminated")
            raise
        except BaseException as e:
            self._end(int(Exit.INTERNAL), f"internal error: {type(e).__name__}: {e}")
            raise
        self._end(int(summary.exit), "")
        return summary

    def _end(self, code: int, message: str) -> None:
        """Record the end; that it cannot be recorded (a full disk) must not hide how the run itself ended."""
        self._log.exit = code
        self._events.add("end", exit=code, message=message)
        for record in (self._log.save, self._events.flush, lambda: self._lease.release(code, message)):
            try:
                record()
            except OSError as e:
                self._console.say(f"note    the end of this run could not be recorded: {e}")

    def _heed_cancel(self) -> None:
        if is_cancelled(self._store, self._lease.epoch):
            interrupt.request()

    def _work(self) -> Summary:
        store, prepared = self._store, self._prepared
        if prepared.spec.incremental:
            grow_job(store, prepared.uris)
        todo = open_units(store, prepared.plans, retry_quarantined=self._retry)
        write_totals(store, units=prepared.units, items=prepared.tiles)
        if not todo:
            done = _finished(store, prepared, self._retry)  # another run may have made it meanwhile
            if done is not None:
                return done
        if len(todo) < prepared.units:
            self._console.say(
                f"resume  {prepared.units - len(todo)} of {prepared.units} units are done already"
            )
        self._events.add("start", units=len(todo), of=prepared.units, inputs=len(prepared.plans))
        store.delete(layout.SUCCESS)
        result, rss = self._segment(todo)
        inputs = self._publish()
        summary = self._conclude(inputs, result, rss)
        if prepared.spec.incremental:
            from panoptile.jobs.stac import write_catalog

            write_catalog(prepared.spec.out)
        return summary

    # --- segment ---

    def _segment(self, todo: list[Unit]) -> tuple[RunResult, dict[str, int]]:
        """Run the open units and hash the inputs beside them."""
        if not todo:
            return RunResult(), {}
        hashes = ContentHashes(self._store, self._prepared.plans)
        hashes.start()
        try:
            self._log.segmenting(True)
            return _run_units(
                self._store,
                self._prepared,
                todo,
                self._allowed,
                self._log,
                self._hold,
                self._console,
                self._events,
            )
        finally:
            self._log.segmenting(False)
            hashes.stop()

    def _hold(self) -> None:
        if self._lease.lost:
            raise LeaseLost

    # --- publish ---

    def _publish(self) -> list[FinishedInput]:
        store, prepared = self._store, self._prepared
        commits = survey(store, prepared.plans).commits
        known = _known_results(store, prepared, commits)
        inputs = []
        for plan in prepared.plans:
            self._hold()
            finished = known.get(plan.key)
            if finished is None:
                self._console.say(f"publish {plan.info.stem}")
                self._events.add("publish", input=plan.uri)
                finished = _finish(store, prepared, plan)
                save_result(store, finished, prepared.result_name(plan))
            inputs.append(finished)
        return inputs

    def _conclude(self, inputs: Sequence[FinishedInput], result: RunResult, rss: dict[str, int]) -> Summary:
        """Classes, manifest, dead letter, metrics, generation, and _SUCCESS.json last."""
        store, prepared = self._store, self._prepared
        commits = survey(store, prepared.plans).commits
        failed = failed_items(prepared.plans, commits)
        missing = [u for f in inputs for u in f.missing_units]
        code = Exit.QUARANTINED if missing or failed or prepared.skipped else Exit.DONE
        if not self._lease.still_held():
            raise LeaseLost
        classes = json.dumps(prepared.model.classes.to_json(), indent=1).encode()
        store.put_bytes(layout.CLASSES, classes)
        withdraw_unlisted(store, inputs)
        reach("manifest.before")
        listed = manifest(inputs, {u.id for u in failed})
        store.put_bytes(layout.MANIFEST, listed)
        reach("manifest.after")
        if code is Exit.QUARANTINED:
            rows = rows_of_run(store, prepared, result, missing, failed)
            store.put_bytes(layout.DEADLETTER, dead_letter(rows))
        else:
            store.delete(layout.DEADLETTER)  # of an earlier run whose failures are healed
        self._log.exit = int(code)
        quarantined = len(missing) + len(failed)
        metrics = job_metrics(
            prepared, inputs, self._log, earlier_runs(store, self._log.run), rss, quarantined
        )
        store.put_bytes(layout.METRICS, json.dumps(metrics, indent=1).encode())
        success: dict[str, object] = {
            "manifest_sha256": hashlib.sha256(listed).hexdigest(),
            "classes_sha256": hashlib.sha256(classes).hexdigest(),
            "fingerprint": prepared.fingerprint,
            "inputs": len(inputs),
            "inputs_skipped": len(prepared.skipped),
            "units": prepared.units,
            "units_quarantined": quarantined,
            "segments": sum(f.segments for f in inputs),
            **({"link": _link_fields(prepared)} if prepared.videos else {}),
        }
        reach("generation.before")
        succeed(store, code, success)
        return Summary(code, store.root, tuple(inputs), metrics)


def _run_units(
    store: Store,
    prepared: Prepared,
    todo: list[Unit],
    allowed_failures: int,
    log: RunLog,
    hold: Callable[[], None],
    console: Console,
    events: EventLog,
) -> tuple[RunResult, dict[str, int]]:
    """Run the open units on a pool; returns the result, and the peak RSS per worker process."""
    spec = prepared.spec
    policy = Policy(attempts=spec.retries + 1, max_failures=allowed_failures, unit_timeout=spec.unit_timeout)
    pool, stop = make_pool(prepared, len(todo))
    progress = console.progress(sum(unit.count for unit in todo))

    streamed = StreamedPublishing(
        prepared, make_background(spec, len({unit.key for unit in todo})), console.say
    )

    def on_done(report: UnitReport) -> None:
        log.add(report)
        events.add(
            "unit",
            unit=report.unit.id,
            worker=report.worker,
            tiles=report.tiles,
            segments=report.segments,
            infer_seconds=round(report.infer_seconds, 3),
        )
        progress.advance(report.tiles)

    def on_retry(unit: Unit, failure: Failure) -> None:
        log.retries += 1
        progress.fail()
        events.add("retry", unit=unit.id, worker=failure.worker, stage=failure.stage, message=failure.message)
        console.say(f"retry   {unit.id}: {failure.message}")

    def on_turn() -> None:
        hold()
        streamed.turn()

    listener = Listener(
        on_done=on_done, on_retry=on_retry, on_turn=on_turn, on_input_done=streamed.input_done
    )
    try:
        pool.start()
        with progress, interrupt.orderly() as asked:
            result = run_units(
                pool, store, longest_first(todo), policy, stop=asked, listener=listener, keep_reports=False
            )
        _check_store(spec.out, result)
        rss: dict[str, int] = getattr(pool, "peak_rss_bytes", dict)()
        pool.close()  # its memory and processors are for what is still being published
        streamed.finish(hold)
        return result, rss
    except Interrupted as e:
        console.say(str(e))
        raise interrupt.stop() from e
    except PoolError as e:
        raise JobError(Exit.UNREACHABLE, f"{e} What is done is kept: run the same command to go on.") from e
    except TooManyFailures as e:
        _check_store(spec.out, e.result)
        raise JobError(Exit.FAILED, f"{e} Run the same command to try again.") from e
    finally:
        streamed.close()
        pool.close()
        stop()


def _check_store(out: str, result: RunResult) -> None:
    """A unit that cannot be committed is not to blame: the store is, and the run ends (exit 4, or 6)."""
    for item in result.dead_items:
        if item.stage == "commit":
            code = Exit.UNREACHABLE if item.error_type == StoreUnreachable.__name__ else Exit.FAILED
            raise JobError(
                code,
                f"Cannot write to {out}: {item.message.rstrip('.')}. What is done is kept: make room or set it right, "
                "and run the same command to go on.",
            )


# --- one input -----------------------------------------------------------------------------------------


def _finish(store: Store, prepared: Prepared, plan: AnyPlan) -> FinishedInput:
    """Join and publish one input."""
    try:
        return publish_call(prepared, plan).finished(store)
    except StoreUnreachable:
        raise
    except (OSError, ValueError) as e:
        raise JobError(
            Exit.FAILED,
            f"Publishing {plan.uri} failed: {e} (scratch files go to {tempfile.gettempdir()}). "
            "Finished units are kept: run the same command to go on.",
        ) from e
