"""Submitting to a cluster, against a stand-in for its Jobs API and a real HTTP answer."""

from __future__ import annotations

import dataclasses
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import ray
import yaml
from ray.exceptions import TaskUnschedulableError
from tests.jobs.runs import run, threads, write_world
from tests.pipeline.worlds import make_world
from typer.testing import CliRunner

from panoptile.jobs import submission, watching
from panoptile.jobs.cancellation import SUBMISSION
from panoptile.jobs.cli import app
from panoptile.jobs.cluster import ClusterAddress, asks_for_token, connect
from panoptile.jobs.cluster_probe import ANSWER, look
from panoptile.jobs.cluster_probe import main as probe_main
from panoptile.jobs.code_package import JOB_FILE, pack
from panoptile.jobs.commands import cluster as cluster_commands
from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.job_file import read_job_file, with_absolute_paths
from panoptile.jobs.job_status import TERMINAL, look_at
from panoptile.jobs.lease import claim
from panoptile.jobs.prepare import Prepared, prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.jobs.submission import exit_of, job_id_of, submit
from panoptile.pipeline.store import open_store


@dataclass
class FakeClient:
    """What a cluster's Jobs API would answer; every submitted job ends at once, the probe with ``nodes``."""

    nodes: list[dict[str, Any]]
    jobs: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, dict[str, str]] = field(default_factory=dict)
    keep_running: bool = False

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, str], **_: Any
    ) -> str:
        if submission_id in self.jobs:
            raise RuntimeError(f"Request failed with status code 500: {submission_id} already exists.")
        folder = Path(runtime_env["working_dir"])
        self.folders[submission_id] = {p.name: p.read_text() for p in folder.glob("*.yaml")}
        running = self.keep_running and "probe" not in submission_id
        self.jobs[submission_id] = job("RUNNING" if running else "SUCCEEDED", entrypoint)
        return submission_id

    def get_job_info(self, job_id: str) -> Any:
        if job_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        return self.jobs[job_id]

    def get_job_logs(self, job_id: str) -> str:
        return f"noise\n{ANSWER}{json.dumps(self.nodes)}\n" if "probe" in job_id else ""

    def get_address(self) -> str:
        return "http://ray-head:8265"


def job(status: str, message: str = "", code: int | None = None) -> Any:
    terminal = status in ("SUCCEEDED", "FAILED", "STOPPED")
    kind = SimpleNamespace(value=status, is_terminal=lambda: terminal)
    return SimpleNamespace(status=kind, message=message, driver_exit_code=code, metadata={})


def node(**seen: Any) -> dict[str, Any]:
    return {
        "node": "n1",
        "resources": {"CPU": 2, "GPU": 1},
        "seen": {"version": version("panoptile"), "missing": [], "unseen": []} | seen,
    }


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    files = write_world(make_world(seed=1, height=100, width=120), tmp_path / "world")
    return prepare(
        JobSpec((str(files.image),), str(tmp_path / "out"), model=files.model, labels=str(files.table))
    )


def say(text: str) -> None:
    """Messages are not what is tested here."""


def submit_line(prepared: Prepared, *more: str) -> list[str]:
    """The command that submits the prepared job."""
    spec = prepared.spec
    return [
        "submit",
        *spec.sources,
        "-o",
        spec.out,
        "--model",
        spec.model,
        "--labels",
        str(spec.labels),
        *more,
    ]


def run_of(prepared: Prepared) -> Summary:
    """Run the prepared job on this machine, to its end."""
    with threads():
        return run_job(
            dataclasses.replace(prepared, spec=dataclasses.replace(prepared.spec, local=True, workers=1)),
            Console(quiet=True),
        )


def test_a_second_submit_attaches_to_the_first(prepared: Prepared) -> None:
    """While the job runs, it is found by its id; nothing is handed over again."""
    client: Any = FakeClient([node()], keep_running=True)
    first = submit(client, prepared, wheel=None, say=say)
    handed_over = len(client.jobs)
    second = submit(client, prepared, wheel=None, say=say)
    assert (first.attached, second.attached) == (False, True)
    assert first.job_id == second.job_id == job_id_of(prepared)
    assert len(client.jobs) == handed_over


