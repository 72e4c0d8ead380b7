"""Plans and results in words and in JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panoptile.jobs.console import counted
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.replicas import worker_bytes, worker_count
from panoptile.jobs.results import listing
from panoptile.jobs.seam_report import seam_line
from panoptile.model.classes import ClassTable
from panoptile.pipeline.finish import FinishedInput
from panoptile.pipeline.inputs import shown
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.video_plan import VideoPlan

_SHOWN = 50
"""Inputs that a table or a summary lists."""


def plan_line(prepared: Prepared) -> str:
    """One line for a run that starts."""
    rasters = [p for p in prepared.plans if isinstance(p, RasterPlan)]
    videos = prepared.videos
    parts = []
    if rasters:
        parts += [
            counted(len(rasters), "raster"),
            f"{sum(p.pixels for p in rasters) / 1e6:,.1f} Mpx",
            f"{sum(p.item_count for p in rasters):,} tiles {prepared.spec.tile}/{prepared.spec.overlap}",
        ]
    if videos:
        parts += [counted(len(videos), "video"), f"{sum(p.item_count for p in videos):,} frames"]
    parts += [f"{prepared.units:,} units", f"model: {prepared.model.description}"]
    return "plan    " + "  ".join(parts)


def plan_fields(prepared: Prepared) -> dict[str, Any]:
    """What ``plan --json`` prints."""
    return {
        "fingerprint": prepared.fingerprint,
        "model": prepared.model.description,
        "tile": prepared.spec.tile,
        "overlap": prepared.spec.overlap,
        "tiles": prepared.tiles,
        "units": prepared.units,
        "pixels": prepared.pixels,
        "input_bytes": prepared.input_bytes,
        "memory_per_worker_bytes": worker_bytes(prepared),
        "workers_on_cpu": worker_count(prepared, 0),
        "notes": list(prepared.notes),
        "inputs": [
            _raster_fields(p) if isinstance(p, RasterPlan) else _video_fields(p) for p in prepared.plans
        ],
    }


def _raster_fields(p: RasterPlan) -> dict[str, Any]:
    return {
        "kind": "raster",
        "uri": p.info.uri,
        "key": p.info.key,
        "height": p.info.height,
        "width": p.info.width,
        "bands": list(p.info.bands),
        "dtype": p.info.dtype,
        "scale": None if p.info.scale is None else list(p.info.scale),
        "nodata": p.info.nodata,
        "tiles": len(p.grid),
        "units": p.unit_count,
        "bytes": p.info.size_bytes,
        "notes": list(p.info.notes),
    }


def _video_fields(p: VideoPlan) -> dict[str, Any]:
    index = p.info.index
    return {
        "kind": "video",
        "uri": p.uri,
        "key": p.key,
        "height": p.info.height,
        "width": p.info.width,
        "codec": index.codec,
        "container": index.container,
        "rotation": index.rotation,
        "fps": index.fps,
        "seconds": index.duration_s,
        "frames_in_file": len(index),
        "frames": p.item_count,
        "units": p.unit_count,
        "unit_frames": [unit.count for unit in p.units()][:1000],
        "backend": p.info.choice.backend,
        "backend_reason": p.info.choice.reason,
        "bytes": p.info.size_bytes,
        "notes": list(p.info.notes),
    }


def plan_text(prepared: Prepared) -> str:
    """The table that ``plan`` prints."""
    lines = [plan_line(prepared), ""]
    lines += _raster_lines([p for p in prepared.plans if isinstance(p, RasterPlan)])
    lines += _video_lines(prepared.videos)
    lines += [
        "",
        (
            f"memory per worker on a CPU: about {worker_bytes(prepared) / 2**30:.1f} GiB; "
            f"this machine would run {worker_count(prepared, 0)} at once"
        ),
        f"job fingerprint: {prepared.fingerprint[:16]}; nothing was written",
    ]
    return "\n".join(lines)


def _raster_lines(plans: Sequence[RasterPlan]) -> list[str]:
    if not plans:
        return []
    lines = [
        f"{'raster':<44} {'rows x cols':>17} {'bands':>7} {'type':>8} {'tiles':>7} {'units':>6} {'MB':>9}"
    ]
    for p in plans[:_SHOWN]:
        i = p.info
        bands = ",".join(map(str, i.bands))
        lines.append(
            f"{_short_name(i.uri):<44} {f'{i.height:,} x {i.width:,}':>17} {bands:>7} {i.dtype:>8} "
            f"{len(p.grid):>7,} {p.unit_count:>6,} {i.size_bytes / 1e6:>9,.1f}"
        )
    return lines + _and_more(len(plans))


def _video_lines(plans: Sequence[VideoPlan]) -> list[str]:
    if not plans:
        return []
    lines = [
        f"{'video':<44} {'rows x cols':>13} {'codec':>7} {'fps':>7} {'frames':>15} {'units':>6} {'decoder':>8} {'MB':>9}"
    ]
    for p in plans[:_SHOWN]:
        i = p.info
        lines.append(
            f"{_short_name(i.uri):<44} {f'{i.height:,} x {i.width:,}':>13} {i.index.codec:>7} {i.index.fps:>7.2f} "
            f"{f'{p.item_count:,} of {len(i.index):,}':>15} {p.unit_count:>6,} {i.choice.backend:>8} "
            f"{i.size_bytes / 1e6:>9,.1f}"
        )
    return lines + _and_more(len(plans))


def _short_name(uri: str) -> str:
    uri = shown(uri)
    return uri if len(uri) <= 44 else "…" + uri[-43:]


def _and_more(n: int) -> list[str]:
    return [f"… and {n - _SHOWN:,} more"] if n > _SHOWN else []


def summary_fields(summary: Summary) -> dict[str, Any]:
    """What ``segment --json`` prints."""
    prepared = summary.prepared
    classes = prepared.model.classes
    return {
        "exit": int(summary.exit),
        "out": summary.out,
        "already_done": summary.already_done,
        "fingerprint": prepared.fingerprint,
        "metrics": summary.metrics,
        "inputs": [listing(f, classes) for f in summary.inputs],
        "inputs_skipped": [{"uri": s.uri, "stage": s.stage, "message": s.message} for s in prepared.skipped],
    }


def summary_text(summary: Summary) -> str:
    """The table that ``segment`` ends with."""
    prepared = summary.prepared
    if summary.skipped:
        return f"skipped {summary.out}: another run of this job is at work on it"
    if summary.already_done:
        return f"done    {summary.out} holds the finished result of this very job; nothing was run"
    inputs = summary.inputs
    lines = [
        line for f in inputs[:_SHOWN] for line in _input_lines(prepared.model.classes, f, near(summary.out))
    ]
    if len(inputs) > _SHOWN:
        lines += ["", *_and_more(len(inputs)), f"  {near(summary.out)}/manifest.parquet lists every file"]
        lacking = sum(bool(f.missing_units) for f in inputs[_SHOWN:])
        lines += [f"  {lacking:,} of them lack units: see deadletter.parquet"] if lacking else []
    m = summary.metrics
    has_rasters = any(isinstance(p, RasterPlan) for p in prepared.plans)
    lines += [
        "",
        f"done    {_speed(m)}",
        *filter(None, [seam_line(m["seams"])]),
        *_saturation(m, has_rasters),
    ]
    return "\n".join(lines)


def _input_lines(classes: ClassTable, f: FinishedInput, out: str) -> list[str]:
    """What was found in one input, and its files."""
    lines = ["", shown(near(f.plan.uri)), _class_table(classes, f), *(f"  {out}/{a.key}" for a in f.assets)]
    if f.preview:
        lines.append(f"  {out}/{f.preview}")
    if f.suspects:
        lines.append(f"  {f.suspects} merged objects hold two segments of one tile: possible over-merges")
    if f.missing_units:
        lines.append(
            f"  {len(f.missing_units)} units are missing and nodata in the result: see deadletter.parquet"
        )
    return lines


def near(path: str) -> str:
    """A path below the working directory as seen from there; others as they are."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _class_table(classes: ClassTable, f: FinishedInput) -> str:
    is_video = isinstance(f.plan, VideoPlan)
    rows = [f"  {'class':<24} {'kind':<6} {'tracks' if is_video else 'segments':>9} {'share':>7}"]
    total = f.plan.pixels
    for c in f.counts:
        named = classes[c.class_id - 1]
        kind = "thing" if named.is_thing else "stuff"
        rows.append(f"  {named.name:<24} {kind:<6} {c.segments:>9,} {c.pixels / total:>7.1%}")
    if is_video:
        rows.append(f"  {f.segments:,} tracks over {f.plan.item_count:,} frames")
        if f.empty_tiles or f.failed_tiles:
            rows.append(
                f"  {f.empty_tiles:,} frames could not be decoded, {f.failed_tiles:,} failed: see frames.parquet"
            )
    else:
        rows.append(
            f"  {f.segments:,} segments; {f.things_over_seams:,} things were made whole across tile borders"
        )
    return "\n".join(rows)


def _speed(m: dict[str, Any]) -> str:
    busy = m["busy_share"]
    share = f", replicas busy {min(busy.values()):.0%}" if busy else ""
    return (
        f"{m['pixels'] / 1e6:,.1f} Mpx in {m['wall_seconds']:.1f} s: segment {m['segment_seconds']:.1f} s "
        f"({m['mpx_per_second']:.2f} Mpx/s{share}), stitch {m['stitch_seconds']:.1f} s, "
        f"publish {m['publish_seconds']:.1f} s; peak memory {m['peak_rss_bytes']['driver'] / 2**20:,.0f} MiB"
    )


def _saturation(m: dict[str, Any], has_rasters: bool) -> list[str]:
    queries = m["queries"]
    if queries["max"] and queries["used_max"] >= 0.9 * queries["max"]:
        where, remedy = ("tile", "; try a smaller --tile") if has_rasters else ("frame", "")
        used = f"{queries['used_max']} of the network's {queries['max']} queries"
        return [f"note    a {where} used {used}: objects may be missed there{remedy}"]
    return []
