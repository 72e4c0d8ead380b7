"""``panoptile preview``: draw finished results again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import damaged, published_classes
from panoptile.jobs.results import published_keys
from panoptile.jobs.source_change import check_segmented
from panoptile.jobs.state import cannot_write
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan, plan_from_json
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.preview import MIN_SIDE, write_preview
from panoptile.pipeline.store import Store, StoreUnreachable, open_store
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_preview import write_contact_sheet


def redraw(out: str, max_side: int) -> list[str]:
    """Draw every input of a finished run; returns the paths of the pictures.

    Raises :class:`JobError`: exit 2, before anything is drawn, where a source is not what was segmented; 2 where the run
    is damaged, 4 or 6 where a picture cannot be written.
    """
    if not MIN_SIDE <= max_side <= 16_384:
        raise invalid(f"--max-side must lie between {MIN_SIDE} and 16384 pixels, got {max_side}.")
    try:
        store = open_store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
    try:
        if not store.exists(layout.SUCCESS):
            raise invalid(f"{out} holds no finished run: there is no {layout.SUCCESS}.")
        keys = published_keys(store)
        for key in keys:
            check_segmented(store, _plan(store, key))
        return [_redraw(store, _plan(store, key), max_side) for key in keys]
    except OSError as e:
        raise cannot_write(out, e, started=True) from e


def _plan(store: Store, key: str) -> AnyPlan:
    plan_key = layout.plan_key(key)
    try:
        return plan_from_json(store.read_bytes(plan_key))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as e:
        raise damaged(store, plan_key) from e


def _redraw(store: Store, plan: AnyPlan, max_side: int) -> str:
    if isinstance(plan, VideoPlan):
        return _redraw_video(store, plan, max_side)
    return _redraw_raster(store, plan, max_side)


def _redraw_video(store: Store, plan: VideoPlan, max_side: int) -> str:
    tables = [f"video/{plan.key}/{name}.parquet" for name in ("masks", "tracks")]
    target = layout.preview_key(plan.key)
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        scratch = Path(folder)
        try:
            classes = published_classes(store, scratch)
            masks, tracks = (store.local_copy(key, scratch) for key in tables)
            write_contact_sheet(scratch / "preview.png", plan, masks, tracks, classes, max_side=max_side)
        except (ValueError, KeyError) as e:  # KeyError: a raster without the tag that names its classes
            raise invalid(f"Cannot draw {plan.uri}: {e}. See panoptile verify {store.root}.") from e
        except StoreUnreachable:
            raise
        except OSError as e:
            raise invalid(f"Cannot draw {plan.uri}: {e}") from e
        store.put_file(target, scratch / "preview.png")
    return store.uri(target)


def _redraw_raster(store: Store, plan: RasterPlan, max_side: int) -> str:
    info = plan.info
    rasters = [f"rasters/{info.key}/{info.stem}.{name}.tif" for name in ("segments", "classes")]
    for key in rasters:
        if not store.exists(key):
            raise invalid(
                f"{store.uri(key)} is not there: a preview is drawn from the label rasters (--raster)."
            )
    target = layout.preview_key(info.key)
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        scratch = Path(folder)
        picture = scratch / "preview.png"
        try:
            classes = published_classes(store, scratch)
            segments_tif, classes_tif = (store.local_copy(key, scratch) for key in rasters)
            write_preview(picture, info, segments_tif, classes_tif, classes, max_side=max_side)
        except (ValueError, KeyError) as e:  # KeyError: a raster without the tag that names its classes
            raise invalid(f"Cannot draw {info.uri}: {e}. See panoptile verify {store.root}.") from e
        except StoreUnreachable:
            raise
        except OSError as e:
            raise invalid(f"Cannot draw {info.uri}: {e}") from e
        store.put_file(target, picture)
    return store.uri(target)
