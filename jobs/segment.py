"""``panoptile segment``: bring a prepared job to its end.

One run at a time works on a folder (the lease): this one, or another that is followed; what a killed run left is
taken up by the next, and a finished result is left as it is.
"""

from __future__ import annotations

from panoptile.jobs import interrupt
from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import (
    Summary,
    earlier_result,
    finished_as,
    has_catalogue,
    refuse_other_links,
    summary_of,
)
from panoptile.jobs.follow import Followed, LeaseLost, take_lease
from panoptile.jobs.job_record import write_job
from panoptile.jobs.lease import patience
from panoptile.jobs.leased_run import LeasedRun
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.publishing import publish_seconds
from panoptile.jobs.state import store_errors
from panoptile.jobs.survey import survey
from panoptile.pipeline import layout
from panoptile.pipeline.memory import allocate_frugally
from panoptile.pipeline.store import Store, open_store, probe_store


def run_job(
    prepared: Prepared, console: Console, *, retry_quarantined: bool = True, relink: bool = False
) -> Summary:
    """Run the job, or follow the run that is at work: a summary with exit code 0 or 3, or :class:`JobError`.

    ``retry_quarantined=False`` leaves alone what an earlier run gave up; ``relink`` lets other linking options replace
    a finished result.
    """
    allocate_frugally()
    spec = prepared.spec
    prepared.allowed_failures()  # too many skipped inputs end the job before it begins
    _check_environment(prepared)
    store = open_store(spec.out)
    interrupt.remember(store.root)
    model = (prepared.model.description, prepared.model.sha256)
    with store_errors(spec.out):
        if note := probe_store(store).note:
            console.say(f"note    {note}")
        if write_job(store, spec, prepared.fingerprint, model, prepared.uris):
            console.say(f"note    {layout.JOB} was damaged or gone: written anew from its copy")
        if not relink:
            refuse_other_links(store, prepared)
        done = earlier_result(store, prepared, retry_quarantined)
    while done is None:
        with store_errors(spec.out, started=True):
            held = take_lease(store, spec.if_running, console, prepared.units)
        if isinstance(held, Followed):
            done = _followed(store, prepared, held)
            if done is None:
                console.say(
                    "The run that was followed did not do all that this one asks for: going on with what is left."
                )
            if done is None and not relink:
                with store_errors(spec.out, started=True):
                    refuse_other_links(store, prepared)
            continue
        try:
            return LeasedRun(store, prepared, console, held, retry_quarantined, relink).to_its_end()
        except LeaseLost:
            console.say("Another run has taken this one for dead and works on: following it.")
    return done


def _check_environment(prepared: Prepared) -> None:
    """A limit in the environment that is no number ends the job before it begins: exit 2."""
    patience()
    for plan in prepared.plans[:1]:
        publish_seconds(plan)


def _followed(store: Store, prepared: Prepared, held: Followed) -> Summary | None:
    """What the run that was followed made; None where that is not what this command wants, so it has work to do."""
    if held.skipped:
        return Summary(held.exit, store.root, prepared, (), {}, already_done=True, skipped=True)
    with store_errors(prepared.spec.out, started=True):
        found = survey(store, prepared.plans, prepared.kept)
        done = finished_as(store, prepared, found)
        if done is None or not has_catalogue(store, prepared):
            return None
        return summary_of(store, prepared, found, done)
