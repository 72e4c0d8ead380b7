"""The last pass over one input: join its fragments, write its products, put them into the store."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from panoptile.model.classes import ClassTable
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.commit import withdraw_damaged
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.joined import Fragments, Joined, JoinedLabels, join
from panoptile.pipeline.layout import preview_key, tile_table_key
from panoptile.pipeline.memory import release_unused
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.preview import NoPhotograph, write_preview
from panoptile.pipeline.publish import publish_raster
from panoptile.pipeline.regions import split_regions
from panoptile.pipeline.seam_quality import SeamQuality, WatchedLabels
from panoptile.pipeline.segments import LabelReader
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store import Store
from panoptile.pipeline.terms import Compression


@dataclass(frozen=True, slots=True)
class Asset:
    """One published file."""

    key: str
    """Where it lies in the store."""
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class ClassCount:
    """What was found of one class in one input."""

    class_id: int
    segments: int
    pixels: int


@dataclass(frozen=True, slots=True)
class FinishedInput:
    """One input, published."""

    plan: AnyPlan
    assets: tuple[Asset, ...]
    """Files of the published tree."""
    preview: str | None
    """Key of the preview picture; pictures are not part of the published tree."""
    counts: tuple[ClassCount, ...]
    segments: int
    things_over_seams: int
    """Thing segments that were merged from several tiles."""
    suspects: int
    missing_units: tuple[Unit, ...]
    """Units that are quarantined as a whole."""
    commits: Mapping[Unit, str]
    """sha256 of each committed fragment."""
    empty_tiles: int
    queries_used_max: int
    queries_used_mean: float
    stitch_seconds: float
    publish_seconds: float
    failed_tiles: int = 0
    """Tiles that are nodata because they failed, those of missing units included."""
    seam_counts: tuple[int, ...] = ()
    """The fields of ``seams``, as plain numbers that survive JSON."""
    tile_table: Asset | None = None
    """Of a raster; beside the published tree, and None in records of older versions."""

    @property
    def seams(self) -> SeamQuality:
        """How visible the tiles are in the published labels."""
        return SeamQuality(*self.seam_counts)


@dataclass(frozen=True, slots=True)
class Products:
    """Which files are wanted."""

    raster: bool = True
    vector: bool = True
    preview: bool = True
    compression: Compression = "zstd"
    regions: frozenset[int] = frozenset()
    """Stuff classes whose connected regions are segments of their own."""
    threads: int = 1
    """Compress the rasters; no byte depends on it."""
    photograph: bool = True
    """False where the raster is not to be seen any more: a preview that is there stays, else it is drawn without."""


def finish_input(
    store: Store,
    plan: RasterPlan,
    classes: ClassTable,
    keep: NodeFilter,
    products: Products,
    tags: Mapping[str, str],
) -> FinishedInput:
    """Join the committed units of one raster and publish its files. Calling it again gives the same bytes.

    Units that are not committed, and tiles that failed, are nodata in the result, never background.
    """
    release_unused()
    things = frozenset(c.class_id for c in classes if c.is_thing)
    with contextlib.closing(Fragments(store, plan)) as fragments:
        started = time.perf_counter()
        reach("stitch.before")
        withdraw_damaged(store, fragments.damaged())
        joined = join(fragments, things, keep)
        release_unused()
        reach("stitch.after")
        stitched = time.perf_counter()
        labels: LabelReader = JoinedLabels(fragments, joined)
        if products.regions:
            labels, table = split_regions(
                labels, joined.segments, fragments.grid, products.regions, keep.min_area
            )
            joined = replace(joined, segments=table)
        assets, preview, seams = _publish_files(store, fragments, labels, joined, classes, products, tags)
        tile_table = _put_tile_table(store, plan, fragments, joined)
    return FinishedInput(
        plan,
        assets,
        preview,
        _counts(joined, classes),
        len(joined.segments),
        _over_seams(joined, things),
        joined.segments.suspects,
        tuple(unit for unit in plan.units() if unit not in fragments.commits),
        {unit: commit.sha256 for unit, commit in fragments.commits.items()},
        _empty_tiles(joined, fragments),
        int(joined.queries_used.max(initial=0)),
        _mean(joined.queries_used),
        stitched - started,
        time.perf_counter() - stitched,
        len(fragments.failed_tiles()),
        seams.counts,
        tile_table,
    )


def _put_tile_table(store: Store, plan: RasterPlan, fragments: Fragments, joined: Joined) -> Asset:
    data = _tile_table(plan, fragments, joined)
    key = tile_table_key(plan.info.key)
    store.put_bytes(key, data)
    return Asset(key, hashlib.sha256(data).hexdigest(), len(data))


def _publish_files(
    store: Store,
    fragments: Fragments,
    joined_labels: LabelReader,
    joined: Joined,
    classes: ClassTable,
    products: Products,
    tags: Mapping[str, str],
) -> tuple[tuple[Asset, ...], str | None, SeamQuality]:
    """Write the files into scratch and put them into the store: (published files, key of the preview, seams)."""
    info = fragments.plan.info
    things = frozenset(c.class_id for c in classes if c.is_thing)
    labels = WatchedLabels(joined_labels, fragments.grid, joined.segments, things)
    assets: list[Asset] = []
    preview = None
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        scratch = Path(folder)
        files = publish_raster(
            labels,
            info,
            joined.segments,
            classes,
            scratch,
            tags=tags,
            vector=products.vector,
            compression=products.compression,
            threads=products.threads,
            regions=products.regions,
        )
        if products.preview:
            preview = preview_key(info.key)
            if products.photograph or not store.exists(preview):
                photo = None if products.photograph else NoPhotograph()
                rasters = files.segments_tif, files.classes_tif
                write_preview(scratch / "preview.png", info, *rasters, classes, photo=photo)
                store.put_file(preview, scratch / "preview.png")
        if products.raster:
            for path in (files.segments_tif, files.classes_tif):
                assets.append(put_asset(store, f"rasters/{info.key}/{path.name}", path))
        if files.segments_parquet is not None:
            assets.append(put_asset(store, f"segments/{info.key}.parquet", files.segments_parquet))
    return tuple(assets), preview, labels.quality()


def put_asset(store: Store, key: str, path: Path) -> Asset:
    """Put a finished local file into the store; it is gone from where it was."""
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    size = path.stat().st_size
    reach("publish.before_file")
    store.put_file(key, path)
    reach("publish.after_file")
    return Asset(key, digest, size)


def _counts(joined: Joined, classes: ClassTable) -> tuple[ClassCount, ...]:
    table = joined.segments
    segments = np.bincount(table.class_ids, minlength=len(classes) + 1)
    pixels = np.bincount(table.class_ids, weights=table.areas, minlength=len(classes) + 1)
    return tuple(
        ClassCount(c.class_id, int(segments[c.class_id]), int(pixels[c.class_id]))
        for c in classes
        if segments[c.class_id]
    )


def _over_seams(joined: Joined, things: frozenset[int]) -> int:
    table = joined.segments
    return int(np.count_nonzero((table.merged_from > 1) & np.isin(table.class_ids, list(things))))


def _empty_tiles(joined: Joined, fragments: Fragments) -> int:
    """Tiles that have no input; those that failed are not among them."""
    settled = len(fragments.grid) - len(fragments.failed_tiles())
    return settled - int(np.count_nonzero(joined.queries_used >= 0))


def _mean(queries_used: np.ndarray) -> float:
    used = queries_used[queries_used >= 0]
    return float(used.mean()) if used.size else 0.0


def _tile_table(plan: RasterPlan, fragments: Fragments, joined: Joined) -> bytes:
    """tiles/<key>.parquet: one row per tile, row-major."""
    tiles, failed = list(plan.grid), fragments.failed_tiles()
    statuses = []
    for number in range(len(tiles)):
        empty = joined.queries_used[number] < 0
        statuses.append("failed" if number in failed else "empty" if empty else "done")
    table = pa.table(
        {
            "tile_id": pa.array(range(len(tiles)), pa.int32()),
            "row": pa.array([t.row for t in tiles], pa.int32()),
            "col": pa.array([t.col for t in tiles], pa.int32()),
            "x0": pa.array([t.window.col for t in tiles], pa.int32()),
            "y0": pa.array([t.window.row for t in tiles], pa.int32()),
            "w": pa.array([t.window.width for t in tiles], pa.int32()),
            "h": pa.array([t.window.height for t in tiles], pa.int32()),
            "status": pa.array(statuses),
            "n_segments": pa.array(joined.tile_segments, pa.int32()),
            "queries_used": pa.array(np.maximum(joined.queries_used, 0), pa.int32()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
