"""The kill loop: SIGKILL at random times and at named places, one an attempt, until the job is done all the same.

A driver that is killed ends its attempt, and the next attempt continues on the same folder. A worker that is killed
does not: its driver goes on without it; nor does the process that publishes one of several inputs beside the workers.
Every folder is compared with a calm run when it is finished, and a reader that polls all the while checks every byte
that is visible.

    python -m tests.jobs.kill_loop --kills 200        (prints its figures as JSON; see --help)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import psutil
import pyarrow.parquet as pq

from panoptile.pipeline import layout
from panoptile.pipeline.commit import parse_commit
from panoptile.pipeline.fault_points import (
    DRIVER_POINTS,
    FINISH_POINTS,
    ONCE_VARIABLE,
    VARIABLE,
    WORKER_POINTS,
)
from panoptile.pipeline.store import Store, open_store

Engine = Literal["local", "ray"]

EARLY_POINTS = (
    "job.written",
    "lease.claimed",
    "lease.beat",
    "state.withdrawn",
    "state.planned",
    *DRIVER_POINTS,
)
LATE_POINTS = (
    "publish.input",
    *FINISH_POINTS,
    "manifest.before",
    "manifest.after",
    "generation.before",
    "generation.after",
    "success.after",
)
"""In the order in which a run reaches them."""

BESIDE = " beside the run"
"""Behind a late place that a process of its own reaches, because the job has several inputs."""

ATTEMPT_SECONDS = 180.0


@dataclass(frozen=True)
class Job:
    """The command, all but where it writes."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    calm: dict[str, str]
    """Published key -> sha256 of an undisturbed run."""

    def command(self, out: str, engine: Engine) -> list[str]:
        how = ["--local"] if engine == "local" else []
        return [sys.executable, "-m", "panoptile", "segment", *self.arguments, "-o", out, *how, "-q"]


