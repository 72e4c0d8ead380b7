"""The report as one HTML file: no script, no request, no font from elsewhere; every name escaped.

A content security policy in the file forbids the browser whatever the file should not need.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from panoptile.jobs.report import ROWS, XY, InputReport, JobReport, Stream

LEAST_SIDE = 2.0
"""Of an input on the map, whose longer side has 1000: less is not seen on a phone."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root{--ink:#1c2026;--faint:#616a77;--line:#dfe2e8;--paper:#fafafb;--card:#fff;--accent:#2f6fde;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaee;--faint:#a3abb8;--line:#343a44;--paper:#14171c;--card:#1d2127;
--accent:#7fa8f5;--bad:#f2a29c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:22px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:17px;margin:36px 0 12px}
p{margin:4px 0;overflow-wrap:anywhere}.faint{color:var(--faint)}.bad{color:var(--bad)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin-top:20px}
.figure,.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.figure b{display:block;font-size:21px;line-height:1.3;font-variant-numeric:tabular-nums}
.figure span{color:var(--faint);font-size:13px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--faint);font-size:13px}tr:last-child td{border-bottom:0}
th:first-child,td:first-child,.left{text-align:left}td.wide{white-space:normal;overflow-wrap:anywhere;min-width:180px}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px;vertical-align:-1px;
border:1px solid rgba(0,0,0,.2)}
.bar{display:inline-block;width:90px;height:8px;border-radius:4px;background:var(--line);vertical-align:middle;
margin-left:8px;overflow:hidden}.bar i{display:block;height:100%;background:var(--accent)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:16px}
.card img{width:100%;height:auto;border-radius:6px;display:block}.card p{font-size:13px}
svg{width:100%;height:auto;min-height:48px;max-height:80vh;display:block;background:var(--card);border:1px solid var(--line);border-radius:10px}
"""


def render(report: JobReport) -> str:
    """The page."""
    title = f"panoptile: {report.out}"
    parts = [
        _head(report),
        _figures(report),
        _map(report),
        _classes(report),
        _seams(report),
        _failures(report),
        _replicas(report),
        _pictures(report),
        _inputs(report),
        _about(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _head(report: JobReport) -> str:
    model = report.job.get("model", {}).get("description", "")
    n = len(report.inputs)
    ended = (
        "every unit is done"
        if report.exit == 0
        else f"finished with {report.failure_count:,} failure{'s' if report.failure_count != 1 else ''}"
    )
    return (
        f"<h1>{escape(report.out)}</h1>"
        f'<p class="faint">{n:,} input{"s" if n != 1 else ""} · {escape(str(model))} · '
        f'<span class="{"" if report.exit == 0 else "bad"}">{ended}</span></p>'
    )


def _figures(report: JobReport) -> str:
    m = report.metrics
    counted = [*report.totals.items(), *report.video_totals.items()]
    things = sum(n for c, (n, _) in counted if report.classes[c - 1].is_thing)
    figures = [
        (f"{things:,}", "objects"),
        (f"{m.get('pixels', 0) / 1e6:,.1f}", "megapixels"),
        (f"{m.get('mpx_per_second', 0):,.2f}", "Mpx/s"),
        (_duration(m.get("wall_seconds", 0)), "wall time"),
        (f"{report.replica_hours:,.2f}", "replica-hours"),
        (f"{m.get('things_merged_over_seams', 0):,}", "made whole over seams"),
    ]
    if report.price is not None:
        figures.append((f"{report.replica_hours * report.price:,.2f}", f"cost at {report.price:g} an hour"))
    cells = "".join(
        f'<div class="figure"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in figures
    )
    return f'<div class="figures">{cells}</div>'


def _map(report: JobReport) -> str:
    """All inputs of one CRS in their places; a sentence where they have several, nothing where they have none."""
    placed = [i for i in report.inputs if i.footprint is not None]
    systems = len({i.footprint.crs for i in placed if i.footprint})
    if systems > 1:
        return (
            f'<h2>Map</h2><p class="faint">No common map: the inputs lie in {systems} coordinate systems.</p>'
        )
    if not placed:
        return ""
    boxes = [i.footprint.bounds for i in placed if i.footprint]
    left, bottom = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, top = max(b[2] for b in boxes), max(b[3] for b in boxes)
    scale = 1000 / max(right - left, (top - bottom) * 1.4, 1e-12)
    width, height = (right - left) * scale, (top - bottom) * scale
    shapes = [
        _placed(one, _matrix([((x - left) * scale, (top - y) * scale) for x, y in one.footprint.corners]))
        for one in placed
        if one.footprint
    ]
    view = f"-8 -8 {width + 16:.1f} {height + 16:.1f}"
    return f'<h2>Map</h2><svg viewBox="{view}" role="img" aria-label="Inputs in their places">{"".join(shapes)}</svg>'


def _matrix(corners: Sequence[XY]) -> str:
    """SVG's matrix from the unit square to a place on the map: (0, 0) is where a raster's first row starts, (1, 0)
    where that row ends, (0, 1) where its last row starts. ``corners`` are those of a ``Footprint``, on the map."""
    (x, y), along_row, _, along_col = corners
    sides = [_at_least(along_row[0] - x, along_row[1] - y), _at_least(along_col[0] - x, along_col[1] - y)]
    return " ".join(f"{number:.2f}" for number in (*sides[0], *sides[1], x, y))


def _at_least(dx: float, dy: float) -> XY:
    """A side of an input, not shorter than what can be seen."""
    longer = max(1.0, LEAST_SIDE / max(math.hypot(dx, dy), 1e-12))
    return dx * longer, dy * longer


def _placed(one: InputReport, matrix: str) -> str:
    """An outline, and the labels in it where there are any, as the raster's rows and columns lie on the map."""
    name = f"<title>{escape(one.uri)}: {one.segments:,} segments</title>"
    square = f'width="1" height="1" transform="matrix({matrix})"'
    outline = (
        f'<rect {square} fill="none" stroke="currentColor" stroke-opacity=".35" '
        f'vector-effect="non-scaling-stroke">{name}</rect>'
    )
    if one.labels is None:
        return outline
    data = f"data:image/png;base64,{_b64(one.labels)}"
    return f'{outline}<image {square} preserveAspectRatio="none" href="{data}">{name}</image>'


