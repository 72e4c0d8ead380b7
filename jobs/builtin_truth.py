"""The truth behind the held-out figures of Banepa as label rasters, for ``panoptile eval``.

Run: ``python -m panoptile.jobs.builtin_truth --banepa FOLDER --to FOLDER``. Writes ``objects.tif`` (hand-drawn buildings)
and ``classes.tif`` (building, and vegetation and ground by a rule on colours; 255 where the rule is silent), both on the
raster's grid. Tree crowns are not labelled there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.builtin_data import BANEPA_GSD_M
from panoptile.pipeline.builtin_labels import BUILDING, GROUND, VEGETATION, building_scene

import rasterio  # isort: skip

CLASSES = {BUILDING: ("building", True), VEGETATION: ("vegetation", False), GROUND: ("ground", False)}
"""Name and kind by the label of the scene; their values in ``classes.tif`` count from 1 in this order."""
SILENT = 255


def write_truth(banepa: Path, to: Path) -> tuple[Path, Path]:
    """Write both rasters into the folder ``to``; returns their paths."""
    photo = banepa / "banepa_rgb_cog.tif"
    scene = building_scene(photo, banepa / "banepa_instances_cog.tif", gsd_m=BANEPA_GSD_M)
    values = np.full(scene.labels.shape, SILENT, np.uint8)
    for value, label in enumerate(CLASSES, start=1):
        values[scene.labels == label] = value
    to.mkdir(parents=True, exist_ok=True)
    rows = [{"class_id": i, "name": n, "is_thing": t} for i, (n, t) in enumerate(CLASSES.values(), start=1)]
    return (
        _write(to / "objects.tif", scene.ids.astype(np.uint16), photo, None),
        _write(to / "classes.tif", values, photo, json.dumps(rows)),
    )


def _write(path: Path, band: NDArray[np.unsignedinteger], like: Path, classes: str | None) -> Path:
    with rasterio.open(like) as photo:
        place = {"crs": photo.crs, "transform": photo.transform}
    height, width = band.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=1, dtype=band.dtype, compress="deflate",
        tiled=True, nodata=None if classes is None else SILENT, **place,
    ) as dataset:  # fmt: skip
        dataset.write(band, 1)
        if classes is not None:
            dataset.update_tags(CLASSES=classes)
    return path


def main() -> None:
    """Write the rasters and say where they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--banepa", type=Path, required=True, help="folder with the Banepa rasters")
    parser.add_argument("--to", type=Path, required=True, help="folder to write into")
    options = parser.parse_args()
    for path in write_truth(options.banepa, options.to):
        print(path)


if __name__ == "__main__":
    main()
