"""Figures of an evaluation as a table and as JSON."""

from __future__ import annotations

import math
from typing import Any

from panoptile.jobs.evaluate import Evaluation
from panoptile.pipeline.panoptic_quality import GroupQuality, PanopticScores
from panoptile.pipeline.segmentation_tracking_quality import TrackingScores
from panoptile.pipeline.video_quality import VideoScores

_SHOWN_CLASSES = 60


def score_fields(result: Evaluation) -> dict[str, Any]:
    """What ``eval --json`` prints: figures from 0 to 1, counts of segments."""
    semantic = result.semantic
    ious = semantic.per_class
    things = [c for c in result.classes if c.is_thing]
    fields: dict[str, Any] = {
        "kind": result.kind,
        "compared": list(result.names),
        "pixels": result.pixels,
        "panoptic": panoptic_fields(result.panoptic),
        "things_f1_50": result.panoptic.things.f1,
        "track_ap" if result.kind == "video" else "instance_ap": {
            "ap": result.instances.ap,
            "ap50": result.instances.ap50,
            "ap75": result.instances.ap75,
            "per_class": {c.name: result.instances.of_class(i) for i, c in enumerate(things)},
        },
        "semantic": {
            "miou": semantic.mean,
            "things_miou": semantic.mean_of([c.class_id for c in things]),
            "stuff_miou": semantic.mean_of([c.class_id for c in result.classes if not c.is_thing]),
            "accuracy": semantic.accuracy,
            "per_class": {
                c.name: None if math.isnan(v) else float(v)
                for c, v in zip(semantic.classes, ious, strict=True)
            },
            "confusion": semantic.confusion.tolist(),
        },
        "notes": list(result.notes),
    }
    if result.video is not None:
        vpq, stq = result.video
        fields["vpq"] = {
            "all": vpq.all,
            "things": vpq.things,
            "stuff": vpq.stuff,
            "windows": {str(k): panoptic_fields(s) for k, s in vpq.windows.items()},
        }
        fields["stq"] = {"stq": stq.stq, "aq": stq.aq, "sq": stq.sq, "tracks": stq.tracks}
    return fields


def panoptic_fields(scores: PanopticScores) -> dict[str, Any]:
    """PQ, SQ, RQ and counts of the groups and the classes."""
    return {
        **{name: _group(getattr(scores, name)) for name in ("all", "things", "stuff")},
        "per_class": [
            {
                "name": c.name, "is_thing": c.is_thing, "pq": q.pq, "sq": q.sq, "rq": q.rq,
                "precision": q.precision, "recall": q.recall,
                "matched": q.matched, "invented": q.invented, "missed": q.missed,
            }
            for c, q in scores.per_class
            if q.present
        ],
    }  # fmt: skip


def _group(group: GroupQuality) -> dict[str, Any]:
    return {
        "pq": group.pq, "sq": group.sq, "rq": group.rq, "classes": group.classes, "f1": group.f1,
        "matched": group.matched, "invented": group.invented, "missed": group.missed,
    }  # fmt: skip


def score_text(result: Evaluation) -> str:
    """The table that ``eval`` prints, in per cent."""
    what = "tubes of the whole video" if result.kind == "video" else "segments"
    lines = [
        f"compared {', '.join(result.names[:3])}{' …' if len(result.names) > 3 else ''}: {result.pixels / 1e6:,.1f} Mpx",
        "",
        *panoptic_lines(result.panoptic, "tubes" if result.kind == "video" else "segments"),
        "",
        *_class_lines(result),
        "",
        f"things   F1 at IoU > 0.5: {100 * result.panoptic.things.f1:.2f} (all classes together, {what})",
        _ap_line(result),
        _iou_line(result),
    ]
    if result.video is not None:
        lines += _video_lines(*result.video)
    return "\n".join([*lines, *(f"note     {note}" for note in result.notes)])


def _video_lines(vpq: VideoScores, stq: TrackingScores) -> list[str]:
    windows = "  ".join(f"k={k}: {100 * s.all.pq:.2f}" for k, s in vpq.windows.items())
    groups = [
        f"{name} {100 * getattr(vpq, name):.2f}"
        for name in ("things", "stuff")
        if any(getattr(s, name).classes for s in vpq.windows.values())
    ]
    return [
        f"VPQ      {100 * vpq.all:.2f} ({', '.join(groups)}; {windows})",
        f"STQ      {100 * stq.stq:.2f} (AQ {100 * stq.aq:.2f}, SQ {100 * stq.sq:.2f}; {stq.tracks} tracks)",
    ]


def panoptic_lines(scores: PanopticScores, of: str = "") -> list[str]:
    """PQ, SQ and RQ of all classes, things and stuff; ``of`` heads the first column."""
    lines = [
        f"{of:<9}{'PQ':>7} {'SQ':>7} {'RQ':>7} {'classes':>8} {'matched':>9} {'invented':>9} {'missed':>9}"
    ]
    for name in ("all", "things", "stuff"):
        g: GroupQuality = getattr(scores, name)
        figures = [f"{100 * v:.2f}" if g.classes else "-" for v in (g.pq, g.sq, g.rq)]
        cells = "".join(f"{f:>7} " for f in figures)
        lines.append(f"{name:<9}{cells}{g.classes:>8} {g.matched:>9,} {g.invented:>9,} {g.missed:>9,}")
    return lines


def _class_lines(result: Evaluation) -> list[str]:
    ious = result.semantic.per_class
    lines = [
        f"{'class':<24} {'kind':<6} {'PQ':>7} {'SQ':>7} {'RQ=F1':>7} {'IoU':>7} {'matched':>9} {'invented':>9} {'missed':>9}"
    ]
    rows = [
        (c, q, v)
        for (c, q), v in zip(result.panoptic.per_class, ious, strict=True)
        if q.present or not math.isnan(v)
    ]
    for c, q, v in rows[:_SHOWN_CLASSES]:
        kind = "thing" if c.is_thing else "stuff"
        iou = "" if math.isnan(v) else f"{100 * v:.2f}"
        lines.append(
            f"{c.name[:24]:<24} {kind:<6} {100 * q.pq:>7.2f} {100 * q.sq:>7.2f} {100 * q.rq:>7.2f} {iou:>7} "
            f"{q.matched:>9,} {q.invented:>9,} {q.missed:>9,}"
        )
    return lines + (
        [f"… and {len(rows) - _SHOWN_CLASSES} more: see --json"] if len(rows) > _SHOWN_CLASSES else []
    )


def _ap_line(result: Evaluation) -> str:
    ap = result.instances
    name = "track AP" if result.kind == "video" else "AP"
    return f"{name:<8} {100 * ap.ap:.2f} (at 0.50: {100 * ap.ap50:.2f}, at 0.75: {100 * ap.ap75:.2f})"


def _iou_line(result: Evaluation) -> str:
    s = result.semantic
    stuff_ids = [c.class_id for c in result.classes if not c.is_thing]
    stuff = f" (stuff {100 * s.mean_of(stuff_ids):.2f})" if stuff_ids else ""
    return f"mIoU     {100 * s.mean:.2f}{stuff}, pixel accuracy {100 * s.accuracy:.2f}"