def _classes(report: JobReport) -> str:
    """Rasters and videos apart: a track is no segment, and pixels of frames have no area on the ground."""
    of_rasters, of_videos = report.totals, report.video_totals
    rasters = [
        [*_class_cells(report, c, of_rasters), _area(report.areas_m2.get(c)), _share(c, of_rasters)]
        for c in of_rasters
    ]
    videos = [[*_class_cells(report, c, of_videos), _share(c, of_videos)] for c in of_videos]
    heads = [
        ["class", "kind", "segments", "pixels", "area", "share of what was labelled"],
        ["class", "kind", "tracks", "pixels of all frames", "share of what was labelled"],
    ]
    titles = ["Classes in rasters", "Classes in videos"] if rasters and videos else ["Classes"] * 2
    return "".join(
        f"<h2>{title}</h2>{_table(head, rows, wide=(0,))}"
        for title, head, rows in zip(titles, heads, (rasters, videos), strict=True)
        if rows
    )


def _class_cells(report: JobReport, class_id: int, totals: Mapping[int, tuple[int, int]]) -> list[str]:
    c, (count, pixels) = report.classes[class_id - 1], totals[class_id]
    return [
        f'<span class="swatch" style="background:rgb{c.color}"></span>{escape(c.name)}',
        "thing" if c.is_thing else "stuff",
        f"{count:,}",
        f"{pixels:,}",
    ]


def _share(class_id: int, totals: Mapping[int, tuple[int, int]]) -> str:
    share = totals[class_id][1] / (sum(pixels for _, pixels in totals.values()) or 1)
    return f'{share:.1%}<span class="bar"><i style="width:{share * 100:.1f}%"></i></span>'


def _seams(report: JobReport) -> str:
    seams = report.metrics.get("seams") or {}
    if not seams:
        return ""
    ratio = seams.get("discontinuity_ratio")
    rows = [
        [
            "id changes across seams, relative to elsewhere (1 is perfect)",
            "–" if ratio is None else f"{ratio:.2f}",
        ],
        ["things with a straight cut on a seam, per 1,000", f"{seams.get('cut_things_per_1000', 0):.1f}"],
        [
            "merged objects that hold two segments of one tile (suspects)",
            f"{report.metrics.get('suspects', 0):,}",
        ],
    ]
    return "<h2>Seam quality</h2>" + _table(["measure", "value"], rows, wide=(0,))


def _failures(report: JobReport) -> str:
    if not report.failure_count:
        return ""
    rows = [_failure_row(f) for f in report.failures]
    more = report.failure_count - len(rows)
    rest = f'<p class="faint">… and {more:,} more in deadletter.parquet</p>' if more > 0 else ""
    return (
        "<h2>Failures</h2>"
        + _table(["input, and what was said", "stage", "error", "attempts"], rows, wide=(0,))
        + rest
    )


def _failure_row(failure: dict[str, Any]) -> list[str]:
    """What and why in one cell: a phone shows no more columns at once."""
    places = [("unit", failure.get("unit")), ("tile", failure.get("tile"))]
    what = [str(failure.get("source_uri", "")), *(f"{name} {v}" for name, v in places if v is not None)]
    message = escape(str(failure.get("message", ""))[:300])
    return [
        f'{escape(", ".join(what))}<p class="faint">{message}</p>',
        *(escape(str(failure.get(name, ""))) for name in ("stage", "error_type", "attempts")),
    ]


