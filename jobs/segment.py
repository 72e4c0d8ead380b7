"""``panoptile segment``: run a prepared job to its end.

Order of what is written: plan, unit commits, files of each input, classes, manifest, generation, and
``_SUCCESS.json`` last: readers trust only that.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import tempfile
import time
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.spec import LAYOUT_VERSION
from panoptile.jobs.state import cannot_write, finished_before, open_units, write_job
from panoptile.pipeline import layout
from panoptile.pipeline.driver import Policy, RunResult, TooManyFailures, run_units
from panoptile.pipeline.finish import FinishedInput, Products, finish_input
from panoptile.pipeline.memory import allocate_frugally
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.pool import Failure, LocalPool, Pool, PoolError
from panoptile.pipeline.store import Store, open_store
from panoptile.pipeline.worker import UnitReport, WorkerSpec


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job ended."""

    exit: Exit
    out: str
    inputs: tuple[FinishedInput, ...]
    metrics: dict[str, object]
    already_done: bool = False


def run_job(prepared: Prepared, console: Console) -> Summary:
    """Run the job: returns a summary with exit code 0 or 3, or raises :class:`JobError`."""
    allocate_frugally()
    store = open_store(prepared.spec.out)
    started = time.perf_counter()
    model = (prepared.model.description, prepared.model.sha256)
    try:
        write_job(store, prepared.spec, prepared.fingerprint, model, prepared.plans)
        todo = open_units(store, prepared.plans)
    except OSError as e:
        raise cannot_write(prepared.spec.out, e) from e
    if not todo and (done := finished_before(store, prepared.fingerprint, prepared.plans)) is not None:
        return Summary(done[0], store.root, (), done[1], already_done=True)
    if len(todo) < prepared.units:
        console.say(f"resume  {prepared.units - len(todo)} of {prepared.units} units are done already")
    store.delete(layout.SUCCESS)
    result, infer_wall, rss = _run_units(store, prepared, todo, console)
    inputs = []
    for plan in prepared.plans:
        console.say(f"publish {plan.info.stem}")
        inputs.append(_finish(store, prepared, plan))
    metrics = _metrics(prepared, inputs, result, infer_wall, rss, time.perf_counter() - started)
    code = Exit.QUARANTINED if result.dead else Exit.DONE
    try:
        _write_results(store, prepared, inputs, result, metrics, code)
    except OSError as e:
        raise cannot_write(prepared.spec.out, e) from e
    return Summary(code, store.root, tuple(inputs), metrics)


# --- run -----------------------------------------------------------------------------------------------


def _run_units(
    store: Store, prepared: Prepared, todo: list[Unit], console: Console
) -> tuple[RunResult, float, dict[str, int]]:
    """Run the open units on a pool; returns the result, its wall time, and peak RSS per worker process."""
    spec = prepared.spec
    if not todo:
        return RunResult(), 0.0, {}
    policy = Policy(
        attempts=spec.retries + 1,
        max_failures=spec.allowed_failures(prepared.units),
        unit_timeout=spec.unit_timeout,
    )
    pool, stop = make_pool(prepared, len(todo))
    progress = console.progress(sum(unit.count for unit in todo))

    def on_retry(unit: Unit, failure: Failure) -> None:
        progress.fail()
        console.say(f"retry   {unit.id}: {failure.message}")

    started = time.perf_counter()
    try:
        pool.start()
        with progress:
            result = run_units(pool, store, todo, policy, lambda r: progress.advance(r.tiles), on_retry)
        rss: dict[str, int] = getattr(pool, "peak_rss_bytes", dict)()
        return result, time.perf_counter() - started, rss
    except OSError as e:
        raise cannot_write(spec.out, e) from e
    except PoolError as e:
        raise JobError(Exit.UNREACHABLE, f"{e} What is done is kept: run the same command to go on.") from e
    except TooManyFailures as e:
        raise JobError(Exit.FAILED, f"{e} Run the same command to try again.") from e
    finally:
        pool.close()
        stop()


def make_pool(prepared: Prepared, units: int):  # type: ignore[no-untyped-def]  # -> tuple[Pool, Callable]
    """The pool that the job asks for, and what to call when it is over."""
    spec = prepared.spec
    worker = WorkerSpec(
        spec.out, prepared.model.factory, spec.batch, prepared.model.channels, threads=spec.threads
    )
    if spec.local:
        return LocalPool(worker, min(worker_count(prepared, 0), units)), lambda: None
    import ray

    from panoptile.pipeline.ray_pool import RayPool, start_ray

    gpus, started = start_ray(spec.workers or 1)
    count = min(worker_count(prepared, gpus), units)
    pool: Pool = RayPool(worker, count, gpus=1 if gpus else 0)
    return pool, ray.shutdown if started else lambda: None


