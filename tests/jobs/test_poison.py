"""Many inputs of which some are broken in ten ways: the others are done, each loss is in the dead letter."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from tests.jobs.poison_corpus import SIDE, Corpus, write_corpus
from tests.pipeline.trigger_replica import CLASSES, TriggerFactory

from panoptile.jobs import prepare as prepare_module
from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.exits import Exit
from panoptile.jobs.models import ResolvedModel
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.process_pool import ProcessPool

WORKERS = 2


def run_poison(corpus: Corpus, out: Path, seconds: float) -> tuple[Summary, list[int]]:
    """Run the job as ``--local`` does, with ``seconds`` a unit; its summary, and the ready replicas at its end."""
    folder = next(iter(corpus.broken)).parent
    spec = JobSpec(
        (str(folder),), str(out), model="trigger", tile=SIDE, overlap=16, local=True, workers=WORKERS,
        skip_invalid=True, max_failures="20%", unit_timeout=seconds, vector=False,
    )  # fmt: skip
    model = ResolvedModel(TriggerFactory(), CLASSES, 3, "0" * 64, 0, 0, "trigger", lambda raster: None)
    sizes: list[int] = []
    real = ProcessPool.close

    def close(pool: ProcessPool) -> None:
        until = time.monotonic() + 30
        while pool.size() < WORKERS and time.monotonic() < until:
            pool.wait(0.1)  # the last loss may be a moment ago
        if not sizes:  # a run closes its pool as soon as its units are done, and again when it leaves
            sizes.append(pool.size())
        real(pool)

    with (
        mock.patch.object(prepare_module, "resolve_model", return_value=model),
        mock.patch.object(ProcessPool, "close", close),
    ):
        return run_job(prepare_module.prepare(spec), Console(quiet=True)), sizes


def check(corpus: Corpus, out: Path, summary: Summary, sizes: list[int]) -> None:
    """Exit 3, every good input published whole, one row per broken input with the right stage, replicas alive."""
    assert summary.exit is Exit.QUARANTINED
    assert sizes == [WORKERS]
    rows = pq.read_table(out / "deadletter.parquet").to_pylist()
    by_uri = {row["source_uri"]: row for row in rows}
    assert len(rows) == len(by_uri) == len(corpus.broken)
    for path, stages in corpus.broken.items():
        row = by_uri[str(path)]
        assert row["stage"] in stages, (path.name, row["stage"], row["message"])
        assert row["message"]
        innocent_loss = row["stage"] not in (
            "worker",
            "timeout",
        )  # it may have shared a worker with a killer, once
        assert row["attempts"] <= 3 + innocent_loss, (path.name, row["attempts"])
    done = 0
    for f in summary.inputs:
        if f.missing_units or f.failed_tiles:
            assert Path(f.plan.uri) in corpus.broken
            continue
        assert Path(f.plan.uri) in corpus.good
        done += 1
    assert done == len(corpus.good)
    sample = next(f for f in summary.inputs if not f.missing_units)
    with rasterio.open(out / sample.assets[0].key) as src:
        assert set(np.unique(src.read(1))) == {1, 2}


@pytest.mark.parametrize(
    ("good", "of_each", "seconds"),
    [(40, 1, 10.0), pytest.param(900, 10, 3.0, marks=pytest.mark.slow)],
    ids=["small", "thousand"],
)
def test_poison_is_quarantined_and_the_rest_is_done(
    tmp_path: Path, good: int, of_each: int, seconds: float
) -> None:
    """``--skip-invalid --max-failures 20% --timeout-unit 3s``: nothing hangs, nobody innocent is blamed.

    The small corpus has 10 s: beside other tests an innocent unit can take more than 3.
    """
    started = time.monotonic()
    corpus = write_corpus(tmp_path / "in", good, of_each)
    summary, sizes = run_poison(corpus, tmp_path / "out", seconds)
    check(corpus, tmp_path / "out", summary, sizes)
    print(
        f"poison: {len(corpus.good)} done, {len(corpus.broken)} in the dead letter, {sizes[0]} of {WORKERS} replicas "
        f"alive at the end, exit {int(summary.exit)}, {time.monotonic() - started:.0f} s"
    )
