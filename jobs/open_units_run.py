"""The open units of a job on a pool of workers, and inputs that are published beside them."""

from __future__ import annotations

from collections.abc import Callable

from panoptile.jobs import interrupt
from panoptile.jobs.console import Console, ProgressBar
from panoptile.jobs.event_log import EventLog
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.publishing import StreamedPublishing, longest_first, make_background
from panoptile.jobs.replicas import make_workers
from panoptile.jobs.run_log import RunLog
from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.driver import Interrupted, Listener, TooManyFailures, run_units
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, Pool, PoolError
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.run_result import RunResult
from panoptile.pipeline.store import Store, StoreUnreachable


class OpenUnitsRun:
    """One run over the open units of a job: what happens to each goes to the log, the events and the console."""

    def __init__(
        self,
        store: Store,
        prepared: Prepared,
        console: Console,
        log: RunLog,
        events: EventLog,
        hold: Callable[[], None],
    ) -> None:
        """``hold`` is called at every turn; it may raise to end the run."""
        self._store, self._prepared, self._console = store, prepared, console
        self._log, self._events, self._hold = log, events, hold

    def execute(self, todo: list[Unit], allowed_failures: int) -> tuple[RunResult, dict[str, int]]:
        """Run the units; returns the result, and the peak RSS in bytes of each worker process.

        Raises :class:`JobError` with exit code 4 or 6, and what ends a process that was told to stop.
        """
        workers = make_workers(self._prepared, len(todo))
        pool, inputs = workers.pool, len({unit.key for unit in todo})
        background = make_background(self._prepared.spec, inputs, workers.publishers)
        streamed = StreamedPublishing(self._prepared, background, self._console.say)
        try:
            pool.start()
            result = self._run(pool, streamed, todo, allowed_failures)
            rss: dict[str, int] = getattr(pool, "peak_rss_bytes", dict)()
            replicas = pool.size()
            pool.close()  # its memory and processors are for what is still being published
            streamed.finish(self._hold, at_once=replicas)
            return result, rss
        except PoolError as e:
            raise JobError(
                Exit.UNREACHABLE, f"{e} What is done is kept: run the same command to go on."
            ) from e
        finally:
            streamed.close()
            pool.close()
            workers.stop()

    def _run(
        self, pool: Pool, streamed: StreamedPublishing, todo: list[Unit], allowed_failures: int
    ) -> RunResult:
        spec = self._prepared.spec
        policy = Policy(
            attempts=spec.retries + 1, max_failures=allowed_failures, unit_timeout=spec.unit_timeout
        )
        progress = self._console.progress(sum(unit.count for unit in todo))
        listener = self._listener(progress, streamed)
        try:
            with progress, interrupt.orderly() as asked:
                result = run_units(
                    pool,
                    self._store,
                    longest_first(todo),
                    policy,
                    stop=asked,
                    listener=listener,
                    keep_reports=False,
                )
        except Interrupted as e:
            self._console.say(str(e))
            raise interrupt.stop() from e
        except TooManyFailures as e:
            _check_store(spec.out, e.result)
            raise JobError(Exit.FAILED, f"{e} Run the same command to try again.") from e
        _check_store(spec.out, result)
        return result

    def _listener(self, progress: ProgressBar, streamed: StreamedPublishing) -> Listener:
        log, events = self._log, self._events

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
            events.add(
                "retry", unit=unit.id, worker=failure.worker, stage=failure.stage, message=failure.message
            )
            self._console.say(f"retry   {unit.id}: {failure.message}")

        def on_turn() -> None:
            self._hold()
            streamed.turn()

        def on_input_done(key: str) -> None:
            if uri := streamed.input_done(key):
                events.add("publish", input=uri)

        return Listener(on_done=on_done, on_retry=on_retry, on_turn=on_turn, on_input_done=on_input_done)


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
