"""A finished run as other commands read it: its classes, and the label maps that it published."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.results import published_keys
from panoptile.model.classes import ClassTable, SegmentClass
from panoptile.pipeline import layout
from panoptile.pipeline.contingency import VOID
from panoptile.pipeline.label_source import LabelMeaning, LabelRaster, LabelSource, SegmentRaster
from panoptile.pipeline.overlaps import UNSCORED, SegmentLabels
from panoptile.pipeline.parquet_read import read_columns
from panoptile.pipeline.plan import RasterPlan, kind_of
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.store import Store, StoreUnreachable, open_store
from panoptile.pipeline.video_labels import TrackTable


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """An output folder with ``_SUCCESS.json``."""

    store: Store
    classes: ClassTable
    rasters: tuple[RasterPlan, ...]
    videos: tuple[str, ...]
    """Keys of the videos."""
    scratch: Path
    """Where copies of remote files go."""

    def raster(self, info: RasterInfo, class_ids: Mapping[int, int], *, unclaimed: int = VOID) -> LabelSource:
        """Labels of one raster; ``class_ids`` gives the scored class of published class ids.

        ``unclaimed`` is the label of pixels with input that no segment claims.

        Scores come from the table of segments; without one (--no-vector) each segment counts as sure.
        """
        segments, classes = (f"rasters/{info.key}/{info.stem}.{n}.tif" for n in ("segments", "classes"))
        table = f"segments/{info.key}.parquet"
        if not self.store.exists(segments):
            raise invalid(
                f"{self.store.uri(segments)} is not there: run segment with --raster to compare labels."
            )
        if self.store.exists(table):
            stuff = frozenset(class_ids.get(c.class_id, UNSCORED) for c in self.classes if not c.is_thing)
            rows = _segment_table(self._local(table), class_ids)
            return SegmentRaster(self._local(segments), rows, unclaimed=unclaimed, stuff=stuff - {UNSCORED})
        things = frozenset(class_ids.get(c.class_id, UNSCORED) for c in self.classes if c.is_thing)
        meaning = LabelMeaning(
            class_ids, things - {UNSCORED}, unlabelled="void" if unclaimed == VOID else "background"
        )
        return LabelRaster(meaning, objects=str(self._local(segments)), classes=str(self._local(classes)))

    def video(self, key: str, class_ids: Mapping[int, int], *, rest: int = VOID) -> TrackTable:
        """Tracks of one video."""
        return TrackTable(self._local(f"video/{key}/masks.parquet"), class_ids, rest=rest)

    def segment_table(self, info: RasterInfo) -> Path | None:
        """The GeoParquet of one raster; None where the run wrote none."""
        key = f"segments/{info.key}.parquet"
        return self._local(key) if self.store.exists(key) else None

    def _local(self, key: str) -> Path:
        folder = self.scratch / str(abs(hash((self.store.root, key))))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return self.store.local_copy(key, folder)
        except FileNotFoundError as e:
            raise invalid(
                f"{self.store.uri(key)} is not there: the run is damaged, or without that product."
            ) from e
        except StoreUnreachable as e:
            raise JobError(Exit.UNREACHABLE, str(e)) from e


def damaged(store: Store, key: str) -> JobError:
    """A file of a finished run that cannot be read: exit 2."""
    return invalid(
        f"{store.uri(key)} is gone or damaged: panoptile verify {shlex.quote(store.root)} names all that is, and how it "
        "is made again."
    )


def published_classes(store: Store, scratch: Path) -> ClassTable:
    """The classes of a finished run. Raises :class:`JobError` (exit 2) where they cannot be read, ``OSError``."""
    try:
        return ClassTable.from_file(store.local_copy(layout.CLASSES, scratch))
    except (FileNotFoundError, ValueError) as e:
        raise damaged(store, layout.CLASSES) from e


def stem_of(key: str) -> str:
    """The input's sanitised stem in an output key."""
    return key[:-11]


def counterpart(key: str, mine: Sequence[str], others: Sequence[str]) -> str | None:
    """Which of ``others`` is the input ``key``, one of ``mine``: the same file, else the one of the same name.

    Raises ``JobError`` (exit 2) where files in several folders have that name, and none is the same.
    """
    if key in others:
        return key
    same = [k for k in others if stem_of(k) == stem_of(key)]
    if len(same) > 1 or (same and sum(stem_of(k) == stem_of(key) for k in mine) > 1):
        raise invalid(f"Several inputs are called {stem_of(key)}: compare runs over one of them each.")
    return same[0] if same else None


def is_run(out: str) -> bool:
    """``out`` holds a finished run; False for anything that cannot be read as one."""
    try:
        return open_store(out).exists(layout.SUCCESS)
    except (OSError, ValueError):
        return False


def open_run(out: str, scratch: Path) -> FinishedRun:
    """Raises ``JobError``: exit 2 for a folder without a finished run, 6 for a store that cannot be reached."""
    try:
        store = open_store(out)
        if not store.exists(layout.SUCCESS):
            raise invalid(f"{out} holds no finished run: there is no {layout.SUCCESS}.")
        classes = _class_table(json.loads(store.read_bytes(layout.CLASSES)))
        rasters, videos = [], []
        for name in published_keys(store):
            data = store.read_bytes(layout.plan_key(name))
            if kind_of(data) == "raster":
                rasters.append(RasterPlan.from_json(data))
            else:
                videos.append(name)
    except StoreUnreachable as e:
        raise JobError(Exit.UNREACHABLE, str(e)) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise invalid(f"{out} cannot be read as a finished run: {e}") from e
    return FinishedRun(store, classes, tuple(rasters), tuple(videos), scratch)


def _class_table(rows: list[dict[str, object]]) -> ClassTable:
    return ClassTable(
        tuple(
            SegmentClass(i, str(row["name"]), bool(row["is_thing"]), _color(str(row["color"])))
            for i, row in enumerate(rows)
        )
    )


def _color(text: str) -> tuple[int, int, int]:
    r, g, b = bytes.fromhex(text.removeprefix("#"))
    return r, g, b


def _segment_table(path: Path, class_ids: Mapping[int, int]) -> SegmentLabels:
    """Classes and scores of the segments; stuff has several rows a segment, all of which say the same."""
    try:
        rows = read_columns(path, ["segment_id", "class_id", "score"])
    except (OSError, pa.ArrowException) as e:
        raise invalid(f"{path} is no table of segments: {e}") from e
    ids, first = np.unique(rows["segment_id"].to_numpy(), return_index=True)
    classes = rows["class_id"].to_numpy()[first]
    known, index = np.unique(classes, return_inverse=True)
    scored = np.array([class_ids.get(int(c), UNSCORED) for c in known], np.int64)
    return SegmentLabels.of(ids.astype(np.int64), scored[index], scores=rows["score"].to_numpy()[first])
