"""What ``panoptile report`` says of a finished job, gathered from OUT alone and from any store.

Sums cover every input; pictures and rows are bounded, so that the report of 10,000 inputs still opens on a phone.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image

from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import damaged, published_classes
from panoptile.jobs.job_record import read_job
from panoptile.jobs.state import parquet_rows, read_errors, read_json
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.parquet_read import open_parquet
from panoptile.pipeline.store import Store, open_store
from panoptile.pipeline.video_index import VideoIndex

PICTURES = 24
"""Most inputs that are shown with a picture, the largest results first."""
ROWS = 500
"""Most rows of a table."""
FOOTPRINTS = 400
"""Most inputs whose labels are drawn on the map; others are outlined."""
PICTURE_SIDE, FOOTPRINT_SIDE = 1200, 256

XY = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where an input lies, in the coordinates of its CRS; nothing says that its first row lies north."""

    corners: tuple[XY, XY, XY, XY]
    """Where the raster's first row starts and ends, then where its last row ends and starts."""
    crs: str

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top)"""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True, slots=True)
class Stream:
    """What of a video was segmented."""

    frames: int
    frames_in_file: int
    seconds: float
    """Of the whole file."""


@dataclass(slots=True)
class InputReport:
    """One input."""

    key: str
    uri: str
    kind: str
    height: int
    width: int
    segments: int
    """Tracks of a video."""
    counts: dict[int, tuple[int, int]]
    """class id -> (segments or tracks, pixels of the raster or of all frames)"""
    suspects: int
    merged: int
    failed_items: int
    footprint: Footprint | None
    preview: str | None
    stream: Stream | None = None
    """Of a video."""
    picture: bytes | None = None
    """JPEG of the preview."""
    labels: bytes | None = None
    """PNG of the classes, transparent where there are none, for the map."""


@dataclass(slots=True)
class JobReport:
    """Everything on the page."""

    out: str
    exit: int
    job: dict[str, Any]
    metrics: dict[str, Any]
    classes: ClassTable
    inputs: list[InputReport]
    areas_m2: dict[int, float]
    """class id -> square metres over all rasters; empty where they have no CRS."""
    failures: list[dict[str, Any]]
    failure_count: int
    price: float | None
    """Per replica-hour; None where no cost was asked for."""
    totals: dict[int, tuple[int, int]] = field(default_factory=dict)
    """class id -> (segments, pixels) over all rasters"""
    video_totals: dict[int, tuple[int, int]] = field(default_factory=dict)
    """class id -> (tracks, pixels of all frames) over all videos"""

    @property
    def rasters(self) -> list[InputReport]:
        return [one for one in self.inputs if one.stream is None]

    @property
    def videos(self) -> list[InputReport]:
        return [one for one in self.inputs if one.stream is not None]

    @property
    def replica_hours(self) -> float:
        """Replicas times the time that they were at work."""
        replicas = max(1, len(self.metrics.get("busy_share", {})))
        return float(self.metrics.get("segment_seconds", 0.0)) * replicas / 3600


def gather(out: str, price: float | None) -> JobReport:
    """Read a finished job. Raises :class:`JobError` (exit 2) where OUT holds none."""
    try:
        store = open_store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
    with read_errors(out), tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        success = read_json(store, layout.SUCCESS)
        if success is None:
            raise invalid(
                f"{out} holds no finished run: there is no {layout.SUCCESS}. See panoptile status {out}."
            )
        scratch = Path(folder)
        classes = published_classes(store, scratch)
        inputs = list(_inputs(store))
        failures, count = _failures(store)
        report = JobReport(
            out=store.root,
            exit=_exit_of(store, success),
            job=read_job(store) or {},
            metrics=read_json(store, layout.METRICS) or {},
            classes=classes,
            inputs=inputs,
            areas_m2=_areas(store, inputs),
            failures=failures,
            failure_count=count,
            price=price,
        )
        report.totals, report.video_totals = _totals(report.rasters), _totals(report.videos)
        _add_pictures(store, report, scratch)
        return report


def _exit_of(store: Store, success: dict[str, Any]) -> int:
    code = success.get("exit", 0)
    if not isinstance(code, int):
        raise damaged(store, layout.SUCCESS)
    return code


def _inputs(store: Store) -> Iterator[InputReport]:
    results = store.read_all("_state/results")
    plans = store.read_all("_state/plan")  # after the results: a run that adds an input writes its plan first
    for name, data in sorted(results.items()):
        key = name.rsplit("/", 1)[-1].removesuffix(".json")
        try:
            yield _input(key, json.loads(plans[layout.plan_key(key)]), json.loads(data)["finished"])
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise damaged(store, name) from e


def _input(key: str, plan: dict[str, Any], found: dict[str, Any]) -> InputReport:
    """One input from its plan and from the record of what was found; raises anything where they are damaged."""
    about = plan.get("info") or {}
    kind = str(plan.get("kind", "raster"))
    sized = about["index"] if kind == "video" else about
    return InputReport(
        key=key,
        uri=str(about.get("uri") or key),
        kind=kind,
        height=int(sized.get("height", 0)),
        width=int(sized.get("width", 0)),
        segments=int(found.get("segments", 0)),
        counts={int(c["class_id"]): (int(c["segments"]), int(c["pixels"])) for c in found.get("counts", ())},
        suspects=int(found.get("suspects", 0)),
        merged=int(found.get("things_over_seams", 0)),
        failed_items=int(found.get("failed_tiles", 0)),
        footprint=_footprint(about),
        preview=found.get("preview"),
        stream=_stream(plan) if kind == "video" else None,
    )


def _stream(plan: dict[str, Any]) -> Stream:
    index = VideoIndex.from_json(plan["info"]["index"])
    return Stream(sum(count for _, _, count in plan["frames"]), len(index), index.duration_s)


def _footprint(info: dict[str, Any]) -> Footprint | None:
    if not info.get("crs_wkt") or not info.get("georeferenced"):
        return None
    a, b, c, d, e, f = info["transform"][:6]
    width, height = info["width"], info["height"]

    def place(col: int, row: int) -> XY:
        return a * col + b * row + c, d * col + e * row + f

    corners = (place(0, 0), place(width, 0), place(width, height), place(0, height))
    return Footprint(corners, str(info["crs_wkt"]))


def _totals(inputs: list[InputReport]) -> dict[int, tuple[int, int]]:
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for one in inputs:
        for class_id, (segments, pixels) in one.counts.items():
            sums[class_id][0] += segments
            sums[class_id][1] += pixels
    return {class_id: (s, p) for class_id, (s, p) in sorted(sums.items())}


def _areas(store: Store, inputs: list[InputReport]) -> dict[int, float]:
    """Square metres per class, from the vector files where there are any."""
    sums: dict[int, float] = defaultdict(float)
    for one in inputs:
        key = f"segments/{one.key}.parquet"
        if one.kind != "raster" or not store.exists(key):
            continue
        try:
            with store.open(key) as f:
                _add_areas(f, sums)
        except (pa.ArrowException, KeyError) as e:
            raise damaged(store, key) from e
    return {class_id: area for class_id, area in sums.items() if area > 0}


def _add_areas(table: BinaryIO, sums: dict[int, float]) -> None:
    with open_parquet(table) as file:
        if "area_m2" not in file.schema_arrow.names:
            return
        for batch in file.iter_batches(columns=["class_id", "area_m2"], use_threads=False):
            ids = batch.column("class_id").to_numpy()
            areas = np.nan_to_num(batch.column("area_m2").to_numpy(zero_copy_only=False))
            for class_id in np.unique(ids):
                sums[int(class_id)] += float(areas[ids == class_id].sum())


def _failures(store: Store) -> tuple[list[dict[str, Any]], int]:
    """(first rows of the dead letter, how many there are)."""
    try:
        rows = parquet_rows(store.read_bytes(layout.DEADLETTER))
    except FileNotFoundError:
        return [], 0
    if rows is None:
        raise damaged(store, layout.DEADLETTER)
    return rows[:ROWS], len(rows)


# --- pictures ------------------------------------------------------------------------------------------


def _add_pictures(store: Store, report: JobReport, scratch: Path) -> None:
    largest = sorted(report.inputs, key=lambda i: i.segments, reverse=True)
    for one in largest[:PICTURES]:
        if one.preview is not None and store.exists(one.preview):
            try:
                one.picture = _jpeg(store.read_bytes(one.preview))
            except (OSError, SyntaxError) as e:  # what PIL raises for a broken PNG
                raise damaged(store, one.preview) from e
    for one in [i for i in largest if i.footprint is not None][:FOOTPRINTS]:
        one.labels = _drawn_labels(store, one.key, report.classes, scratch)


def _jpeg(data: bytes) -> bytes:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=82, optimize=True)
    return sink.getvalue()


def _drawn_labels(store: Store, key: str, classes: ClassTable, scratch: Path) -> bytes | None:
    """The class raster of one input in colours, read from an overview."""
    from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)

    import rasterio  # isort: skip

    keys = [k for k in store.keys(f"rasters/{key}") if k.endswith(".classes.tif")]
    if not keys:
        return None
    path = store.local_copy(keys[0], scratch)
    try:
        with rasterio.open(path, driver="GTiff") as raster:
            scale = min(1.0, FOOTPRINT_SIDE / max(raster.height, raster.width))
            shape = (max(1, round(raster.height * scale)), max(1, round(raster.width * scale)))
            ids = raster.read(1, out_shape=shape)
    except rasterio.errors.RasterioError as e:
        raise damaged(store, keys[0]) from e
    palette = np.zeros((65_536, 4), np.uint8)
    for c in classes:
        palette[c.class_id] = (*c.color, 255 if c.is_thing else 150)
    sink = io.BytesIO()
    Image.fromarray(palette[ids], "RGBA").save(sink, "PNG", optimize=True)
    return sink.getvalue()
