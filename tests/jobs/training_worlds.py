"""A synthetic world to learn from in a minute, in all forms in which training data comes.

Red squares and blue discs (things) on green and brown ground (stuff); 64 px a side per image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine

SIDE = 64
NAMES = ("square", "disc", "grass", "soil")
THINGS = (0, 1)
_COLOURS = np.array([(210, 60, 50), (60, 80, 220), (70, 150, 60), (140, 110, 80)], np.uint8)
EPSG = 32645
TRANSFORM = Affine(0.5, 0, 350_000, 0, -0.5, 3_050_000)


@dataclass(frozen=True, slots=True)
class World:
    """One image with its truth."""

    image: NDArray[np.uint8]
    """(3, H, W)."""
    labels: NDArray[np.uint8]
    """Label id of each pixel (H, W)."""
    ids: NDArray[np.int32]
    """Objects from 1; 0 in stuff."""


def world(seed: int, *, height: int = SIDE, width: int = SIDE) -> World:
    """Objects of 12-20 px in cells of 32, one a cell."""
    rng = np.random.default_rng(seed)
    labels = np.full((height, width), 2, np.uint8)
    labels[:, : width // 2] = 3
    ids = np.zeros((height, width), np.int32)
    rows, cols = np.mgrid[:height, :width]
    for row in range(0, height, 32):
        for col in range(0, width, 32):
            radius = int(rng.integers(6, 10))
            y, x = row + int(rng.integers(11, 21)), col + int(rng.integers(11, 21))
            is_disc = bool(rng.integers(2))
            inside = (
                np.hypot(rows - y, cols - x) <= radius
                if is_disc
                else (abs(rows - y) <= radius) & (abs(cols - x) <= radius)
            )
            labels[inside] = 1 if is_disc else 0
            ids[inside] = ids.max() + 1
    noise = rng.normal(0, 8, size=(3, height, width))
    image = _COLOURS[labels].transpose(2, 0, 1) + noise
    return World(image.clip(0, 255).astype(np.uint8), labels, ids)


def write_raster(path: Path, array: NDArray[np.generic], *, nodata: float | None = None) -> Path:
    """A GeoTIFF with a place."""
    bands = array if array.ndim == 3 else array[None]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=bands.shape[1],
        width=bands.shape[2],
        dtype=str(bands.dtype),
        crs=f"EPSG:{EPSG}",
        transform=TRANSFORM,
        nodata=nodata,
    ) as dataset:
        dataset.write(bands)
    return path


def outlines(scene: World) -> list[tuple[str, shapely.Geometry]]:
    """Class name and outline in map coordinates of every object and stuff area."""
    from rasterio.features import shapes

    regions = np.where(scene.ids > 0, scene.ids, 1000 + scene.labels.astype(np.int32)).astype(np.int32)
    found = []
    for geometry, value in shapes(regions, transform=TRANSFORM, connectivity=4):
        label = int(value) - 1000 if value >= 1000 else int(scene.labels[scene.ids == int(value)][0])
        found.append((NAMES[label], shapely.geometry.shape(geometry)))
    return found


def write_geoparquet(path: Path, rows: list[tuple[str | None, object]], *, epsg: int = EPSG) -> Path:
    """Polygons with a column ``kind``."""
    import geopandas

    kinds = [kind for kind, _ in rows]
    frame = geopandas.GeoDataFrame({"kind": kinds}, geometry=[g for _, g in rows], crs=f"EPSG:{epsg}")
    frame.to_parquet(path)
    return path


def write_coco(folder: Path, scenes: list[World], *, panoptic: bool) -> Path:
    """Images, label images and annotation file; returns the file."""
    from pycocotools import mask as coco_mask

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("panoptic.json" if panoptic else "instances.json")
    (folder / "panoptic").mkdir(exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for i, scene in enumerate(scenes):
        name = f"{i}.png"
        Image.fromarray(scene.image.transpose(1, 2, 0)).save(folder / name)
        height, width = scene.labels.shape
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        segments = np.where(scene.ids > 0, scene.ids, 300 + scene.labels.astype(np.int32))
        infos = []
        for number in np.unique(segments).tolist():
            mask = segments == number
            category = int(scene.labels[mask][0]) + 1
            infos.append({"id": number, "category_id": category, "iscrowd": 0})
            if not panoptic and number < 300:
                code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": category,
                        "iscrowd": 0,
                        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                    }
                )
        if panoptic:
            rgb = np.stack([segments % 256, segments // 256, np.zeros_like(segments)], axis=-1)
            Image.fromarray(rgb.astype(np.uint8)).save(folder / "panoptic" / name)
            annotations.append({"image_id": i, "file_name": name, "segments_info": infos})
    categories = [
        {"id": i + 1, "name": name, "isthing": int(i in THINGS)}
        for i, name in enumerate(NAMES)
        if panoptic or i in THINGS
    ]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def learner(folder: Path, *, seed: int = 0) -> Path:
    """A small checkpoint with a grid start, random otherwise, that learns this world in some hundred steps."""
    import torch

    from panoptile.model.config import Mask2FormerConfig
    from panoptile.model.grid_start import start_as_grid
    from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

    torch.manual_seed(seed)
    config = Mask2FormerConfig(
        backbone_config={"model_type": "efficientnet_lite0", "coordinate_frequencies": 3},
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=64,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        num_queries=18,
        no_object_weight=0.5,
        train_num_points=256,
        id2label=dict(enumerate(NAMES)),
        panoptile={
            "task": "panoptic",
            "thing_label_ids": list(THINGS),
            "query_grid": 4,
            "score_threshold": 0.5,
            "overlap_threshold": 0.6,
        },
    )
    model = Mask2FormerForUniversalSegmentation(config)
    pixels = torch.from_numpy(world(seed).image)[None].float() / 128 - 1
    start_as_grid(model, pixels, side=4, iterations=100)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"do_rescale": True, "rescale_factor": 1 / 128, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
        )
    )
    return folder
