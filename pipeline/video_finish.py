"""The last pass over one video: link its fragments, write its tables and pictures, put them into the store."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from panoptile.model.classes import ClassTable
from panoptile.pipeline.commit import withdraw_damaged
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.finish import Asset, ClassCount, FinishedInput, put_asset
from panoptile.pipeline.layout import preview_key
from panoptile.pipeline.link_options import LinkOptions
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store import Store
from panoptile.pipeline.video_link import VideoFragments, link_video
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_publish import PublishedVideo, publish_video


@dataclass(frozen=True, slots=True)
class VideoProducts:
    """Which files are wanted, and how segments are linked."""

    link: LinkOptions = field(default_factory=LinkOptions)
    overlay: bool = False
    preview: bool = True
    photograph: bool = True
    """False where the video is not to be seen any more: pictures are drawn without it."""


def finish_video(
    store: Store, plan: VideoPlan, classes: ClassTable, keep: NodeFilter, products: VideoProducts
) -> FinishedInput:
    """Link the committed units of one video and publish its files. Calling it again gives the same bytes.

    Frames of units that are not committed have no masks, and ``status`` failed; the units are in ``missing_units``.
    """
    things = frozenset(c.class_id for c in classes if c.is_thing)
    fragments = VideoFragments(store, plan)
    started = time.perf_counter()
    reach("stitch.before")
    withdraw_damaged(store, fragments.damaged())
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        scratch = Path(folder)
        linked = link_video(fragments, things, products.link, scratch / "ids")
        done_linking = time.perf_counter()
        reach("stitch.after")
        published = publish_video(fragments, linked, classes, keep, products.link.min_hits, scratch)
        assets, preview = _put(store, plan, published, classes, products, scratch)
        used = linked.queries_used[linked.queries_used >= 0]
    return FinishedInput(
        plan=plan,
        assets=assets,
        preview=preview,
        counts=_counts(published, classes),
        segments=len(published.summary.ids),
        things_over_seams=0,
        suspects=0,
        missing_units=tuple(unit for unit in plan.units() if unit not in fragments.commits),
        commits={unit: commit.sha256 for unit, commit in fragments.commits.items()},
        empty_tiles=published.lost_frames,
        queries_used_max=int(used.max(initial=0)),
        queries_used_mean=float(used.mean()) if used.size else 0.0,
        stitch_seconds=done_linking - started,
        publish_seconds=time.perf_counter() - done_linking,
        failed_tiles=published.failed_frames,
    )


def _put(
    store: Store,
    plan: VideoPlan,
    published: PublishedVideo,
    classes: ClassTable,
    products: VideoProducts,
    scratch: Path,
) -> tuple[tuple[Asset, ...], str | None]:
    """Put all files into the store: (files of the published tree, key of the preview)."""
    preview = None
    files = [published.masks, published.tracks, published.frames]
    if products.preview or products.overlay:
        from panoptile.pipeline.overlay import write_overlay
        from panoptile.pipeline.video_preview import write_contact_sheet

        if products.overlay:
            write_overlay(
                scratch / "overlay.mp4", plan, published.masks, classes, photograph=products.photograph
            )
            files.append(scratch / "overlay.mp4")
        if products.preview:
            tables = published.masks, published.tracks
            write_contact_sheet(
                scratch / "preview.png", plan, *tables, classes, photograph=products.photograph
            )
            preview = preview_key(plan.key)
            store.put_file(preview, scratch / "preview.png")
    return tuple(put_asset(store, f"video/{plan.key}/{path.name}", path) for path in files), preview


def _counts(published: PublishedVideo, classes: ClassTable) -> tuple[ClassCount, ...]:
    """Tracks and pixels, over all frames, of each class."""
    summary = published.summary
    class_ids = summary.class_ids[summary.ids]
    tracks = np.bincount(class_ids, minlength=len(classes) + 1)
    pixels = np.bincount(class_ids, weights=summary.pixels[summary.ids], minlength=len(classes) + 1)
    return tuple(
        ClassCount(c.class_id, int(tracks[c.class_id]), int(pixels[c.class_id]))
        for c in classes
        if tracks[c.class_id]
    )
