"""Tracks of a video in the formats of other tools: YouTube-VIS JSON, and panoptic video as VIPSeg has it (JSON + PNG).

Both are read from the published tables; the video itself is not needed. Ids are track ids, categories are published
class ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from panoptile.model.classes import ClassTable
from panoptile.pipeline.parquet_read import open_parquet, read_columns
from panoptile.pipeline.video_tables import FrameMasks, read_masks

_TRACKS_AT_ONCE = 256
MAX_RGB_ID = 2**24 - 1
"""Largest id that a colour can hold."""


def write_ytvis(path: Path, name: str, masks: Path, tracks: Path, frames: Path, classes: ClassTable) -> int:
    """Write one video's tracks of things as a YouTube-VIS JSON file; returns how many there are.

    Each annotation has one run-length code (or null) per frame of ``frames.parquet``. Written track by track: memory is
    that of ``_TRACKS_AT_ONCE`` tracks.
    """
    numbers = read_columns(frames, ["frame"])["frame"].to_numpy()
    height, width = _size(masks)
    video = {
        "id": 1,
        "width": width,
        "height": height,
        "length": len(numbers),
        "file_names": [f"{name}/{frame:08d}" for frame in numbers.tolist()],
        "frame_numbers": numbers.tolist(),  # ours: which frames of the file these are, for runs over every n-th
    }
    categories = [{"id": c.class_id, "name": c.name, "supercategory": c.name} for c in classes if c.is_thing]
    head = {"info": {"description": name}, "videos": [video], "categories": categories}
    written = 0
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for annotation in _ytvis_annotations(masks, tracks, numbers):
            file.write(("" if written == 0 else ",\n") + json.dumps(annotation))
            written += 1
        file.write("]}\n")
    return written


def write_panoptic_video(folder: Path, name: str, masks: Path, classes: ClassTable) -> int:
    """Write ``panoptic.json`` and ``panomasksRGB/<name>/<frame>.png`` into ``folder``; returns the number of frames.

    A pixel's id is R + 256 G + 65,536 B, 0 where nothing was found. Raises ``ValueError`` for ids beyond 24 bits.
    """
    pictures = folder / "panomasksRGB" / name
    pictures.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for frame in read_masks(masks):
        labels = frame.labels()
        if labels.max(initial=0) > MAX_RGB_ID:
            raise ValueError(f"Track {labels.max()} does not fit into a colour: at most {MAX_RGB_ID}.")
        file_name = f"{frame.frame:08d}.png"
        Image.fromarray(_as_rgb(labels)).save(pictures / file_name)
        height, width = frame.shape
        image = {"id": frame.frame, "file_name": file_name, "height": height, "width": width}
        images.append(image)
        annotations.append(
            {"image_id": frame.frame, "file_name": file_name, "segments_info": _segments_info(frame, labels)}
        )
    document = {
        "videos": [{"video_id": name, "images": images}],
        "annotations": [{"video_id": name, "annotations": annotations}],
        "categories": [
            {"id": c.class_id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)}
            for c in classes
        ],
    }
    (folder / "panoptic.json").write_text(json.dumps(document), encoding="utf-8")
    return len(images)


def _ytvis_annotations(masks: Path, tracks: Path, numbers: NDArray[np.int32]) -> Iterator[dict[str, Any]]:
    table = read_columns(tracks, ["track_id", "class_id", "is_thing", "mean_score"])
    rows = table.filter(table["is_thing"]).to_pylist()
    place = {frame: i for i, frame in enumerate(numbers.tolist())}
    for start in range(0, len(rows), _TRACKS_AT_ONCE):
        batch = rows[start : start + _TRACKS_AT_ONCE]
        found = _masks_of(masks, [row["track_id"] for row in batch])
        for row in batch:
            own = found[row["track_id"]]
            size = own[0]["rle"]["size"]
            by_place = {place[mask["frame"]]: mask for mask in own}
            every = [by_place.get(i) for i in range(len(numbers))]
            yield {
                "id": row["track_id"],
                "video_id": 1,
                "category_id": row["class_id"],
                "iscrowd": 0,
                "score": row["mean_score"],
                "height": size[0],
                "width": size[1],
                "length": len(numbers),
                "segmentations": [None if m is None else m["rle"] for m in every],
                "bboxes": [None if m is None else m["bbox"] for m in every],
                "areas": [None if m is None else m["area"] for m in every],
            }


def _masks_of(masks: Path, track_ids: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Rows of some tracks, in time."""
    found: dict[int, list[dict[str, Any]]] = {track: [] for track in track_ids}
    wanted, columns = pa.array(track_ids, pa.int32()), ["track_id", "frame", "bbox", "area", "rle"]
    with open_parquet(masks) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            for row in table.filter(pc.is_in(table["track_id"], wanted)).to_pylist():
                found[row["track_id"]].append(row)
    return found


def _segments_info(frame: FrameMasks, labels: NDArray[np.int32]) -> list[dict[str, Any]]:
    from scipy import ndimage

    index = np.searchsorted(frame.track_ids, labels) + 1
    index[labels == 0] = 0
    areas = np.bincount(index.ravel(), minlength=len(frame.track_ids) + 1)
    boxes = ndimage.find_objects(index, max_label=len(frame.track_ids))
    info = []
    for i, (rows, cols) in enumerate(boxes):
        box = [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start]
        info.append(
            {
                "id": int(frame.track_ids[i]),
                "category_id": int(frame.class_ids[i]),
                "iscrowd": 0,
                "bbox": [int(v) for v in box],
                "area": int(areas[i + 1]),
            }
        )
    return info


def _as_rgb(labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    return np.stack([labels & 255, labels >> 8 & 255, labels >> 16 & 255], axis=-1).astype(np.uint8)


def _size(masks: Path) -> tuple[int, int]:
    """(height, width) of the frames."""
    for frame in read_masks(masks):
        return frame.shape
    return 0, 0
