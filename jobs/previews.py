"""``panoptile preview``: draw finished results again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from panoptile.jobs.exits import invalid
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.preview import MIN_SIDE, write_preview
from panoptile.pipeline.store import Store


def redraw(out: str, max_side: int) -> list[str]:
    """Draw every raster of a finished run; returns the paths of the pictures. Raises :class:`JobError`."""
    if not MIN_SIDE <= max_side <= 16_384:
        raise invalid(f"--max-side must lie between {MIN_SIDE} and 16384 pixels, got {max_side}.")
    try:
        store = Store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
    if not store.exists(layout.SUCCESS):
        raise invalid(f"{out} holds no finished run: there is no {layout.SUCCESS}.")
    try:
        classes = ClassTable.from_file(store.path(layout.CLASSES))
    except ValueError as e:
        raise invalid(str(e)) from e
    paths = []
    for key in store.keys("_state/plan"):
        info = RasterPlan.from_json(store.read_bytes(key)).info
        rasters = {
            name: store.path(f"rasters/{info.key}/{info.stem}.{name}.tif") for name in ("segments", "classes")
        }
        missing = [str(path) for path in rasters.values() if not path.exists()]
        if missing:
            raise invalid(f"{missing[0]} is not there: a preview is drawn from the label rasters (--raster).")
        target = f"previews/{info.key}.png"
        with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
            picture = Path(folder) / "preview.png"
            try:
                write_preview(
                    picture, info, rasters["segments"], rasters["classes"], classes, max_side=max_side
                )
            except OSError as e:
                raise invalid(f"Cannot draw {info.uri}: {e}") from e
            store.put_file(target, picture)
        paths.append(str(store.path(target)))
    return paths