def worker_count(prepared: Prepared, gpus: int) -> int:
    """--workers, else one per GPU, else as many as cores and memory allow."""
    if prepared.spec.workers is not None:
        return prepared.spec.workers
    if gpus:
        return gpus
    cores = max(1, (psutil.cpu_count() or 1) // prepared.spec.threads)
    memory = psutil.virtual_memory().available // max(1, worker_bytes(prepared))
    return int(max(1, min(cores, memory)))


def worker_bytes(prepared: Prepared) -> int:
    """Estimated memory of one worker on a CPU.

    A process with torch takes about 350 MB, the weights 4 bytes a parameter, activations about 1.4 kB per
    pixel of the batch (1.4 GB measured at 1024² with Swin-T), and up to eight tiles wait in the queues.
    """
    spec = prepared.spec
    pixels = spec.tile * spec.tile * spec.batch
    base = 350 if prepared.model.parameters else 150
    activations = 1400 * pixels if prepared.model.parameters else 16 * pixels
    queues = 8 * pixels * (prepared.model.channels + 9)
    return base * 2**20 + 4 * prepared.model.parameters + activations + queues


# --- after ---------------------------------------------------------------------------------------------


def _finish(store: Store, prepared: Prepared, plan: RasterPlan) -> FinishedInput:
    spec = prepared.spec
    tags = {
        "PANOPTILE_LAYOUT": str(LAYOUT_VERSION),
        "MODEL_SHA256": prepared.model.sha256,
        "TILE": str(spec.tile),
        "OVERLAP": str(spec.overlap),
    }
    products = Products(spec.raster, spec.vector, compression=spec.compression)
    _check_unchanged(plan)
    try:
        return finish_input(store, plan, prepared.model.classes, prepared.node_filter(plan), products, tags)
    except (OSError, ValueError) as e:
        raise JobError(
            Exit.FAILED,
            f"Publishing {plan.info.uri} failed: {e} (scratch files go to {tempfile.gettempdir()}). "
            "Finished units are kept: run the same command to go on.",
        ) from e


def _check_unchanged(plan: RasterPlan) -> None:
    """An input that was replaced while it was read would give a mixture: exit 4, and the next run redoes it."""
    info = plan.info
    try:
        now = os.stat(info.uri)
    except FileNotFoundError as e:
        raise JobError(
            Exit.FAILED, f"{info.uri} has gone since the run began: put it back and run again."
        ) from e
    if (now.st_size, now.st_mtime_ns) != (info.size_bytes, info.mtime_ns):
        raise JobError(
            Exit.FAILED, f"{info.uri} was changed while it was read: run again to segment what it is now."
        )


def _metrics(
    prepared: Prepared,
    inputs: list[FinishedInput],
    result: RunResult,
    infer_wall: float,
    rss: dict[str, int],
    wall: float,
) -> dict[str, object]:
    reports = result.reports
    pixels = sum(r.pixels for r in reports)
    used = [f.queries_used_max for f in inputs]
    return {
        "wall_seconds": wall,
        "segment_seconds": infer_wall,
        "pixels": pixels,
        "mpx_per_second": pixels / 1e6 / infer_wall if infer_wall else 0.0,
        "mpx_per_second_end_to_end": pixels / 1e6 / wall,
        "read_seconds": sum(r.read_seconds for r in reports),
        "infer_seconds": sum(r.infer_seconds for r in reports),
        "encode_seconds": sum(r.encode_seconds for r in reports),
        "stitch_seconds": sum(f.stitch_seconds for f in inputs),
        "publish_seconds": sum(f.publish_seconds for f in inputs),
        "busy_share": busy_shares(reports),
        "peak_rss_bytes": {"driver": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **rss},
        "tiles": prepared.tiles,
        "empty_tiles": sum(f.empty_tiles for f in inputs),
        "units": prepared.units,
        "units_run": len(reports),
        "units_quarantined": len(result.dead),
        "retries": result.retries,
        "segments": sum(f.segments for f in inputs),
        "things_merged_over_seams": sum(f.things_over_seams for f in inputs),
        "suspects": sum(f.suspects for f in inputs),
        "queries": {
            "max": prepared.model.max_queries,
            "used_max": max(used, default=0),
            "used_mean": _weighted_mean(
                [(f.queries_used_mean, len(f.plan.grid) - f.empty_tiles) for f in inputs]
            ),
        },
    }


def _weighted_mean(values: list[tuple[float, int]]) -> float:
    weight = sum(w for _, w in values)
    return sum(v * w for v, w in values) / weight if weight else 0.0


def busy_shares(reports: list[UnitReport]) -> dict[str, float]:
    """Share of the time between its first and last forward pass that each replica spent computing."""
    by_worker: dict[str, list[UnitReport]] = defaultdict(list)
    for r in reports:
        if r.infer_seconds > 0:
            by_worker[r.worker].append(r)
    return {
        name: sum(r.infer_seconds for r in group)
        / (max(r.infer_ended for r in group) - min(r.infer_started for r in group))
        for name, group in sorted(by_worker.items())
    }


def _write_results(
    store: Store,
    prepared: Prepared,
    inputs: list[FinishedInput],
    result: RunResult,
    metrics: dict[str, object],
    code: Exit,
) -> None:
    """Classes, manifest, metrics, generation, and _SUCCESS.json last."""
    store.put_bytes(layout.CLASSES, json.dumps(prepared.model.classes.to_json(), indent=1).encode())
    manifest = _manifest(inputs)
    store.put_bytes(layout.MANIFEST, manifest)
    if result.dead:
        store.put_bytes("deadletter.parquet", _dead_letter(prepared, result))
    else:
        store.delete("deadletter.parquet")  # of an earlier run whose failures are healed
    store.put_bytes(layout.METRICS, json.dumps(metrics, indent=1).encode())
    run = {"metrics": metrics, "units": [asdict(r) for r in result.reports]}
    store.put_bytes(layout.run_key(uuid.uuid4().hex), json.dumps(run).encode())
    digest = hashlib.sha256(manifest).hexdigest()
    generation = 1 + len(store.keys("_state/generations"))
    record = json.dumps({"manifest_sha256": digest, "fingerprint": prepared.fingerprint}).encode()
    while not store.put_if_absent(layout.generation_key(generation), record):
        generation += 1
    success = {
        "exit": int(code),
        "generation": generation,
        "manifest_sha256": digest,
        "fingerprint": prepared.fingerprint,
        "inputs": len(inputs),
        "units": prepared.units,
        "units_quarantined": len(result.dead),
        "segments": sum(f.segments for f in inputs),
    }
    store.put_bytes(layout.SUCCESS, json.dumps(success, indent=1).encode())


def _manifest(inputs: list[FinishedInput]) -> bytes:
    """manifest.parquet: a row per unit and per published file; the same bytes for the same results."""
    rows: list[dict[str, object]] = []
    for f in inputs:
        key, uri = f.plan.info.key, f.plan.info.uri
        for unit in f.plan.units():
            digest = f.commits.get(unit)
            status = "done" if digest else "quarantined"
            rows.append(_manifest_row("unit", unit.id, key, uri, digest, None, status))
        for asset in f.assets:
            rows.append(_manifest_row("asset", asset.key, key, uri, asset.sha256, asset.size, "done"))
    schema = pa.schema(
        [(n, pa.string()) for n in ("kind", "name", "input", "source_uri", "sha256")]
        + [("bytes", pa.int64()), ("status", pa.string())]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue()


def _manifest_row(
    kind: str, name: str, key: str, uri: str, sha256: str | None, size: int | None, status: str
) -> dict[str, object]:
    return {
        "kind": kind,
        "name": name,
        "input": key,
        "source_uri": uri,
        "sha256": sha256,
        "bytes": size,
        "status": status,
    }


def _dead_letter(prepared: Prepared, result: RunResult) -> bytes:
    uris = {plan.info.key: plan.info.uri for plan in prepared.plans}
    rows = [
        {
            "unit": unit.id,
            "source_uri": uris[unit.key],
            "stage": failure.stage,
            "error_type": failure.error_type,
            "message": failure.message,
            "traceback": failure.traceback,
            "attempts": prepared.spec.retries + 1,
            "worker": failure.worker,
        }
        for unit, failure in sorted(result.dead.items())
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    return sink.getvalue()
