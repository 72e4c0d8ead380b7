"""``panoptile submit``, ``status``, ``logs``, ``cancel`` and ``list``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, invalid
from panoptile.jobs.job_options import ResolvedJob, with_job_options

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from panoptile.jobs.prepare import Prepared

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar="PANOPTILE_CLUSTER", help="Ray dashboard, such as http://ray-head:8265."
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option("--auth-token-file", metavar="FILE", help="Token of the cluster; default: where Ray looks."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure-cluster", help="Accept a cluster that asks for no token.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Stay until the job ends, and exit with its exit code.")]
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="OUT|JOB", help="Output folder of the job; or its id on the cluster, with --cluster."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        "submit",
        epilog="Prints the job's id alone. The id follows from the job: a second submit attaches to the first. "
        "Example: panoptile submit job.yaml --cluster http://ray-head:8265 --auth-token-file token --gpus 8",
    )(with_job_options(submit))
    app.command(epilog="Example: panoptile status s3://bucket/out --watch")(status)
    app.command(epilog="Example: panoptile logs out/ -f --unit ortho-1a2b3c4d5e-t00000032n16")(logs)
    app.command(epilog="Example: panoptile cancel out/")(cancel)
    app.command("list", epilog="Example: panoptile list --cluster http://ray-head:8265")(list_jobs)


def submit(
    job: ResolvedJob,
    console: Console,
    *,
    cluster: Cluster = None,
    auth_token_file: TokenFile = None,
    insecure_cluster: Insecure = False,
    wheel: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|this",
            help="Take panoptile along: a wheel, or 'this' installation; default: the cluster's image holds it.",
        ),
    ] = None,
    watch: Watch = False,
) -> None:
    """Hand a job to a Ray cluster and walk away; its state is in OUT."""
    from panoptile.jobs.prepare import prepare
    from panoptile.jobs.state import store_errors
    from panoptile.jobs.submission import finished_exit

    if job.spec.local:
        raise invalid("--local runs on this machine: leave it out of a job for a cluster, or add --no-local.")
    client = _client(cluster, auth_token_file, insecure_cluster)
    prepared = prepare(job.spec)
    for note in prepared.notes:
        console.say(f"note    {note}")
    with store_errors(job.spec.out):
        finished = finished_exit(prepared)
    if finished is not None:
        _say_done(client, job, prepared, finished, watch=watch, console=console)
    else:
        _hand_over(client, job, prepared, wheel=wheel, watch=watch, console=console)


def _hand_over(
    client: JobSubmissionClient,
    job: ResolvedJob,
    prepared: Prepared,
    *,
    wheel: str | None,
    watch: bool,
    console: Console,
) -> None:
    """Hand the job over, or attach to it where it runs already; with ``watch`` stay to its end and its exit code."""
    from panoptile.jobs.submission import submit as handed_over
    from panoptile.jobs.watching import watch_job

    submitted = handed_over(
        client, prepared, wheel=wheel, say=console.say, accepted=lambda: job.write_saved(console)
    )
    if submitted.attached:
        console.say(f"{job.spec.if_running:<7} the job runs already")
    fields = {"job_id": submitted.job_id, "attached": submitted.attached, "out": job.spec.out}
    if not watch or (submitted.attached and job.spec.if_running == "skip"):
        console.data(submitted.job_id, fields)
        return
    console.say(f"job     {submitted.job_id}")
    code = watch_job(client, submitted.job_id, job.spec.out, console)
    console.data(submitted.job_id, {**fields, "exit": code})
    raise typer.Exit(code)


def _say_done(
    client: JobSubmissionClient,
    job: ResolvedJob,
    prepared: Prepared,
    code: Exit,
    *,
    watch: bool,
    console: Console,
) -> None:
    """The result is there: nothing is started on the cluster to find that out."""
    from panoptile.jobs.submission import latest_id

    job_id, out = latest_id(client, prepared), prepared.spec.out
    job.write_saved(console)
    console.say(f"done    {out} holds the result of this job already; nothing was submitted")
    fields = {"job_id": job_id, "attached": True, "out": out, "exit": int(code)}
    console.data(job_id, fields)
    if watch:
        raise typer.Exit(int(code))


def status(
    target: Target = None,
    cluster: Cluster = None,
    auth_token_file: TokenFile = None,
    insecure_cluster: Insecure = False,
    watch: Watch = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Say how a job stands, from OUT alone: it works when the cluster is gone."""
    from panoptile.jobs.job_status import exit_of, status_text
    from panoptile.jobs.state import read_errors
    from panoptile.jobs.watching import settled, watch_out

    console = Console(as_json=as_json, quiet=quiet)
    out = _out_of(target, lambda: _client(cluster, auth_token_file, insecure_cluster))
    with read_errors(out):
        found = watch_out(out, console) if watch else settled(out)
    console.data(status_text(found), found.to_json())
    if watch:
        raise typer.Exit(exit_of(found))


