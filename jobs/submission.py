"""``panoptile submit``: hand a job to a cluster and walk away.

The job's id follows from its fingerprint and OUT, so a second submit finds the first one and attaches. The job's
driver runs on the cluster, under the same command as on a laptop; all state is in OUT.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panoptile.jobs.cancellation import SUBMISSION
from panoptile.jobs.cluster import find_job
from panoptile.jobs.cluster_probe import ANSWER
from panoptile.jobs.code_package import JOB_FILE, pack
from panoptile.jobs.earlier_result import earlier_result, refuse_other_links
from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.lease import highest_epoch
from panoptile.jobs.state import store_errors
from panoptile.pipeline.remote_uri import scheme_of
from panoptile.pipeline.store import open_store

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from panoptile.jobs.prepare import Prepared
    from panoptile.jobs.spec import JobSpec

ID_PREFIX = "panoptile-"
PROBE_SECONDS = 300.0
LOOKED_AT = 1000
"""Most local inputs that each node is asked for."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job on a cluster."""

    job_id: str
    attached: bool
    """The job was there already."""


def job_id_of(prepared: Prepared) -> str:
    """The same for the same parameters, model and OUT."""
    text = f"{prepared.fingerprint}\n{open_store(prepared.spec.out).root}"
    return f"{ID_PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def submit(
    client: JobSubmissionClient,
    prepared: Prepared,
    *,
    wheel: str | None,
    say: Callable[[str], None],
    accepted: Callable[[], None] = lambda: None,
) -> Submitted:
    """Hand the job over, or find it there. Raises :class:`JobError`: exit 2, 5 with --if-running fail, or 6.

    ``accepted`` is called once all checks have passed, before the job is handed over: it may still refuse it.
    """
    spec = prepared.spec
    with store_errors(spec.out):
        after = highest_epoch(
            open_store(spec.out)
        )  # before the cluster is asked: a run that begins later is this job
    job_id, running = _free_id(client, job_id_of(prepared))
    if running:
        _heed_running(spec, job_id)
        accepted()
        return Submitted(job_id, attached=True)
    with tempfile.TemporaryDirectory(prefix="panoptile-submit-") as folder:
        pack(spec, Path(folder), wheel=wheel)
        probe(client, prepared, folder, say)
        accepted()
        with store_errors(spec.out):
            _record(
                client, spec.out, job_id, after
            )  # first: whoever looks at OUT from now on waits for this job
        handed_over = _hand_over(client, prepared, folder, job_id)
    if not handed_over:
        _heed_running(spec, job_id)
    return Submitted(job_id, attached=not handed_over)


def _heed_running(spec: JobSpec, job_id: str) -> None:
    """Raise :class:`JobError` (exit 5) where --if-running fail meets a job that runs already."""
    if spec.if_running == "fail":
        raise JobError(
            Exit.OTHER_JOB,
            f"{job_id} works on {spec.out} already: wait for it (panoptile status {spec.out} --watch), or leave out "
            "--if-running fail.",
        )


def state_of(info: JobDetails) -> str:
    """Ray's word for how a job stands, but ours for those that Ray calls failed, and that are not."""
    ours = {int(Exit.QUARANTINED): "quarantined", int(Exit.INTERRUPTED): "interrupted", 143: "interrupted"}
    word: str = info.status.value.lower()
    return ours.get(exit_of(info), word) if word == "failed" else word


def _hand_over(client: JobSubmissionClient, prepared: Prepared, folder: str, job_id: str) -> bool:
    """False where another submit of this job was faster."""
    try:
        client.submit_job(
            entrypoint=shlex.join(["python", "-m", "panoptile", "segment", JOB_FILE]),
            submission_id=job_id,
            runtime_env={"working_dir": folder},
            metadata={
                "panoptile": version("panoptile"),
                "fingerprint": prepared.fingerprint[:16],
                "out": open_store(prepared.spec.out).root,  # whoever asks for the job is in another folder
            },
        )
    except RuntimeError:
        if find_job(client, job_id) is None:
            raise
        return False
    return True