@dataclass
class Figures:
    """What came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    """By place, "driver at a random time" and "worker at a random time" among them."""
    by_engine: Counter[str] = field(default_factory=Counter)
    """Kills by engine and kind of store."""
    attempts: int = 0
    folders: int = 0
    lost: int = 0
    doubled: int = 0
    torn: int = 0
    polls: int = 0
    files_polled: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        return sum(self.kills.values())

    def to_json(self) -> dict[str, object]:
        return {
            "kills": self.killed,
            "points": len({name.removesuffix(BESIDE) for name in self.kills if "." in name}),
            "by_point": dict(sorted(self.kills.items())),
            "by_engine": dict(self.by_engine),
            "attempts": self.attempts,
            "folders": self.folders,
            "lost": self.lost,
            "doubled": self.doubled,
            "torn": self.torn,
            "polls": self.polls,
            "files_polled": self.files_polled,
            "problems": self.problems[:20],
        }


# --- one attempt ---------------------------------------------------------------------------------------


def attempt_at_point(job: Job, out: str, engine: Engine, point: str, number: int, figures: Figures) -> bool:
    """Run until the ``number``-th time that ``point`` is reached; True if the job is finished all the same."""
    place, point = point, point.removesuffix(BESIDE)
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "killed"
        env = {VARIABLE: f"{point}:{number}", ONCE_VARIABLE: str(mark)}
        with _running(job, out, engine, figures, env) as process:
            code = _wait(process, figures, point)
        if mark.exists():
            _count(figures, place if code == 0 else point, engine, out)  # else the run itself got there
    return code == 0


def attempt_at_random(
    job: Job, out: str, engine: Engine, rng: random.Random, whom: str, figures: Figures
) -> bool:
    """Kill the driver, or one of its workers, at some time after the run took its lease; True if it is finished."""
    store = open_store(out)
    epochs = len(_keys(store, "_state/lease"))
    with _running(job, out, engine, figures, {}) as process:
        until = time.monotonic() + ATTEMPT_SECONDS
        while process.poll() is None and len(_keys(store, "_state/lease")) == epochs:
            if time.monotonic() > until:
                raise TimeoutError(f"No lease was taken within {ATTEMPT_SECONDS:.0f} s.")
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2.5))
        victim = process.pid
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = psutil.Process(process.pid).children() if whom == "worker" else []
            victim = rng.choice(workers).pid if workers else victim
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                _count(figures, f"{whom} at a random time", engine, out)
        return _wait(process, figures, "random") == 0


def attempt_calm(job: Job, out: str, engine: Engine, figures: Figures) -> bool:
    with _running(job, out, engine, figures, {}) as process:
        return _wait(process, figures, "calm") == 0


@contextlib.contextmanager
def _running(
    job: Job, out: str, engine: Engine, figures: Figures, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process group of its own, all gone at the end."""
    figures.attempts += 1
    process = subprocess.Popen(
        job.command(out, engine),
        env={**os.environ, **job.environment, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def _wait(process: subprocess.Popen[bytes], figures: Figures, where: str) -> int:
    _, message = process.communicate(timeout=ATTEMPT_SECONDS)
    if process.returncode not in (0, -signal.SIGKILL):
        figures.problems.append(f"{where}: exit {process.returncode}: {message.decode()[-500:]}")
    return process.returncode


def _count(figures: Figures, place: str, engine: Engine, out: str) -> None:
    figures.kills[place] += 1
    figures.by_engine[f"{engine}, {'s3' if '://' in out else 'disk'}"] += 1


def _keys(store: Store, prefix: str) -> list[str]:
    return store.keys(prefix)


# --- the reader that polls -----------------------------------------------------------------------------


class Reader:
    """Polls a folder while runs are killed on it: whatever is visible must be whole."""

    def __init__(self, out: str, calm: dict[str, str], figures: Figures) -> None:
        self._store, self._calm, self._figures = open_store(out), calm, figures
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(0.15):
            self.poll()
            self._figures.polls += 1

    def poll(self) -> None:
        """Look at everything once."""
        store = self._store
        for key, data in store.read_all("_state/commits").items():
            self._figures.files_polled += 1
            try:
                commit = parse_commit(data)
                if store.sha256(commit.fragment) != commit.sha256 and store.exists(key):
                    self._wrong(f"{key}: its fragment is not what was committed")
            except ValueError:
                self._wrong(f"{key} is torn")
            except FileNotFoundError:
                if store.exists(key):
                    self._wrong(f"{key}: its fragment is not there")
        for key, sha256 in self._calm.items():
            with contextlib.suppress(FileNotFoundError):
                self._figures.files_polled += 1
                if store.sha256(key) != sha256:
                    self._wrong(f"{key} is visible with other bytes")
        with contextlib.suppress(FileNotFoundError):
            success = json.loads(store.read_bytes(layout.SUCCESS))
            if success["manifest_sha256"] != self._calm[layout.MANIFEST]:
                self._wrong("_SUCCESS.json names another manifest")

    def _wrong(self, problem: str) -> None:
        self._figures.torn += 1
        self._figures.problems.append(f"the reader saw: {problem}")


# --- one folder ----------------------------------------------------------------------------------------


def tree(store: Store) -> dict[str, str]:
    """Published key -> sha256."""
    found = {}
    for name in layout.PUBLISHED:
        keys = [s.key for s in store.walk(name)] or ([name] if store.exists(name) else [])
        found.update({key: store.sha256(key) for key in keys})
    return found


def check_finished(store: Store, calm: dict[str, str], figures: Figures) -> None:
    """Compare a finished folder with the calm run, and count units."""
    now = tree(store)
    figures.folders += 1
    for key in sorted(calm.keys() | now.keys()):
        if key not in now:
            figures.lost += 1
            figures.problems.append(f"{store.uri(key)} is missing")
        elif now[key] != calm.get(key):
            figures.torn += 1
            figures.problems.append(f"{store.uri(key)} differs from the calm run")
    rows = pq.read_table(io.BytesIO(store.read_bytes(layout.MANIFEST))).to_pylist()
    units = Counter(row["name"] for row in rows if row["kind"] == "unit")
    figures.lost += sum(row["status"] != "done" for row in rows)
    figures.doubled += sum(count - 1 for count in units.values())
    fragments = Counter(parse_commit(d).fragment for d in store.read_all("_state/commits").values())
    figures.doubled += sum(count - 1 for count in fragments.values()) + abs(len(fragments) - len(units))


def is_of_several(number: int) -> bool:
    """Whether the ``number``-th folder is of the job with several inputs."""
    return number % 5 in (0, 3)


def steps_of(rng: random.Random, number: int, kills: int) -> list[str]:
    """What is killed in the ``number``-th folder, attempt by attempt.

    In most: an early place, the driver at a random time, and at last a worker (that attempt finishes the job); with
    several inputs an early place, and then who publishes beside the workers. In every fifth: a few early places, then
    the late ones in their order, up to the moment after ``_SUCCESS.json``.
    """
    if number % 5 == 2:
        early = sorted(rng.sample(range(len(EARLY_POINTS)), 3))
        return [*(EARLY_POINTS[i] for i in early), *LATE_POINTS][-kills:]
    if is_of_several(number):  # while most units are open, or the run itself would publish what is left
        steps = [rng.choice(EARLY_POINTS), rng.choice(["publish.input", *FINISH_POINTS]) + BESIDE]
    else:
        steps = [rng.choice(EARLY_POINTS), "driver", rng.choice(["worker", *WORKER_POINTS])]
    return steps[-kills:]


def torment(
    job: Job, out: str, engine: Engine, rng: random.Random, steps: list[str], figures: Figures
) -> None:
    """Kill at each step, on one folder; then a calm attempt if it is not finished; then compare."""
    with Reader(out, job.calm, figures):
        done = False
        for step in steps:
            if step in ("driver", "worker"):
                done = attempt_at_random(job, out, engine, rng, step, figures)
            else:
                number = rng.randint(1, 4) if step in WORKER_POINTS + DRIVER_POINTS else 1
                done = attempt_at_point(job, out, engine, step, number, figures)
            if done:
                break
        if not done:
            attempt_calm(job, out, engine, figures)
    check_finished(open_store(out), job.calm, figures)


def kill_loop(
    job: Job,
    places: dict[str, int],
    kills_per_folder: int,
    seed: int,
    *,
    ray_kills: int = 0,
    several: Job | None = None,
) -> Figures:
    """Kill until every place has had its share.

    Args:
        places: prefix under which folders are made -> kills wanted there without Ray.
        ray_kills: kills of runs on Ray, under the first place.
        several: a job with several inputs, which some of the folders are of; None: they are all of ``job``.
    """
    rng, figures = random.Random(seed), Figures()
    wanted = [(place, "local", kills) for place, kills in places.items()]
    wanted.append((next(iter(places)), "ray", ray_kills))
    for place, engine, kills in wanted:
        goal, number = figures.killed + kills, 0
        while figures.killed < goal:
            number += 1
            out = f"{place}/{engine}-{number}"
            which = several if several is not None and is_of_several(number) else job
            steps = steps_of(rng, number, min(kills_per_folder, goal - figures.killed))
            if which is job:
                steps = [s if s.removesuffix(BESIDE) == s else "worker" for s in steps]
            torment(which, out, engine, rng, steps, figures)  # type: ignore[arg-type]
            print(f"{out}: {figures.killed} kills, {figures.polls} polls", file=sys.stderr, flush=True)
    return figures


# --- what the job is -----------------------------------------------------------------------------------


def prepare_job(folder: Path, inputs: int = 1) -> Job:
    """So many rasters of one world of 16 units, and the published tree of a calm run over them."""
    from tests.jobs.runs import WorldFiles, published, run, write_world
    from tests.pipeline.worlds import make_world

    files = write_world(make_world(31, 200, 210), folder / "world")
    sources = folder / "sources"
    sources.mkdir()
    for number in range(inputs):
        shutil.copy(files.image, sources / f"sheet-{number}.tif")
    run(WorldFiles(sources, files.labels, files.classes, files.table), folder / "calm", tile=80, overlap=24)
    arguments = (str(sources), "--model", files.model, "--labels", str(files.table))
    options = ("--tile", "80", "--overlap", "24", "--workers", "1")
    environment = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return Job((*arguments, *options), environment, published(folder / "calm"))


@contextlib.contextmanager
def s3_bucket() -> Iterator[str]:
    """An S3 server of our own with one bucket; the environment of this process names it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-key",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        boto3.client("s3").create_bucket(Bucket="kills")
        yield "s3://kills"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill panoptile until it is proved to survive it.")
    parser.add_argument("--disk", type=int, default=140, help="kills on local disk")
    parser.add_argument("--s3", type=int, default=50, help="kills on S3")
    parser.add_argument("--ray", type=int, default=10, help="kills through Ray, on local disk")
    parser.add_argument("--per-folder", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="panoptile-kills-") as folder, contextlib.ExitStack() as stack:
        places = {f"{folder}/disk": given.disk}
        if given.s3:
            places[stack.enter_context(s3_bucket())] = given.s3
        began = time.monotonic()
        job, several = (prepare_job(Path(folder) / str(inputs), inputs) for inputs in (1, 3))
        figures = kill_loop(job, places, given.per_folder, given.seed, ray_kills=given.ray, several=several)
        print(json.dumps({**figures.to_json(), "seconds": round(time.monotonic() - began)}, indent=1))


if __name__ == "__main__":
    main()
