"""``panoptile preview``: draw finished results again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import damaged, published_classes
from panoptile.jobs.results import published_keys
from panoptile.jobs.source_change import check_segmented, is_gone
from panoptile.jobs.state import cannot_write
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan, plan_from_json
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.preview import MIN_SIDE, NoPhotograph, write_preview
from panoptile.pipeline.store import Store, StoreUnreachable, open_store
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_preview import write_contact_sheet


@dataclass(frozen=True, slots=True)
class Redrawn:
    """What became of the pictures of a finished run."""

    paths: tuple[str, ...]
    """Of those that were drawn."""
    left: tuple[str, ...]
    """URIs of inputs whose source is gone: their pictures show it and were left as they are."""


def redraw(out: str, max_side: int) -> Redrawn:
    """Draw every input of a finished run whose source is there; where a picture is missing, from the labels alone.

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
        return _redraw_all(store, max_side)
    except OSError as e:
        raise cannot_write(out, e, started=True) from e


def _redraw_all(store: Store, max_side: int) -> Redrawn:
    keys, gone = published_keys(store), set[str]()
    for key in keys:
        plan = _plan(store, key)
        if is_gone(plan):
            gone.add(key)
        else:
            check_segmented(store, plan)
    paths, left = [], []
    for key in keys:
        plan = _plan(store, key)
        if key in gone and store.exists(layout.preview_key(key)):
            left.append(plan.uri)
        else:
            paths.append(_redraw(store, plan, max_side, photograph=key not in gone))
    return Redrawn(tuple(paths), tuple(left))


def _plan(store: Store, key: str) -> AnyPlan:
    plan_key = layout.plan_key(key)
    try:
        return plan_from_json(store.read_bytes(plan_key))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as e:
        raise damaged(store, plan_key) from e


def _redraw(store: Store, plan: AnyPlan, max_side: int, *, photograph: bool) -> str:
    if isinstance(plan, VideoPlan):
        return _redraw_video(store, plan, max_side, photograph)
    return _redraw_raster(store, plan, max_side, photograph)


def _redraw_video(store: Store, plan: VideoPlan, max_side: int, photograph: bool) -> str:
    tables = [f"video/{plan.key}/{name}.parquet" for name in ("masks", "tracks")]
    target = layout.preview_key(plan.key)
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        scratch = Path(folder)
        try:
            classes = published_classes(store, scratch)
            masks, tracks = (store.local_copy(key, scratch) for key in tables)
            sheet = scratch / "preview.png"
            write_contact_sheet(sheet, plan, masks, tracks, classes, max_side=max_side, photograph=photograph)
        except (ValueError, KeyError) as e:  # KeyError: a raster without the tag that names its classes
            raise invalid(f"Cannot draw {plan.uri}: {e}. See panoptile verify {store.root}.") from e
        except StoreUnreachable:
            raise
        except OSError as e:
            raise invalid(f"Cannot draw {plan.uri}: {e}") from e
        store.put_file(target, scratch / "preview.png")
    return store.uri(target)


def _redraw_raster(store: Store, plan: RasterPlan, max_side: int, photograph: bool) -> str:
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
            photo = None if photograph else NoPhotograph()
            write_preview(picture, info, segments_tif, classes_tif, classes, max_side=max_side, photo=photo)
        except (ValueError, KeyError) as e:  # KeyError: a raster without the tag that names its classes
            raise invalid(f"Cannot draw {info.uri}: {e}. See panoptile verify {store.root}.") from e
        except StoreUnreachable:
            raise
        except OSError as e:
            raise invalid(f"Cannot draw {info.uri}: {e}") from e
        store.put_file(target, picture)
    return store.uri(target)