def logs(
    target: Target = None,
    cluster: Cluster = None,
    auth_token_file: TokenFile = None,
    insecure_cluster: Insecure = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    unit: Annotated[str | None, typer.Option(metavar="ID", help="Events of one unit.")] = None,
    worker: Annotated[str | None, typer.Option(metavar="NAME", help="Events of one worker.")] = None,
    as_json: opt.JsonLines = False,
) -> None:
    """Print what happened, from OUT: it outlives the nodes that it happened on."""
    import json

    from panoptile.jobs.event_log import event_text

    out = _out_of(target, lambda: _client(cluster, auth_token_file, insecure_cluster))
    printed = False
    for event in _events(out, follow=follow):
        if unit in (None, event.get("unit")) and worker in (None, event.get("worker")):
            print(json.dumps(event) if as_json else event_text(event), flush=True)
            printed = True
    if not printed:
        chosen = {"--unit": unit, "--worker": worker}
        of = "".join(f" {option} {value}" for option, value in chosen.items() if value is not None)
        Console().say(f"note    {out} has no event{' of' * bool(of)}{of}")


def cancel(
    target: Target = None,
    cluster: Cluster = None,
    auth_token_file: TokenFile = None,
    insecure_cluster: Insecure = False,
    now: Annotated[
        bool, typer.Option("--now", help="Stop the job on the cluster at once, without finishing units.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Stop a job, through OUT or, if it has not begun yet, on its cluster; what is done is kept for the next run."""
    from panoptile.jobs.cancellation import record_stop, request_cancel
    from panoptile.jobs.state import read_errors, store_errors
    from panoptile.jobs.watching import settled

    console = Console(as_json=as_json)
    out = _out_of(target, lambda: _client(cluster, auth_token_file, insecure_cluster))
    with read_errors(out):
        found = settled(out)
    if found.state not in ("running", "submitted"):
        console.data(f"{found.out} is not running ({found.state}): nothing was stopped", {"cancelled": False})
        return
    if found.state == "running":
        with store_errors(out):
            request_cancel(found.out)
    if now or found.state == "submitted":
        if found.job_id is None:
            raise invalid(
                "--now stops a job on a cluster, but this one was not submitted: it ends within 30 s."
            )
        _client(cluster or found.cluster, auth_token_file, insecure_cluster).stop_job(found.job_id)
        with store_errors(out):
            record_stop(found.out, found.job_id)
    console.data(f"{found.out} will stop within 30 s; panoptile resume goes on there", {"cancelled": True})


def list_jobs(
    cluster: Cluster = None,
    auth_token_file: TokenFile = None,
    insecure_cluster: Insecure = False,
    as_json: opt.Json = False,
) -> None:
    """List panoptile's jobs on a cluster, the newest first."""
    from panoptile.jobs.submission import jobs_on

    rows = jobs_on(_client(cluster, auth_token_file, insecure_cluster))
    lines = [f"{'job':<28} {'status':<10} {'began':<20} out"]
    lines += [f"{r['job_id']:<28} {r['status']:<10} {r['began']:<20} {r['out']}" for r in rows]
    Console(as_json=as_json).data("\n".join(lines), {"jobs": rows})


# --- shared --------------------------------------------------------------------------------------------


def _client(cluster: str | None, token_file: str | None, insecure: bool) -> JobSubmissionClient:
    from panoptile.jobs.cluster import ClusterAddress, connect

    if cluster is None:
        raise invalid("Name the cluster with --cluster http://HOST:8265, or in PANOPTILE_CLUSTER.")
    return connect(ClusterAddress(cluster, token_file, insecure))


def _out_of(target: str | None, client: Any) -> str:
    """OUT itself, or the OUT of a job on the cluster."""
    from panoptile.jobs.submission import ID_PREFIX, out_of_job

    if target is None:
        raise invalid("Name the job by its OUT folder, or by its id with --cluster.")
    if not target.startswith(ID_PREFIX) or "/" in target:
        return target
    return out_of_job(client(), target)


def _events(out: str, *, follow: bool) -> Iterator[dict[str, Any]]:
    """What OUT tells so far, and with ``follow`` what comes until the job ends."""
    from panoptile.jobs.event_log import read_events
    from panoptile.jobs.job_status import look_at
    from panoptile.jobs.state import read_errors
    from panoptile.jobs.watching import looks
    from panoptile.pipeline.store import open_store

    # here and not around the printing: a reader that goes away, as head does, is no error of the store
    with read_errors(out):
        look_at(out)  # a folder without a job ends here
        store, seen = open_store(out), set[str]()
        for _ in looks(out) if follow else [None]:
            yield from read_events(store, seen)