def _record(client: JobSubmissionClient, out: str, job_id: str, after: int) -> None:
    """Leave in OUT where its job is, and after which run it was handed over. Raises ``OSError`` of the store."""
    record = {"cluster": client.get_address(), "job_id": job_id, "after_epoch": after}
    open_store(out).put_bytes(SUBMISSION, json.dumps(record).encode())


def finished_exit(prepared: Prepared) -> Exit | None:
    """How this very job ended, where its result lies complete in OUT; None where there is something to do.

    It asks what ``segment`` asks, and refuses what ``segment`` would refuse on the cluster. Raises :class:`JobError`
    where too many inputs are skipped (exit 4) or OUT is linked with other options (exit 5), ``OSError`` of the store.
    """
    prepared.allowed_failures()
    store = open_store(prepared.spec.out)
    refuse_other_links(store, prepared)
    done = earlier_result(store, prepared, retry_quarantined=True)
    return None if done is None else done.exit


def _free_id(client: JobSubmissionClient, base: str) -> tuple[str, bool]:
    """(id, whether it still runs): the first of base, base-r2, base-r3, … that runs or was never used."""
    for job_id in _ids(base):
        found = find_job(client, job_id)
        if found is None or not found.status.is_terminal():
            return job_id, found is not None
    raise AssertionError  # ids do not end


def latest_id(client: JobSubmissionClient, prepared: Prepared) -> str:
    """The id under which the cluster ran this job last, or would run it, where it does not remember it."""
    last = base = job_id_of(prepared)
    for job_id in _ids(base):
        if find_job(client, job_id) is None:
            return last
        last = job_id
    raise AssertionError


def _ids(base: str) -> Iterator[str]:
    """Ray knows an id once: what goes on after a job that has ended is -r2, then -r3."""
    yield base
    for number in itertools.count(2):
        yield f"{base}-r{number}"


def probe(client: JobSubmissionClient, prepared: Prepared, folder: str, say: Callable[[str], None]) -> None:
    """Refuse a cluster whose nodes hold another panoptile or do not see the job's local files (exit 2)."""
    with _local_paths(prepared) as (paths, tokens):
        request = json.dumps({"paths": paths, "tokens": tokens})
        job_id = f"{ID_PREFIX}probe-{uuid.uuid4().hex[:12]}"
        client.submit_job(
            entrypoint=shlex.join(["python", "-m", "panoptile.jobs.cluster_probe", request]),
            submission_id=job_id,
            runtime_env={"working_dir": folder},
        )
        info = wait_for(client, job_id, PROBE_SECONDS)
        logs = client.get_job_logs(job_id)
    line = next((row for row in logs.splitlines() if row.startswith(ANSWER)), None)
    if line is None:
        raise _no_panoptile(logs, info)
    _judge(json.loads(line.removeprefix(ANSWER)), say)


