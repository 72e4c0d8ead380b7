"""Figures of a job: what it cost over all its runs, and what it found."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

from panoptile.jobs.prepare import Prepared
from panoptile.jobs.run_log import RunLog, RunRecord
from panoptile.jobs.seam_report import seam_fields
from panoptile.pipeline.finish import FinishedInput


def job_metrics(
    prepared: Prepared,
    inputs: Sequence[FinishedInput],
    log: RunLog,
    earlier: Sequence[RunRecord],
    rss: dict[str, int],
    quarantined: int,
) -> dict[str, object]:
    """metrics.json. Seconds, pixels and unit counts are sums over all runs of the job, of which ``runs`` tells.

    ``units_run``, ``busy_share`` and ``peak_rss_bytes`` are of this run alone.
    """
    this = log.record()
    runs = [run for run in earlier if run.totals["units"]] + [this]

    def total(name: str) -> Any:
        return sum(run.totals[name] for run in runs)

    segmenting = sum(run.segment_seconds for run in runs)
    wall = sum(run.wall_seconds for run in runs)
    pixels = total("pixels")
    return {
        "wall_seconds": wall,
        "segment_seconds": segmenting,
        "pixels": pixels,
        "mpx_per_second": pixels / 1e6 / segmenting if segmenting else 0.0,
        "mpx_per_second_end_to_end": pixels / 1e6 / wall if wall else 0.0,
        "read_seconds": total("read_seconds"),
        "infer_seconds": total("infer_seconds"),
        "encode_seconds": total("encode_seconds"),
        "stitch_seconds": sum(f.stitch_seconds for f in inputs),
        "publish_seconds": sum(f.publish_seconds for f in inputs),
        "busy_share": {name: busy.share for name, busy in sorted(log.totals.busy.items())},
        "peak_rss_bytes": {"driver": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **rss},
        "batch": {"asked": prepared.spec.batch, "smallest": log.totals.smallest_batch},
        "tiles": prepared.tiles,
        "empty_tiles": sum(f.empty_tiles for f in inputs),
        "units": prepared.units,
        "units_run": log.totals.units - log.totals.already_done,
        "units_quarantined": quarantined,
        "inputs_skipped": len(prepared.skipped),
        "retries": sum(run.retries for run in runs),
        "segments": sum(f.segments for f in inputs),
        "things_merged_over_seams": sum(f.things_over_seams for f in inputs),
        "suspects": sum(f.suspects for f in inputs),
        "seams": seam_fields((f.seams for f in inputs), sum(f.suspects for f in inputs)),
        "queries": _queries(prepared, inputs),
        "runs": [
            {
                "run": run.run,
                "started_at": run.started_at,
                "units": run.totals["units"] - run.totals["already_done"],
                "wall_seconds": run.wall_seconds,
                "exit": run.exit,
            }
            for run in runs
        ],
    }


def _queries(prepared: Prepared, inputs: Sequence[FinishedInput]) -> dict[str, object]:
    used = [(f.queries_used_mean, f.plan.item_count - f.empty_tiles) for f in inputs]
    weight = sum(w for _, w in used)
    return {
        "max": prepared.model.max_queries,
        "used_max": max((f.queries_used_max for f in inputs), default=0),
        "used_mean": sum(v * w for v, w in used) / weight if weight else 0.0,
    }