def _replicas(report: JobReport) -> str:
    busy = report.metrics.get("busy_share") or {}
    if not busy:
        return ""
    rss = report.metrics.get("peak_rss_bytes") or {}
    rows = [
        [
            escape(str(name)),
            f'{share:.1%}<span class="bar"><i style="width:{min(share, 1) * 100:.1f}%"></i></span>',
            f"{rss[name] / 2**20:,.0f} MiB" if name in rss else "",
        ]
        for name, share in sorted(busy.items())
    ]
    return "<h2>Replicas</h2>" + _table(["replica", "busy", "peak memory"], rows[:ROWS])


def _pictures(report: JobReport) -> str:
    cards = [
        f'<div class="card"><img loading="lazy" alt="{escape(one.uri)}" src="data:image/jpeg;base64,{_b64(one.picture)}">'
        f"<p>{escape(one.uri)}</p>"
        f'<p class="faint">{_found(one)}</p></div>'
        for one in report.inputs
        if one.picture is not None
    ]
    return f'<h2>Pictures</h2><div class="pictures">{"".join(cards)}</div>' if cards else ""


def _found(one: InputReport) -> str:
    if one.stream is not None:
        return f"{one.segments:,} tracks over {one.stream.frames:,} frames"
    return f"{one.segments:,} segments, {one.merged:,} made whole over seams"


def _inputs(report: JobReport) -> str:
    """The rasters, then the videos, the largest results first."""
    rasters = ["raster", "size", "segments", "over seams", "suspects", "failed tiles"]
    videos = ["video", "size", "frames", "length", "tracks", "failed frames"]
    return _input_table("Rasters", rasters, report.rasters) + _input_table("Videos", videos, report.videos)


def _input_table(title: str, head: list[str], inputs: list[InputReport]) -> str:
    if not inputs:
        return ""
    shown = sorted(inputs, key=lambda i: i.segments, reverse=True)[:ROWS]
    rows = [_raster_row(one) if one.stream is None else _video_row(one, one.stream) for one in shown]
    more = len(inputs) - len(shown)
    rest = f'<p class="faint">… and {more:,} more in manifest.parquet</p>' if more > 0 else ""
    return f"<h2>{title}</h2>" + _table(head, rows, wide=(0,)) + rest


def _raster_row(one: InputReport) -> list[str]:
    return [
        escape(one.uri),
        f"{one.width:,} × {one.height:,}",
        f"{one.segments:,}",
        f"{one.merged:,}",
        f"{one.suspects:,}",
        f"{one.failed_items:,}",
    ]


def _video_row(one: InputReport, stream: Stream) -> list[str]:
    return [
        escape(one.uri),
        f"{one.width:,} × {one.height:,}",
        f"{stream.frames:,} of {stream.frames_in_file:,}",
        _duration(stream.seconds),
        f"{one.segments:,}",
        f"{one.failed_items:,}",
    ]


def _about(report: JobReport) -> str:
    spec = report.job.get("spec", {})
    rows = [
        [escape(str(k)), escape(", ".join(map(str, v)) if isinstance(v, list) else str(v))]
        for k, v in spec.items()
        if v not in (None, [], "") and k != "sources"
    ]
    versions = " · ".join(f"{k} {v}" for k, v in report.job.get("versions", {}).items())
    fingerprint = str(report.job.get("fingerprint", ""))[:16]
    return (
        "<h2>Job</h2>"
        + _table(["option", "value"], rows, wide=(1,))
        + f'<p class="faint">fingerprint {escape(fingerprint)} · {escape(versions)}</p>'
    )


def _table(head: Iterable[str], rows: list[list[str]], wide: tuple[int, ...] = ()) -> str:
    """Cells are HTML already; heads are text."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(i, wide)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(column: int, wide: tuple[int, ...]) -> str:
    return ' class="wide left"' if column in wide else ""


def _b64(data: bytes | None) -> str:
    return base64.b64encode(data or b"").decode()


def _area(square_metres: float | None) -> str:
    if square_metres is None:
        return ""
    if square_metres >= 1e6:
        return f"{square_metres / 1e6:,.2f} km²"
    return f"{square_metres / 1e4:,.2f} ha" if square_metres >= 1e4 else f"{square_metres:,.0f} m²"


def _duration(seconds: Any) -> str:
    s = float(seconds)
    if s < 90:
        return f"{s:.0f} s"
    return f"{s / 60:.0f} min" if s < 5400 else f"{s / 3600:.1f} h"
