"""Whatever is killed, whenever: the published tree is that of a calm run, and nobody ever saw anything else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jobs.kill_loop import (
    ATTEMPT_SECONDS,
    Figures,
    Job,
    check_finished,
    kill_loop,
    prepare_job,
    s3_bucket,
)

from panoptile.pipeline.store import open_store


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return prepare_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Three inputs: two are published beside the units of the next."""
    return prepare_job(tmp_path_factory.mktemp("several"), 3)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as uri:
        yield uri


def _check(figures: Figures) -> None:
    print(json.dumps(figures.to_json(), indent=1))
    assert figures.problems == []
    assert (figures.lost, figures.doubled, figures.torn) == (0, 0, 0)


def test_15_kills(job: Job, several: Job, bucket: str, tmp_path: Path) -> None:
    """Drivers and workers are killed on disk and on S3: lost 0, doubled 0, torn 0, the bytes of a calm run."""
    figures = kill_loop(job, {str(tmp_path): 12, f"{bucket}/few": 3}, 6, seed=3, several=several)
    _check(figures)
    assert figures.killed == 15
    assert set(figures.by_engine) == {"local, disk", "local, s3"}
    assert figures.polls >= 50  # a reader that has died sees nothing torn either


@pytest.mark.slow
def test_200_kills(job: Job, several: Job, bucket: str, tmp_path: Path) -> None:
    """200 kills at random times and at 12 or more places, on disk, on S3 and through Ray; over 1,000 polls."""
    figures = kill_loop(
        job, {str(tmp_path): 140, f"{bucket}/many": 50}, 14, seed=7, ray_kills=12, several=several
    )
    _check(figures)
    assert figures.killed >= 200
    assert len([name for name in figures.kills if "." in name]) >= 12
    assert figures.polls >= 1000


def two_at_once(job: Job, place: str, rounds: int, seed: int) -> Figures:
    """Start two runs of one job together, ``rounds`` times, each on a folder of its own."""
    rng, figures = random.Random(seed), Figures()
    for number in range(rounds):
        out = f"{place}/round-{number}"
        with contextlib.ExitStack() as stack:
            both = []
            for _ in range(2):
                words = stack.enter_context(tempfile.TemporaryFile())
                command = subprocess.Popen(
                    job.command(out, "local"), env=_environment(job), stdout=words, stderr=words
                )
                stack.callback(command.kill)
                both.append((command, words))
                time.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 2))))
            for command, words in both:
                code = command.wait(timeout=ATTEMPT_SECONDS)
                words.seek(0)
                if code != 0:
                    figures.problems.append(f"round {number}: exit {code}: {words.read().decode()[-1500:]}")
        store = open_store(out)
        check_finished(store, job.calm, figures)
        figures.doubled += _units_run(store.read_all("_state/runs")) - 16
    return figures


def _environment(job: Job) -> dict[str, str]:

    return {**os.environ, **job.environment}


def _units_run(records: dict[str, bytes]) -> int:
    totals = [json.loads(data)["totals"] for data in records.values()]
    return sum(t["units"] - t["already_done"] for t in totals)


def test_two_drivers_at_once(job: Job, tmp_path: Path) -> None:
    """Two commands start together: both end with exit 0, no unit is run twice, the bytes are a calm run's."""
    _check(two_at_once(job, str(tmp_path), rounds=2, seed=1))


@pytest.mark.slow
def test_two_drivers_at_once_20_rounds(job: Job, bucket: str, tmp_path: Path) -> None:
    """The same, 16 rounds on disk and 4 on S3."""
    _check(two_at_once(job, str(tmp_path), rounds=16, seed=2))
    _check(two_at_once(job, f"{bucket}/two", rounds=4, seed=3))
