"""The run that holds the lease of a folder: units, then each input, then the files that say that all is there.

Order of what is written: plan, unit commits, files of each input, classes, manifest, generation, and
``_SUCCESS.json`` last: readers trust only that.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

from panoptile.jobs import interrupt
from panoptile.jobs.cancellation import is_cancelled
from panoptile.jobs.console import Console
from panoptile.jobs.deadletter import dead_letter, rows_of_run
from panoptile.jobs.earlier_result import (
    Summary,
    has_catalogue,
    known_records,
    published_result,
    refuse_lost,
    refuse_other_links,
)
from panoptile.jobs.event_log import EventLog
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.follow import LeaseLost
from panoptile.jobs.incremental import grow_job
from panoptile.jobs.input_content import ContentHashes
from panoptile.jobs.input_record import RecordedInputs, save_result
from panoptile.jobs.interrupt import TERMINATED_EXIT, Terminated
from panoptile.jobs.job_record import record_links
from panoptile.jobs.job_status import write_totals
from panoptile.jobs.lease import Lease
from panoptile.jobs.left_out import log_given_up, log_skipped
from panoptile.jobs.metrics import job_metrics
from panoptile.jobs.open_units_run import OpenUnitsRun
from panoptile.jobs.prepare import Prepared, prepare
from panoptile.jobs.publishing import PUBLISH_VARIABLE, publish_call, publish_seconds
from panoptile.jobs.replicas import usable_cores
from panoptile.jobs.results import (
    failed_items,
    manifest,
    result_key,
    succeed,
    withdraw_unlisted,
)
from panoptile.jobs.run_log import RunLog, earlier_runs
from panoptile.jobs.state import store_errors
from panoptile.jobs.survey import is_complete, open_units, quarantined_units, survey, withdraw_damaged
from panoptile.jobs.time_limit import time_limit
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.commit import Commit
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.finish import FinishedInput
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.run_result import RunResult
from panoptile.pipeline.store import Store, StoreUnreachable


class LeasedRun:
    """The run that holds the lease."""

    def __init__(
        self,
        store: Store,
        prepared: Prepared,
        console: Console,
        lease: Lease,
        retry_quarantined: bool,
        relink: bool = False,
    ) -> None:
        self._store, self._prepared, self._console = store, prepared, console
        self._lease, self._retry, self._relink = lease, retry_quarantined, relink
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

    def _look_again(self) -> None:
        """Plan anew where a run may have worked on the folder since it was looked at.

        What that run finished, and what has come since, would be unknown here, and so withdrawn or left out.
        """
        rested_at = self._prepared.rested_at
        if rested_at is not None and self._lease.epoch == rested_at + 1:
            return
        known = set(self._prepared.notes)
        self._prepared = prepare(self._prepared.spec)
        for note in self._prepared.notes:
            if note not in known:
                self._console.say(f"note    {note}")
        self._prepared.allowed_failures()  # too many skipped inputs end the run before it withdraws anything
        if self._relink:
            refuse_lost(self._prepared)
        else:
            refuse_other_links(self._store, self._prepared)

    def _work(self) -> Summary:
        self._look_again()
        store, prepared = self._store, self._prepared
        if prepared.spec.incremental:
            self._check_held()
            grow_job(store, prepared.uris)
        todo = open_units(
            store, prepared.plans, self._check_held, kept=prepared.kept, retry_quarantined=self._retry
        )
        if prepared.lost:
            withdraw_damaged(store, prepared.plans, self._check_held)
        write_totals(
            store,
            unit_ids={u.id for plan in prepared.plans for u in plan.units()},
            items=prepared.tiles,
            recorded=frozenset(chain.from_iterable(prepared.kept.recorded.values())),
        )
        if not todo:
            done = published_result(store, prepared, self._retry)  # another run may have made it meanwhile
            if done is not None:
                if not has_catalogue(store, prepared):
                    self._catalogue()  # an earlier run did not come so far, or kept none
                return done
        if len(todo) < prepared.units:
            self._console.say(
                f"resume  {prepared.units - len(todo)} of {prepared.units} units are done already"
            )
        self._events.add("start", units=len(todo), of=prepared.units, inputs=len(prepared.plans))
        log_skipped(self._events, prepared.skipped)
        self._check_held()
        store.delete(layout.SUCCESS)
        result, rss = self._segment(todo)
        inputs = self._publish()
        summary = self._conclude(inputs, result, rss)
        if prepared.spec.incremental:
            self._catalogue()
        return summary

    def _catalogue(self) -> None:
        from panoptile.jobs.stac import write_catalog

        write_catalog(self._prepared.spec.out)

    # --- segment ---

    def _segment(self, todo: list[Unit]) -> tuple[RunResult, dict[str, int]]:
        """Run the open units and hash the inputs beside them."""
        if not todo:
            return RunResult(), {}
        hashes = ContentHashes(self._store, self._prepared.plans)
        hashes.start()
        try:
            self._log.segmenting(True)
            run = OpenUnitsRun(
                self._store, self._prepared, self._console, self._log, self._events, self._hold
            )
            return run.execute(todo, self._prepared.allowed_failures())
        finally:
            self._log.segmenting(False)
            hashes.stop()

    def _hold(self) -> None:
        """Raise where the last beat saw that the lease is lost; it costs nothing."""
        if self._lease.lost:
            raise LeaseLost

    def _check_held(self) -> None:
        """Ask the store, before what another run has made could be removed or replaced."""
        if not self._lease.still_held():
            raise LeaseLost

    # --- publish ---

    def _publish(self) -> RecordedInputs:
        store, prepared = self._store, self._prepared
        commits = survey(store, prepared.plans, prepared.kept).commits
        known = known_records(store, prepared, commits)
        inputs = RecordedInputs()
        for plan in prepared.plans:
            self._hold()
            record = known.pop(plan.key, None)
            if record is None:
                if plan.key in prepared.kept.keys:
                    _check_kept(store, prepared, plan, commits)
                record = self._publish_one(plan)
            inputs.add(plan, record)
        return inputs

    def _publish_one(self, plan: AnyPlan) -> bytes:
        """Publish an input that was not published beside the units; returns its record."""
        store, prepared = self._store, self._prepared
        self._check_held()
        self._console.say(f"publish {plan.info.stem}")
        self._events.add("publish", input=plan.uri)
        seconds = publish_seconds(plan)
        with time_limit(seconds, partial(self._overrun, plan.uri, seconds)):
            finished = _finish(store, prepared, plan)
        if not self._lease.still_held():
            store.delete(result_key(plan.key))  # its files may be ours now: whoever comes next looks
            raise LeaseLost
        return save_result(store, finished, prepared.result_name(plan))

    def _overrun(self, uri: str, seconds: float) -> None:
        """Publishing hangs, and so does the main thread: say so here and in the store."""
        message = (
            f"Publishing {uri} was not done within {seconds:,.0f} s and counts as hung ({PUBLISH_VARIABLE} sets "
            "another limit). Finished units are kept: run the same command to go on."
        )
        self._console.error(message)
        self._end(int(Exit.FAILED), message)

    def _conclude(self, inputs: Sequence[FinishedInput], result: RunResult, rss: dict[str, int]) -> Summary:
        """Classes, manifest, dead letter, metrics, generation, and _SUCCESS.json last."""
        store, prepared = self._store, self._prepared
        commits = survey(store, prepared.plans, prepared.kept).commits
        failed = failed_items(prepared.plans, commits)
        missing = [u for f in inputs for u in f.missing_units]
        code = Exit.QUARANTINED if missing or failed or prepared.skipped else Exit.DONE
        self._check_held()
        classes = json.dumps(prepared.model.classes.to_json(), indent=1).encode()
        store.put_bytes(layout.CLASSES, classes)
        withdraw_unlisted(store, inputs, self._check_held)
        reach("manifest.before")
        self._check_held()
        listed = manifest(inputs, {u.id for u in failed})
        store.put_bytes(layout.MANIFEST, listed)
        reach("manifest.after")
        if code is Exit.QUARANTINED:
            rows = rows_of_run(store, prepared, result, missing, failed)
            store.put_bytes(layout.DEADLETTER, dead_letter(rows))
            log_given_up(self._events, rows)
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
            "skipped_sha256": prepared.skipped_sha256,
            "units": prepared.units,
            "units_quarantined": quarantined,
            "segments": sum(f.segments for f in inputs),
            **({"link": prepared.link_fields} if prepared.videos else {}),
        }
        reach("generation.before")
        self._check_held()
        if self._relink:
            record_links(store, prepared.spec)
        succeed(store, code, success)
        self._check_held()  # a run that has taken over may have listed more: what it left is looked at again
        return Summary(code, store.root, prepared, inputs, metrics)


def _check_kept(store: Store, prepared: Prepared, plan: AnyPlan, commits: Mapping[str, Commit]) -> None:
    """Stop (exit 4) where something of a kept input is gone that was there a moment ago.

    Nothing of it can be segmented: it would be published over with holes.
    """
    if plan.key in prepared.kept.recorded or not is_complete(plan, commits, quarantined_units(store)):
        raise JobError(
            Exit.FAILED,
            f"Something of the result of {plan.uri} is gone since the run began: run the same command to go on.",
        )


def _finish(store: Store, prepared: Prepared, plan: AnyPlan) -> FinishedInput:
    """Join and publish one input; no replica runs any more, so all cores may help."""
    try:
        return publish_call(prepared, plan).finished(store, threads=usable_cores())
    except StoreUnreachable:
        raise
    except (OSError, ValueError) as e:
        raise JobError(
            Exit.FAILED,
            f"Publishing {plan.uri} failed: {e} (scratch files go to {tempfile.gettempdir()}). "
            "Finished units are kept: run the same command to go on.",
        ) from e
