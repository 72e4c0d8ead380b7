"""A job on a real Ray cluster of three nodes with a token, from plan to report, as a new user would run it.

Each command is a process of its own. With PANOPTILE_TRANSCRIPT=FILE the commands and what they printed are written
down there: the README's section about clusters is that file.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.jobs.cluster_nodes import Nodes, ray_nodes
from tests.jobs.runs import published, write_world
from tests.pipeline.worlds import make_world

pytestmark = pytest.mark.slow
COMMAND_SECONDS = 600
TILING = {"tile": 64, "overlap": 32}


@dataclass
class Shell:
    """Runs commands in a folder, and remembers what they printed."""

    folder: Path
    environment: dict[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    """What stands for what in the transcript: addresses and paths of this machine."""

    def run(self, line: str, code: int = 0, *, write: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``panoptile …`` to its end; it must exit with ``code``."""
        return self.end(self.start(line), line, code, write=write)

    def start(self, line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *shlex.split(line)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(
        self, started: subprocess.Popen[str], line: str, code: int = 0, *, write: bool = True
    ) -> subprocess.CompletedProcess[str]:
        try:
            printed, _ = started.communicate(timeout=COMMAND_SECONDS)
        finally:
            started.kill()
        if write:
            self.write(f"$ {line}\n{printed}" + (f"(exit code {code})\n" if code else ""))
        assert started.returncode == code, f"{line}: exit code {started.returncode}, wanted {code}\n{printed}"
        return subprocess.CompletedProcess(line, code, printed)

    def write(self, text: str) -> None:
        for name, shown in self.names.items():
            text = text.replace(name, shown)
        print(text)
        if "PANOPTILE_TRANSCRIPT" in os.environ:
            with open(os.environ["PANOPTILE_TRANSCRIPT"], "a", encoding="utf-8") as out:
                out.write(f"{text}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of one size, so that one pair of label rasters is the truth of both."""
    top = tmp_path_factory.mktemp("cluster")
    files = write_world(make_world(seed=5, height=1600, width=1600, blobs=60), top / "truth")
    (top / "scenes").mkdir()
    shutil.move(files.image, top / "scenes" / "north.tif")
    return top


def echo_job(*sources: str) -> str:
    return (
        f"{' '.join(sources)} --model echo:truth/labels.tif,truth/classes.tif --labels truth/table.json "
        "--tile 64 --overlap 32"
    )


def commits(out: Path) -> int:
    return sum(1 for _ in out.glob("_state/commits/**/*.json"))


# --- a cluster without a token: before the other one starts --------------------------------------------


def test_a_cluster_without_a_token_is_refused(folder: Path, tmp_path: Path) -> None:
    """Exit 6 and the reason; with --insecure-cluster it is used."""
    with ray_nodes(tmp_path / "open", gpus=(0,), token=False) as nodes:
        shell = Shell(folder, user(nodes))
        refused = shell.run(f"panoptile list --cluster {nodes.url}", 6)
        assert "--insecure-cluster" in refused.stdout
        accepted = shell.run(f"panoptile list --cluster {nodes.url} --insecure-cluster")
        assert accepted.stdout.startswith("job ")


def user(nodes: Nodes) -> dict[str, str]:
    """The environment of somebody who knows the cluster's address and nothing else."""
    return {k: v for k, v in nodes.environment.items() if not k.startswith("RAY_AUTH")}


# --- three nodes with a token --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[Nodes]:
    with ray_nodes(folder / "nodes") as nodes:
        yield nodes


@pytest.fixture(scope="module")
def shell(folder: Path, nodes: Nodes) -> Shell:
    """With the cluster's address and token in the environment, as the README recommends."""
    assert nodes.token_file is not None
    shutil.copyfile(nodes.token_file, folder / "token")
    names = {f"{folder}/": "", str(folder): ".", nodes.url: "http://ray-head:8265"}
    return Shell(folder, user(nodes) | {"PANOPTILE_CLUSTER": nodes.url}, names)


def test_a_job_survives_its_node(folder: Path, nodes: Nodes, shell: Shell) -> None:
    """plan, submit, attach, watch, a node is killed, done: the bytes are a calm run's; report, logs and list agree."""
    plan = shell.run(f"panoptile plan {echo_job('scenes/north.tif')} -o out --save job.yaml")
    assert "nothing was written" in plan.stdout
    submitted = shell.run("panoptile submit job.yaml --auth-token-file token")
    job_id = submitted.stdout.splitlines()[-1]
    assert "cluster 3 nodes, 2 GPUs" in submitted.stdout

    watching = shell.start("panoptile status out --watch")
    again = shell.start("panoptile submit job.yaml --auth-token-file token")
    kill_when_at_work(folder / "out", nodes)
    shell.write("# a node is killed here: its raylet and its workers\n")
    attached = shell.end(again, "panoptile submit job.yaml --auth-token-file token")
    assert "attach" in attached.stdout
    assert attached.stdout.splitlines()[-1] == job_id
    watched = shell.end(watching, "panoptile status out --watch")
    assert "running" in watched.stdout
    assert "76 of 76 done (100%)" in watched.stdout

    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["retries"] >= 1, "nothing was lost with the node"
    calm(folder, "scenes/north.tif")
    assert published(folder / "out") == published(folder / "calm")

    reported = shell.run("panoptile report out")
    assert "report.html" in reported.stdout
    assert (folder / "out" / "report.html").stat().st_size > 10_000
    started = time.monotonic()
    done = shell.run("panoptile submit job.yaml --auth-token-file token")
    assert "nothing was submitted" in done.stdout
    assert done.stdout.splitlines()[-1] == job_id
    print(f"submit of a finished job: {time.monotonic() - started:.1f} s")
    logs = shell.run("panoptile logs out --json", write=False)
    events = [json.loads(line) for line in logs.stdout.splitlines()]
    assert {e["unit"] for e in events if e["event"] == "unit"} >= set(unit_ids(folder / "out"))
    assert "retry" in {e["event"] for e in events}
    listed = shell.run("panoptile list --auth-token-file token")
    assert [row.split()[:2] for row in listed.stdout.splitlines()[1:]] == [[job_id, "succeeded"]]


def kill_when_at_work(out: Path, nodes: Nodes) -> None:
    """SIGKILL of all of a worker node once it has a unit and some are committed, before most of them are."""
    until = time.monotonic() + COMMAND_SECONDS
    while commits(out) < 4 or not nodes.is_at_work(2):
        assert time.monotonic() < until, "no unit was committed, or the node had none"
        time.sleep(0.05)
    nodes.kill_node(2)
    assert commits(out) < 60, "the node was killed too late to prove anything"


def calm(folder: Path, source: str) -> None:
    """The same job in one process of this machine."""
    from tests.jobs.runs import threads

    from panoptile.jobs.console import Console
    from panoptile.jobs.prepare import prepare
    from panoptile.jobs.segment import run_job
    from panoptile.jobs.spec import JobSpec

    truth = folder / "truth"
    spec = JobSpec(
        (str(folder / source),),
        str(folder / "calm"),
        model=f"echo:{truth / 'labels.tif'},{truth / 'classes.tif'}",
        labels=str(truth / "table.json"),
        local=True,
        workers=1,
        **TILING,  # type: ignore[arg-type]
    )
    with threads():
        run_job(prepare(spec), Console(quiet=True))


def unit_ids(out: Path) -> list[str]:
    return [p.stem for p in out.glob("_state/commits/**/*.json")]


@pytest.mark.usefixtures("nodes")
def test_what_the_cluster_lacks_is_named(shell: Shell) -> None:
    """GPUs of a type that no node has: exit 6 after the deadline, with what was asked and what there is."""
    line = (
        f"panoptile submit {echo_job('scenes/north.tif')} -o lacking --accelerator-type H100 --start-timeout 5 "
        "--auth-token-file token --watch"
    )
    failed = shell.run(line, 6)
    assert "of type H100" in failed.stdout
    assert "are pending" in failed.stdout
    assert "The cluster has" in failed.stdout


@pytest.mark.usefixtures("nodes")
def test_a_job_is_cancelled_and_goes_on(folder: Path, shell: Shell) -> None:
    """cancel ends the job with 143; the same submit goes on under the next id, and nothing is done twice."""
    (folder / "many").mkdir()
    for number in range(4):  # one scene is done before a run looks whether it was cancelled
        shutil.copy(folder / "scenes" / "north.tif", folder / "many" / f"{number}.tif")
    line = f"panoptile submit {echo_job('many')} -o stopped --auth-token-file token"
    job_id = shell.run(line, write=False).stdout.splitlines()[-1]
    until = time.monotonic() + COMMAND_SECONDS
    while not any((folder / "stopped").glob("_state/lease/*")):  # it has begun; its replica starts now
        assert time.monotonic() < until
        time.sleep(0.05)
    cancelled = shell.run("panoptile cancel stopped")
    assert "will stop" in cancelled.stdout
    watched = shell.run("panoptile status stopped --watch", 143)
    assert "interrupted" in watched.stdout
    assert "error" not in watched.stdout  # watching was not what was interrupted
    kept = commits(folder / "stopped")
    assert kept < 4 * 76
    resumed = shell.run(f"{line} --watch")
    assert resumed.stdout.splitlines()[-1] == f"{job_id}-r2"
    metrics = json.loads((folder / "stopped" / "metrics.json").read_text())
    assert sum(r["units"] for r in metrics["runs"]) == 4 * 76
    assert metrics["units_run"] == 4 * 76 - kept


@pytest.mark.usefixtures("nodes")
def test_an_incremental_run_does_only_what_is_new(folder: Path, shell: Shell) -> None:
    """A second scene comes: the first one's units are not run again."""
    line = f"panoptile submit {echo_job('scenes')} -o growing --incremental --auth-token-file token --watch"
    shell.run(line)
    (folder / "scenes" / "south.tif").write_bytes((folder / "scenes" / "north.tif").read_bytes())
    shell.run(line)
    metrics = json.loads((folder / "growing" / "metrics.json").read_text())
    assert (metrics["units"], metrics["units_run"]) == (152, 76)


@pytest.mark.parametrize("token", ["wrong", "missing"])
def test_a_token_that_does_not_open(folder: Path, shell: Shell, token: str) -> None:
    """Exit 6, and the option that would help."""
    (folder / "wrong").write_text("0" * 64)
    option = "--auth-token-file wrong" if token == "wrong" else ""
    refused = shell.run(f"panoptile list {option}".strip(), 6)
    assert "--auth-token-file" in refused.stdout
    assert ("refuses the token" if option else "asks for a token") in refused.stdout
