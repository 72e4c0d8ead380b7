"""The last sweep over one raster: its labels, read once, become both label COGs and the table of segments.

Blocks are visited in an order of their own (1,024-px blocks inside 4,096-px blocks), so nothing depends on the tiles
of the run, and no stripe of the raster's width is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoptile.model.classes import ClassTable
from panoptile.pipeline.corners import MAX_BLOCK_SIDE
from panoptile.pipeline.geoparquet import write_geoparquet
from panoptile.pipeline.label_cog import COG_BLOCK, ClassLookup, class_raster, segment_raster
from panoptile.pipeline.memory import release_unused
from panoptile.pipeline.raster_info import NODATA_ID, RasterInfo
from panoptile.pipeline.segments import LabelReader, SegmentTable, blocks
from panoptile.pipeline.spool import OutlineSpool
from panoptile.pipeline.terms import Compression
from panoptile.pipeline.vectorize import STUFF_BLOCK, Vectorizer
from panoptile.pipeline.window import Window

WHOLE_PIXELS = STUFF_BLOCK**2
"""Largest connected region of stuff that is one row; a larger one is cut like other stuff: its outline has no bound."""
BLOCK = 1024
"""Side of the blocks, pixels, in which labels are read; results do not depend on it."""


@dataclass(frozen=True, slots=True)
class Published:
    """Files of one raster in a local folder, and what the sweep counted."""

    segments_tif: Path
    classes_tif: Path
    segments_parquet: Path | None
    """None where no table was asked for."""
    rows: int
    """Rows of the table; 0 without one."""
    void_pixels: int
    nodata_pixels: int


def publish_raster(
    labels: LabelReader,
    info: RasterInfo,
    segments: SegmentTable,
    classes: ClassTable,
    scratch: Path,
    *,
    tags: Mapping[str, str],
    vector: bool = True,
    compression: Compression = "zstd",
    block: int = BLOCK,
    threads: int = 1,
    regions: frozenset[int] = frozenset(),
) -> Published:
    """Write ``<stem>.segments.tif``, ``<stem>.classes.tif`` and ``<key>.parquet`` into the folder ``scratch``.

    The same labels give the same bytes, whatever ``block`` is. Memory is a few blocks, the corners of open objects
    and about 50 bytes a segment.

    Args:
        labels: read once, block by block.
        tags: written into both rasters, with ROLE (segments, classes) and, for the classes, CLASSES.
        vector: False leaves out the table.
        block: side of the blocks, pixels: a multiple of 512 that divides 4,096.
        threads: compress the rasters.
        regions: stuff classes whose segments are connected regions: a row each, up to the size of a 4,096-px block.

    Raises:
        ValueError: where labels and ``segments`` disagree.
    """
    if block % COG_BLOCK or STUFF_BLOCK % block or block > MAX_BLOCK_SIDE:
        raise ValueError(
            f"Blocks must be a multiple of {COG_BLOCK} px that divides {STUFF_BLOCK}, got {block}."
        )
    undivided = np.array([False, *(c.is_thing for c in classes)])[segments.class_ids]
    undivided |= np.isin(segments.class_ids, list(regions)) & (segments.areas <= WHOLE_PIXELS)
    counts = dict(enumerate(np.bincount(segments.class_ids).tolist()))
    parquet = scratch / f"{info.key}.parquet"
    with ExitStack() as stack:
        ids = stack.enter_context(
            segment_raster(scratch / f"{info.stem}.segments.tif", info, tags=tags, compression=compression)
        )
        classes_tif = scratch / f"{info.stem}.classes.tif"
        names = stack.enter_context(
            class_raster(classes_tif, info, classes, counts, tags=tags, compression=compression)
        )
        spool = stack.enter_context(OutlineSpool(scratch / f".{info.key}.spool", info.height, info.width))
        to_class = ClassLookup(segments.class_ids, classes)
        outlines = Vectorizer(segments, undivided)
        void = nodata = 0
        for group in stuff_blocks(info, block):
            for window in group:
                read = labels.read(window)
                ids.write(window, read)
                names.write(window, to_class(read))
                void += int(np.count_nonzero(read == 0))
                nodata += int(np.count_nonzero(read == NODATA_ID))
                if vector:
                    spool.add(*outlines.add(read, window))
            spool.add(*outlines.end_stuff_block())
        if vector:
            outlines.finish()
        del outlines
        ids.finish(threads), names.finish(threads)
        release_unused()
        rows = write_geoparquet(parquet, spool, info, segments, classes) if vector else 0
    return Published(ids.path, names.path, parquet if vector else None, rows, void, nodata)


def stuff_blocks(info: RasterInfo, block: int) -> Iterator[list[Window]]:
    """Blocks of the raster, row-major within each 4,096-px block, those row-major too."""
    for outer in blocks(info.height, info.width, STUFF_BLOCK):
        yield [
            Window.span(outer.row + w.row, outer.col + w.col, outer.row + w.stop_row, outer.col + w.stop_col)
            for w in blocks(outer.height, outer.width, block)
        ]