def _judge(nodes: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    ours = version("panoptile")
    for node in nodes:
        seen = node["seen"]
        if seen is None:
            raise JobError(
                Exit.UNREACHABLE, f"Node {node['node']} of the cluster does not answer: is it overloaded?"
            )
        if seen["version"] != ours:
            raise invalid(
                f"Node {node['node']} holds panoptile {seen['version'] or '(unknown)'}, here is {ours}: use an image "
                "with the same version, or take the code along with --wheel this."
            )
        if seen["missing"] or seen["unseen"]:
            path = (seen["missing"] or seen["unseen"])[0]
            raise invalid(
                f"Node {node['node']} does not see {path}: sources and OUT must lie on an object store, or on a file "
                "system that every node mounts at the same place."
            )
    gpus = sum(node["resources"].get("GPU", 0) for node in nodes)
    say(
        f"cluster {len(nodes)} node{'s' if len(nodes) != 1 else ''}, {gpus:g} GPUs; every node sees the job's files"
    )


@contextlib.contextmanager
def _local_paths(prepared: Prepared) -> Iterator[tuple[list[str], list[str]]]:
    """Local inputs of the job, and a token in a local OUT that only a shared file system shows elsewhere.

    A kept input may be gone from everywhere: nobody reads it.
    """
    kept = {plan.uri for plan in prepared.plans if plan.key in prepared.kept.keys}
    inputs = [uri for uri in prepared.uris if scheme_of(uri) is None and uri not in kept][:LOOKED_AT]
    out = prepared.spec.out
    if scheme_of(out) not in (None, "file"):
        yield inputs, []
        return
    store, key = open_store(out), f"_state/probe/{uuid.uuid4().hex}"
    store.put_bytes(key, b"")
    try:
        yield inputs, [store.uri(key)]
    finally:
        store.delete(key)


def wait_for(client: JobSubmissionClient, job_id: str, seconds: float) -> JobDetails:
    """The job once it has ended. Raises :class:`JobError` (exit 6) after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        info = client.get_job_info(job_id)
        if info.status.is_terminal():
            return info
        if time.monotonic() > deadline:
            client.stop_job(job_id)
            raise JobError(
                Exit.UNREACHABLE,
                f"The cluster did not run {job_id} within {seconds:.0f} s ({info.status.value.lower()}: "
                f"{info.message}): it has no room, or its head cannot start processes.",
            )
        time.sleep(0.5)


def exit_of(info: JobDetails) -> int:
    """The exit code of a job that has ended, as the command itself would have given it."""
    status = info.status.value
    if status == "SUCCEEDED":
        return int(Exit.DONE)
    if status == "STOPPED":
        return 143
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return int(Exit.UNREACHABLE)


def _no_panoptile(logs: str, info: JobDetails) -> JobError:
    if "No module named" in logs:
        return invalid(
            "The cluster's image does not hold panoptile or what it needs "
            f"({[r for r in logs.splitlines() if 'No module named' in r][-1].strip()}): use an image that does, or take "
            "the code along with --wheel this."
        )
    tail = (logs.strip().splitlines() or [str(info.message)])[-1]
    return JobError(Exit.UNREACHABLE, f"The cluster could not be asked about its nodes: {tail}")


def last_error(client: JobSubmissionClient, job_id: str) -> str:
    """The sentence that a job ended with."""
    logs: str = client.get_job_logs(job_id)
    rows = [row for row in logs.splitlines() if row.strip()]
    errors = [row for row in rows if row.startswith("error:")]
    return (errors or rows or ["the job ended without a word"])[-1].removeprefix("error:").strip()


def out_of_job(client: JobSubmissionClient, job_id: str) -> str:
    """Where a job on the cluster writes. Raises :class:`JobError` (exit 2) for a job that the cluster does not know."""
    info = find_job(client, job_id)
    if info is None or "out" not in (info.metadata or {}):
        raise invalid(f"The cluster knows no panoptile job {job_id}: see panoptile list, or name its OUT.")
    return str((info.metadata or {})["out"])


def jobs_on(client: JobSubmissionClient) -> list[dict[str, Any]]:
    """All jobs of panoptile that the cluster remembers, the newest first."""
    found = [
        j
        for j in client.list_jobs()
        if (j.submission_id or "").startswith(ID_PREFIX) and "out" in (j.metadata or {})
    ]
    found.sort(key=lambda j: j.start_time or 0, reverse=True)
    return [
        {
            "job_id": j.submission_id,
            "status": state_of(j),
            "began": datetime.fromtimestamp((j.start_time or 0) / 1000, UTC).isoformat(timespec="seconds")[
                :19
            ],
            "out": (j.metadata or {})["out"],
            "exit": exit_of(j) if j.status.is_terminal() else None,
        }
        for j in found
    ]
