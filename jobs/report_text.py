"""Plans and results in words and in JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from panoptile.jobs.prepare import Prepared
from panoptile.jobs.replicas import worker_bytes, worker_count
from panoptile.jobs.results import listing
from panoptile.jobs.seam_report import seam_line
from panoptile.jobs.segment import Summary
from panoptile.model.classes import ClassTable


def plan_line(prepared: Prepared) -> str:
    """One line for a run that starts."""
    n = len(prepared.plans)
    return (
        f"plan    {n} raster{'s' if n != 1 else ''}  {prepared.pixels / 1e6:,.1f} Mpx  {prepared.tiles:,} tiles "
        f"{prepared.spec.tile}/{prepared.spec.overlap}  {prepared.units:,} units  model: {prepared.model.description}"
    )


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
            {
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
            }
            for p in prepared.plans
        ],
    }


def plan_text(prepared: Prepared) -> str:
    """The table that ``plan`` prints."""
    lines = [plan_line(prepared), ""]
    lines.append(
        f"{'raster':<44} {'rows x cols':>17} {'bands':>7} {'type':>8} {'tiles':>7} {'units':>6} {'MB':>9}"
    )
    for p in prepared.plans[:50]:
        i = p.info
        name = i.uri if len(i.uri) <= 44 else "…" + i.uri[-43:]
        size = f"{i.height:,} x {i.width:,}"
        bands = ",".join(map(str, i.bands))
        lines.append(
            f"{name:<44} {size:>17} {bands:>7} {i.dtype:>8} {len(p.grid):>7,} {p.unit_count:>6,} "
            f"{i.size_bytes / 1e6:>9,.1f}"
        )
    if len(prepared.plans) > 50:
        lines.append(f"… and {len(prepared.plans) - 50:,} more")
    lines += [
        "",
        (
            f"memory per worker on a CPU: about {worker_bytes(prepared) / 2**30:.1f} GiB; "
            f"this machine would run {worker_count(prepared, 0)} at once"
        ),
        f"job fingerprint: {prepared.fingerprint[:16]}; nothing was written",
    ]
    return "\n".join(lines)


def summary_fields(prepared: Prepared, summary: Summary) -> dict[str, Any]:
    """What ``segment --json`` prints."""
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


def summary_text(prepared: Prepared, summary: Summary) -> str:
    """The table that ``segment`` ends with."""
    if summary.skipped:
        return f"skipped {summary.out}: another run of this job is at work on it"
    if summary.already_done:
        return f"done    {summary.out} holds the finished result of this very job; nothing was run"
    lines, out = [], near(summary.out)
    for f in summary.inputs:
        lines += ["", near(f.plan.info.uri), _class_table(prepared.model.classes, f)]
        lines += [f"  {out}/{a.key}" for a in f.assets]
        if f.preview:
            lines.append(f"  {out}/{f.preview}")
        if f.suspects:
            lines.append(f"  {f.suspects} merged objects hold two segments of one tile: possible over-merges")
        if f.missing_units:
            lines.append(
                f"  {len(f.missing_units)} units are missing and nodata in the result: see deadletter.parquet"
            )
    m = summary.metrics
    lines += ["", f"done    {_speed(m)}", *filter(None, [seam_line(m["seams"])]), *_saturation(m)]
    return "\n".join(lines)


def near(path: str) -> str:
    """A path below the working directory as seen from there; others as they are."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _class_table(classes: ClassTable, f: Any) -> str:
    rows = [f"  {'class':<24} {'kind':<6} {'segments':>9} {'share':>7}"]
    total = f.plan.info.height * f.plan.info.width
    for c in f.counts:
        named = classes[c.class_id - 1]
        kind = "thing" if named.is_thing else "stuff"
        rows.append(f"  {named.name:<24} {kind:<6} {c.segments:>9,} {c.pixels / total:>7.1%}")
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


def _saturation(m: dict[str, Any]) -> list[str]:
    queries = m["queries"]
    if queries["max"] and queries["used_max"] >= 0.9 * queries["max"]:
        return [
            (
                f"note    a tile used {queries['used_max']} of the network's {queries['max']} queries: "
                "objects may be missed there; try a smaller --tile"
            )
        ]
    return []