def test_of_two_submits_at_once_one_attaches(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the id free; Ray takes the first, and the second is told of that job instead of an error."""
    client: Any = FakeClient([node()], keep_running=True)
    first = submit(client, prepared, wheel=None, say=say)
    monkeypatch.setattr(submission, "_free_id", lambda _, base: (base, False))
    second = submit(client, prepared, wheel=None, say=say)
    assert (second.job_id, second.attached) == (first.job_id, True)


def test_a_job_is_found_from_any_folder(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUT was given relative to the folder of who submitted; the cluster remembers where that is."""
    given: dict[str, Any] = {}
    client: Any = FakeClient([node()])
    monkeypatch.chdir(Path(prepared.spec.out).parent)
    here = dataclasses.replace(prepared, spec=dataclasses.replace(prepared.spec, out="out"))
    take = client.submit_job
    monkeypatch.setattr(client, "submit_job", lambda **fields: given.update(fields) or take(**fields))
    submit(client, here, wheel=None, say=say)
    assert given["metadata"]["out"] == prepared.spec.out


def test_a_job_that_has_ended_is_followed_by_the_next(prepared: Prepared) -> None:
    """Ray knows an id once: the job that goes on after a failed one is -r2, then -r3."""
    client: Any = FakeClient([node()])
    base = job_id_of(prepared)
    client.jobs[base] = client.jobs[f"{base}-r2"] = job("FAILED", code=6)
    assert submit(client, prepared, wheel=None, say=say).job_id == f"{base}-r3"


def test_the_id_follows_from_job_and_out(prepared: Prepared, tmp_path: Path) -> None:
    """Another OUT or another parameter is another job."""
    other = dataclasses.replace(
        prepared, spec=dataclasses.replace(prepared.spec, out=str(tmp_path / "other"))
    )
    changed = dataclasses.replace(prepared, fingerprint="0" * 64)
    assert len({job_id_of(p) for p in (prepared, other, changed)}) == 3


def test_what_travels_with_a_job(prepared: Prepared, tmp_path: Path) -> None:
    """The job file is complete, its paths are absolute, and small files that it names lie beside it."""
    client: Any = FakeClient([node()])
    submitted = submit(client, prepared, wheel=None, say=say)
    filed = yaml.safe_load(client.folders[submitted.job_id][JOB_FILE])
    assert filed["out"] == str(tmp_path / "out")
    assert filed["sources"] == list(prepared.spec.sources)
    assert filed["labels"] == "labels.json"
    record = json.loads((tmp_path / "out" / SUBMISSION).read_text())
    assert record == {"cluster": "http://ray-head:8265", "job_id": submitted.job_id, "after_epoch": 0}


@pytest.mark.parametrize(("choice", "code"), [("attach", 3), ("skip", 0), ("fail", 5)])
def test_a_running_job_is_met_as_asked(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, choice: str, code: int
) -> None:
    """--if-running attach watches the job that runs, to its exit code; skip leaves it alone; fail ends with exit 5."""
    client: Any = FakeClient([node()], keep_running=True)
    job_id = submit(client, prepared, wheel=None, say=say).job_id
    looks = iter([job("RUNNING"), job("RUNNING"), job("FAILED", code=3)])
    monkeypatch.setattr(client, "get_job_info", lambda _: next(looks))
    monkeypatch.setattr(watching, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(cluster_commands, "_client", lambda *_: client)
    result = CliRunner().invoke(app, submit_line(prepared, "--watch", "--if-running", choice))
    if isinstance(result.exception, JobError):
        assert (int(result.exception.code), job_id in str(result.exception)) == (code, True)
        return
    assert (result.exit_code, result.stdout.strip()) == (code, job_id)
    assert ("quarantined" in result.stderr) == (choice == "attach")


@pytest.mark.parametrize("refusal", ["a node", "a running job", "a silent cluster"])
def test_what_the_cluster_refuses_is_not_saved(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    """--save is heeded after the last check: a node that would fail, --if-running fail, a cluster that falls silent."""
    client: Any = FakeClient([node()], keep_running=True)
    monkeypatch.setattr(cluster_commands, "_client", lambda *_: client)
    more = ["--save", str(tmp_path / "job.yaml")]
    if refusal == "a node":
        client.nodes = [node(version="0.0.9")]
    elif refusal == "a running job":
        submit(client, prepared, wheel=None, say=say)
        more += ["--if-running", "fail"]
    else:
        run_of(prepared)
        silence = JobError(Exit.UNREACHABLE, "The cluster does not answer.")
        monkeypatch.setattr(client, "get_job_info", mock.Mock(side_effect=silence))
    result = CliRunner().invoke(app, submit_line(prepared, *more))
    assert isinstance(result.exception, JobError)
    assert "saved" not in result.stderr
    assert not (tmp_path / "job.yaml").exists()


@pytest.mark.parametrize("found", ["nothing", "a running job", "a result"])
def test_what_is_submitted_is_saved(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Once, whether the job is handed over, followed, or done already."""
    client: Any = FakeClient([node()], keep_running=True)
    monkeypatch.setattr(cluster_commands, "_client", lambda *_: client)
    if found == "a running job":
        submit(client, prepared, wheel=None, say=say)
    elif found == "a result":
        run_of(prepared)
    saved = tmp_path / "job.yaml"
    result = CliRunner().invoke(app, submit_line(prepared, "--save", str(saved)), catch_exceptions=False)
    assert result.stderr.count(f"saved   {saved}") == 1
    assert yaml.safe_load(saved.read_text())["out"] == prepared.spec.out


def test_a_job_that_cannot_be_saved_is_not_handed_over(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2 says that nothing was started, and nothing was."""
    client: Any = FakeClient([node()])
    monkeypatch.setattr(cluster_commands, "_client", lambda *_: client)
    result = CliRunner().invoke(app, submit_line(prepared, "--save", str(tmp_path / "none" / "job.yaml")))
    assert isinstance(result.exception, JobError)
    assert int(result.exception.code) == 2
    assert all("probe" in job_id for job_id in client.jobs)
    assert not (Path(prepared.spec.out) / SUBMISSION).exists()


def test_a_job_that_was_handed_over_is_submitted_until_it_begins(prepared: Prepared) -> None:
    """Looking at OUT between the two is no error, and how an earlier run ended is not taken for this one's end."""
    client: Any = FakeClient([node()])
    store = open_store(prepared.spec.out)
    submitted = submit(client, prepared, wheel=None, say=say)
    status = look_at(prepared.spec.out)
    assert (status.state, status.job_id, status.exit) == ("submitted", submitted.job_id, None)
    assert status.state not in TERMINAL
    first = claim(store, 0)
    assert first is not None
    assert look_at(prepared.spec.out).state == "running"
    first.release(4, "the disk is full")
    assert (look_at(prepared.spec.out).state, look_at(prepared.spec.out).exit) == ("failed", 4)
    submit(client, prepared, wheel=None, say=say)
    status = look_at(prepared.spec.out)
    assert (status.state, status.exit, status.message) == ("submitted", None, "")


def test_a_job_that_has_not_begun_can_be_cancelled(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped on its cluster, OUT says so, nobody waits for it; the next submit begins anew."""
    client: Any = FakeClient([node()], keep_running=True)
    stopped: list[str] = []
    client.stop_job = stopped.append
    monkeypatch.setattr(cluster_commands, "_client", lambda *_: client)
    out, first = prepared.spec.out, submit(client, prepared, wheel=None, say=say)
    cancelled = CliRunner().invoke(app, ["cancel", out, "--json"], catch_exceptions=False)
    assert json.loads(cancelled.stdout)["cancelled"] is True
    assert stopped == [first.job_id]
    watched = CliRunner().invoke(app, ["status", out, "--watch", "--json"], catch_exceptions=False)
    assert watched.exit_code == 143
    assert json.loads(watched.stdout)["state"] == "interrupted"
    client.jobs[first.job_id] = job("STOPPED")
    submit(client, prepared, wheel=None, say=say)
    assert look_at(out).state == "submitted"


@pytest.mark.parametrize("command", [["status", "--watch"], ["logs", "-f"]])
def test_a_submitted_job_that_never_begins_is_not_watched_for_ever(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Exit 6 after the deadline, and where to look."""
    client: Any = FakeClient([node()])
    submit(client, prepared, wheel=None, say=say)
    monkeypatch.setattr(watching, "BEGIN_SECONDS", 0.0)
    with pytest.raises(JobError, match="has not begun") as e:
        CliRunner().invoke(app, [*command, prepared.spec.out], catch_exceptions=False)
    assert int(e.value.code) == 6


def test_a_job_that_nobody_runs_is_not_watched_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that died before it took the folder leaves a plan: exit 6, and how to start it."""
    files = write_world(make_world(seed=1, height=100, width=120), tmp_path / "world")
    run(files, tmp_path / "out")
    for left in ("_SUCCESS.json", "_state/lease", "_state/beat", "_state/ended"):
        path = tmp_path / "out" / left
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    monkeypatch.setattr(watching, "BEGIN_SECONDS", 0.0)
    with pytest.raises(JobError, match="panoptile resume") as e:
        CliRunner().invoke(app, ["status", str(tmp_path / "out"), "--watch"], catch_exceptions=False)
    assert int(e.value.code) == 6


def test_a_finished_job_is_not_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result in OUT is found before anything starts on the cluster; with --watch its exit code is returned."""
    files = write_world(make_world(seed=1, height=100, width=120), tmp_path / "world")
    run(files, tmp_path / "out")
    client = FakeClient([node()])
    monkeypatch.setattr(cluster_commands, "_client", lambda *_: client)
    line = ["submit", str(files.image), "-o", str(tmp_path / "out"), "--model", files.model]
    line += ["--labels", str(files.table)]
    result = CliRunner().invoke(app, line, catch_exceptions=False)
    assert (result.exit_code, client.jobs) == (0, {})
    assert "nothing was submitted" in result.stderr
    assert result.stdout.startswith("panoptile-")
    assert CliRunner().invoke(app, [*line, "--watch"], catch_exceptions=False).exit_code == 0
    files.image.touch()
    next((tmp_path / "out").glob("_state/commits/**/*.json")).unlink()
    CliRunner().invoke(app, line, catch_exceptions=False)
    assert len(client.jobs) == 2  # the probe and the job


@pytest.mark.parametrize(
    "lost",
    [
        None, "tiles/*.parquet", "previews/*.png", "_state/results/*.json", "rasters/*/*.classes.tif",
        "segments/*.parquet", "classes.json", "manifest.parquet", "_state/commits/**/*.json",
    ],
)  # fmt: skip
def test_submit_takes_for_done_what_segment_does(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, lost: str | None
) -> None:
    """A folder that lacks a table of tiles, a picture, or anything else that segment makes again is handed over."""
    run_of(prepared)
    if lost is not None:
        next(Path(prepared.spec.out).glob(lost)).unlink()
    client = FakeClient([node()])
    monkeypatch.setattr(cluster_commands, "_client", lambda *_: client)
    result = CliRunner().invoke(app, submit_line(prepared), catch_exceptions=False)
    says_done, is_handed_over = "nothing was submitted" in result.stderr, client.jobs != {}
    assert (says_done, is_handed_over) == (lost is None, lost is not None)
    assert run_of(prepared).already_done == says_done


def test_too_many_skipped_inputs_are_not_submitted(prepared: Prepared, tmp_path: Path) -> None:
    """Exit 4 here, as the job would end on the cluster."""
    (tmp_path / "bad.tif").write_bytes(b"no raster")
    spec = prepared.spec
    sources, out = (*spec.sources, str(tmp_path / "bad.tif")), str(tmp_path / "other")
    spec = dataclasses.replace(spec, sources=sources, out=out, skip_invalid=True, max_failures="0")
    with pytest.raises(JobError, match="more than --max-failures 0 tolerates") as e:
        submission.finished_exit(prepare(spec))
    assert int(e.value.code) == 4


def test_an_echos_paths_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver on the cluster has another working directory: relative label rasters become absolute."""
    monkeypatch.chdir(tmp_path)
    spec = with_absolute_paths(JobSpec(("a.tif",), "out", model="echo:l.tif,c/c.tif"))
    assert spec.model == f"echo:{tmp_path}/l.tif,{tmp_path}/c/c.tif"
    (tmp_path / "job.yaml").write_text("sources: [a.tif]\nout: out\nmodel: echo:l.tif\n")
    assert read_job_file(str(tmp_path / "job.yaml"))["model"] == f"echo:{tmp_path}/l.tif"


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({"version": "0.0.9"}, r"holds panoptile 0\.0\.9"),
        ({"missing": ["/data/a.tif"]}, r"does not see /data/a\.tif"),
        ({"unseen": ["/out/_state/probe/x"]}, "does not see /out"),
    ],
)
def test_a_node_that_would_fail_is_refused(prepared: Prepared, seen: dict[str, Any], words: str) -> None:
    """Exit 2, before the job is handed over; the token in OUT is gone again."""
    client: Any = FakeClient([node(), node(**seen)])
    with pytest.raises(JobError, match=words) as e:
        submit(client, prepared, wheel=None, say=say)
    assert int(e.value.code) == 2
    assert all("probe" in job_id for job_id in client.jobs)
    assert not list(Path(prepared.spec.out).rglob("_state/probe/*"))


def test_no_node_is_asked_for_an_archived_input(prepared: Prepared) -> None:
    """A growing job keeps its result though the file is gone: the nodes are asked for what would be read alone."""
    folder = Path(prepared.spec.sources[0]).parent / "sheets"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(prepared.spec.sources[0], folder / name)
    spec = dataclasses.replace(prepared.spec, sources=(str(folder),), incremental=True)
    run_of(prepare(spec))
    (folder / "a.tif").unlink()
    shutil.copy(folder / "b.tif", folder / "c.tif")
    client: Any = FakeClient([node()])
    submit(client, prepare(spec), wheel=None, say=say)
    [probe] = [job.message for job_id, job in client.jobs.items() if "probe" in job_id]
    assert [name for name in ("a.tif", "b.tif", "c.tif") if str(folder / name) in probe] == ["b.tif", "c.tif"]


def test_a_cluster_without_panoptile(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image lacks the package: exit 2 and the option that takes it along."""
    client: Any = FakeClient([])
    monkeypatch.setattr(client, "get_job_logs", lambda _: "/usr/bin/python: No module named panoptile")
    with pytest.raises(JobError, match="--wheel this"):
        submit(client, prepared, wheel=None, say=say)


def test_a_cluster_that_runs_nothing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room within the deadline: exit 6, and the probe is taken back."""
    client: Any = FakeClient([])
    stopped: list[str] = []
    monkeypatch.setattr(submission, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(client, "get_job_info", lambda _: job("PENDING", "waiting for a node"))
    client.stop_job = stopped.append
    monkeypatch.setattr(submission, "_free_id", lambda c, base: (base, False))
    with pytest.raises(JobError, match="waiting for a node") as e:
        submit(client, prepared, wheel=None, say=say)
    assert int(e.value.code) == 6
    assert len(stopped) == 1


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (job("SUCCEEDED"), 0), (job("STOPPED"), 143), (job("FAILED", code=3), 3), (job("FAILED", code=2), 2),
        (job("FAILED", "the head is gone"), 6),
    ],
)  # fmt: skip
def test_the_exit_code_is_the_jobs(info: Any, code: int) -> None:
    """What the command would have given on a laptop; 6 where the cluster lost it."""
    assert exit_of(info) == code


def test_what_has_not_failed_is_not_called_so() -> None:
    """Ray calls every exit but 0 failed; a cancelled job and one without some units are in no error."""
    codes = (3, 143, 130, 4)
    words = [submission.state_of(job("FAILED", code=code)) for code in codes]
    assert words == ["quarantined", "interrupted", "interrupted", "failed"]
    assert submission.state_of(job("RUNNING")) == "running"


def test_the_running_code_travels_as_it_is(tmp_path: Path, prepared: Prepared) -> None:
    """--wheel this: package and version, importable from the folder alone, without compiled files."""
    import subprocess
    import sys

    folder = tmp_path / "package"
    folder.mkdir()
    pack(prepared.spec, folder, wheel="this")
    assert not list(folder.rglob("*.pyc"))
    code = (
        "import panoptile.jobs.spec as s, importlib.metadata as m; print(s.__file__, m.version('panoptile'))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(folder / "panoptile" / "jobs" / "spec.py"), version("panoptile")]


@pytest.mark.parametrize("content", [b"no zip", None])
def test_a_wheel_that_is_none(tmp_path: Path, prepared: Prepared, content: bytes | None) -> None:
    """Exit 2 names the file."""
    wheel = tmp_path / "x.whl"
    if content is not None:
        wheel.write_bytes(content)
    (tmp_path / "package").mkdir()
    with pytest.raises(JobError, match=r"x\.whl"):
        pack(prepared.spec, tmp_path / "package", wheel=str(wheel))


def test_a_wheel_cannot_write_outside(tmp_path: Path, prepared: Prepared) -> None:
    """Names with '..' in an archive are refused."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("panoptile/__init__.py", "")
        archive.writestr("../evil.py", "")
    (tmp_path / "package").mkdir()
    with pytest.raises(JobError, match="no wheel of panoptile"):
        pack(prepared.spec, tmp_path / "package", wheel=str(tmp_path / "x.whl"))
    assert not (tmp_path / "evil.py").exists()


def test_a_node_tells_what_it_sees(tmp_path: Path) -> None:
    """Missing paths and tokens are named."""
    (tmp_path / "a").touch()
    seen = look([str(tmp_path / "a"), str(tmp_path / "b")], [str(tmp_path / "t")])
    assert seen == {
        "version": version("panoptile"),
        "missing": [str(tmp_path / "b")],
        "unseen": [str(tmp_path / "t")],
    }


# --- addresses and tokens ------------------------------------------------------------------------------


@pytest.fixture
def dashboard() -> Iterator[Any]:
    """An HTTP server that asks for a token, or not."""
    state = SimpleNamespace(token=True, url="")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401 if state.token else 200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()


def test_a_cluster_without_a_token_is_refused(dashboard: Any) -> None:
    """Exit 6 unless --insecure-cluster: whoever reaches such a cluster runs code there."""
    assert asks_for_token(dashboard.url)
    dashboard.token = False
    assert not asks_for_token(dashboard.url)
    with pytest.raises(JobError, match="--insecure-cluster") as e:
        connect(ClusterAddress(dashboard.url))
    assert int(e.value.code) == 6


def test_nobody_answers() -> None:
    """Exit 6 with the address."""
    with pytest.raises(JobError, match=r"127\.0\.0\.1:9") as e:
        asks_for_token("http://127.0.0.1:9")
    assert int(e.value.code) == 6


@pytest.mark.parametrize(
    ("url", "token", "words"),
    [
        ("ray-head:8265", None, "dashboard's address"),
        ("ray://head:10001", None, "dashboard's address"),
        ("http://me:secret@head:8265", None, "must hold no password"),
        ("http://head:8265", "/nowhere/token", "--auth-token-file"),
    ],
)
def test_a_wrong_address_is_one_sentence(url: str, token: str | None, words: str) -> None:
    """Exit 2; a password does not come back in the message."""
    with pytest.raises(JobError, match=words) as e:
        ClusterAddress(url, token)
    assert int(e.value.code) == 2
    assert "secret" not in str(e.value)


def test_the_probe_leaves_out_a_node_that_has_just_died(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray still names it for a while: the job does without it, instead of being refused."""
    nodes = [
        {"NodeID": name, "Alive": True, "NodeManagerHostname": name, "Resources": {"CPU": 2.0}}
        for name in ("living", "dead")
    ]

    def get(ref: str, timeout: float) -> dict[str, object]:
        if ref == "dead":
            raise TaskUnschedulableError("it does not exist any more")
        return look([], [])

    task = mock.Mock()
    task.options.side_effect = lambda scheduling_strategy: mock.Mock(
        remote=lambda *_: scheduling_strategy.node_id
    )
    with (
        mock.patch.multiple(
            ray,
            init=mock.DEFAULT,
            nodes=lambda: nodes,
            remote=lambda **_: lambda function: task,
            wait=lambda refs, num_returns, timeout: (refs, []),
            get=get,
        ),
        mock.patch("ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy") as affinity,
    ):
        affinity.side_effect = lambda node_id, soft: mock.Mock(node_id=node_id)
        probe_main(json.dumps({"paths": [], "tokens": []}))
    answers = json.loads(capsys.readouterr().out.removeprefix(ANSWER))
    assert [a["node"] for a in answers] == ["living"]
