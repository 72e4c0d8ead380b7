"""Take the lease of an output folder, or follow the run that holds it to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from panoptile.jobs.cancellation import is_cancelled
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.interrupt import Terminated
from panoptile.jobs.lease import Lease, Observer, Purpose, Sight, claim, patience
from panoptile.jobs.spec import IfRunning
from panoptile.pipeline.store import Store

INTERRUPTED = (int(Exit.INTERRUPTED), 143)
LOOK_SECONDS = 1.0
SAY_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Followed:
    """Another run did the job, or still does."""

    exit: Exit
    skipped: bool
    """True where it still runs and --if-running skip asked not to wait."""


class LeaseLost(RuntimeError):
    """Another run has taken over while this one could not be seen to live."""


def take_lease(
    store: Store, if_running: IfRunning, console: Console, units: int, purpose: Purpose = "run"
) -> Lease | Followed:
    """Hold the lease, or tell how the run that holds it ended.

    A holder that was interrupted, or that cannot be seen to live any more, is taken over from. Waits as long as the
    holder lives, with ``attach``; whoever tidies the folder is waited for in any case. Raises :class:`JobError`: exit 5
    with ``fail``, the holder's own error with ``attach``; :class:`Terminated` where the job that is followed was
    cancelled; and ``OSError`` of the store.
    """
    return _Waiting(store, if_running, console, units).until_ours(purpose)


class _Waiting:
    def __init__(self, store: Store, if_running: IfRunning, console: Console, units: int) -> None:
        self._store, self._if_running, self._console, self._units = store, if_running, console, units
        self._observer = Observer(store)
        self._followed = 0
        """The epoch that is being followed; 0 while none is."""
        self._said = 0.0

    def until_ours(self, purpose: Purpose) -> Lease | Followed:
        while True:
            sight = self._observer.look()
            if sight.state in ("free", "dead"):
                ended = self._end_of(sight)
                if ended is not None:
                    return ended
                lease = claim(self._store, sight.epoch, purpose)
                if lease is not None:
                    return lease
            elif sight.purpose == "run" and (sight.state == "alive" or self._if_running == "attach"):
                skipped = self._live(sight)
                if skipped is not None:
                    return skipped
            time.sleep(min(LOOK_SECONDS, patience() / 10))

    def _end_of(self, sight: Sight) -> Followed | None:
        """How the run that was followed ended; None where there is something left to do for us."""
        is_its_own = sight.epoch == self._followed
        # whoever tidied the folder after it has left it the ending that it found
        is_passed_on = sight.purpose == "upkeep" and sight.epoch == self._followed + 1
        if self._followed == 0 or not (is_its_own or is_passed_on):
            return None
        if sight.ending is None:
            self._console.say(f"The run of {sight.holder} has not been heard of for long: taking over.")
            return None
        code = sight.ending.exit
        if code in (Exit.DONE, Exit.QUARANTINED):
            return Followed(Exit(code), skipped=False)
        if code in INTERRUPTED and is_cancelled(self._store, self._followed):
            self._console.say(f"The run of {sight.holder} was cancelled.")
            raise Terminated
        if code in INTERRUPTED:
            self._console.say(f"The run of {sight.holder} was interrupted: going on with what is left.")
            return None
        message = sight.ending.message or f"The run of {sight.holder} ended with exit code {code}."
        raise JobError(Exit(code), f"The run that was followed failed: {message}")

    def _live(self, sight: Sight) -> Followed | None:
        where = f"{sight.holder} is working on {self._store.root}"
        if self._if_running == "fail":
            raise JobError(Exit.OTHER_JOB, f"{where}: wait for it, or follow it with --if-running attach.")
        if self._if_running == "skip":
            self._console.say(f"skipped {where} already")
            return Followed(Exit.DONE, skipped=True)
        if self._followed != sight.epoch:
            self._followed = sight.epoch
            self._console.say(f"attach  {where}: following it to its end (Ctrl-C ends the following alone)")
        if time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            done = len(self._store.keys("_state/commits"))
            self._console.say(f"follow  {done:,} of {self._units:,} units are done")
        return None
