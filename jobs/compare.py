"""``panoptile compare``: how far two runs over the same inputs agree, and what changed."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from panoptile.jobs.console import Console
from panoptile.jobs.evaluate import both_frames
from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import FinishedRun, counterpart, open_run, stem_of
from panoptile.jobs.score_text import panoptic_fields, panoptic_lines
from panoptile.jobs.truth_classes import MatchedClasses, NamedClass, match_classes
from panoptile.pipeline.contingency import BACKGROUND, Contingency, PairCounter
from panoptile.pipeline.count_labels import Describes, count_labels, described
from panoptile.pipeline.ground_area import pixel_area_m2
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.overlaps import overlaps
from panoptile.pipeline.panoptic_quality import PanopticQuality, PanopticScores
from panoptile.pipeline.parquet_read import read_batches
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_file import RasterReadError
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.segment_changes import Change, Changes, thing_changes

from rasterio.crs import CRS  # isort: skip  (after raster_file, which sets GDAL's environment)
from rasterio.warp import transform as transform_points  # isort: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs."""

    names: tuple[str, ...]
    panoptic: PanopticScores
    """The first run in the place of the ground truth."""
    changes: dict[str, dict[str, int]]
    """Things of the ``old`` and the ``new`` run by what became of them."""
    km2: float | None
    """Ground that was compared; None without georeferencing, and for videos."""
    notes: tuple[str, ...]

    def things(self, side: str) -> int:
        return sum(self.changes[side].values())

    @property
    def ratio(self) -> float | None:
        """Things of the new run to those of the old one; None where the old one has none."""
        return self.things("new") / self.things("old") if self.things("old") else None


def compare(out_a: str, out_b: str, console: Console, *, geojson: str | None = None) -> Comparison:
    """Compare two finished runs. Raises ``JobError``: exit 2 with one sentence for runs that cannot be compared."""
    with tempfile.TemporaryDirectory(prefix="panoptile-") as scratch:
        a, b = open_run(out_a, Path(scratch)), open_run(out_b, Path(scratch))
        names = [[NamedClass(c.name, c.is_thing) for c in run.classes] for run in (a, b)]
        matched = match_classes(names[0], names[1], {})
        try:
            if a.videos or b.videos:
                if geojson is not None:
                    raise invalid("--geojson is for rasters: videos have no place on the ground.")
                return _compare_videos(a, b, matched, console)
            return _compare_rasters(a, b, matched, console, geojson)
        except (InputError, RasterReadError) as e:
            raise invalid(str(e)) from e


class _Sums:
    """What is counted over all inputs."""

    def __init__(self, matched: MatchedClasses) -> None:
        self.quality = PanopticQuality(matched.classes)
        self.changes: dict[str, dict[str, int]] = {}
        self._things = matched.things

    def add(self, pairs: Contingency, old: Describes, new: Describes) -> Changes:
        shared = overlaps(pairs, *described(pairs, old, new))
        self.quality.add(shared)
        changes = thing_changes(shared, self._things)
        for side, counts in changes.counts().items():
            total = self.changes.setdefault(side, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                total[name] += count
        return changes


def _ids(run: FinishedRun, by_name: Any) -> dict[int, int]:
    return {c.class_id: by_name[c.name] for c in run.classes if c.name in by_name}


def _compare_rasters(
    a: FinishedRun, b: FinishedRun, matched: MatchedClasses, console: Console, geojson: str | None
) -> Comparison:
    others = {plan.key: plan for plan in b.rasters}
    found = [counterpart(plan.key, [p.key for p in a.rasters], list(others)) for plan in a.rasters]
    common = [(plan, others[key]) for plan, key in zip(a.rasters, found, strict=True) if key is not None]
    if not common:
        raise invalid(f"{a.store.root} and {b.store.root} have no raster in common.")
    sums, features, area = _Sums(matched), [], 0.0
    for plan, other in common:
        _check_grids(plan, other)
        console.say(f"compare {plan.info.stem}")
        with contextlib.ExitStack() as stack:
            old = a.raster(plan.info, _ids(a, matched.truth), unclaimed=BACKGROUND)
            stack.callback(old.close)
            new = b.raster(other.info, _ids(b, matched.found))
            stack.callback(new.close)
            pairs = count_labels(old, new)
            changes = sums.add(pairs, old, new)
        seen = int(pairs.pixels[pairs.truth != 0].sum())
        area += seen * (pixel_area_m2(plan.info) or float("nan")) / 1e6
        if geojson is not None:
            features += _features(a, plan.info, "old", changes.old, changes.old_changes)
            features += _features(b, other.info, "new", changes.new, changes.new_changes)
    if geojson is not None:
        _write(geojson, {"type": "FeatureCollection", "features": features})
    alone = len(a.rasters) + len(b.rasters) - 2 * len(common)
    notes = (*matched.notes, *([f"{alone} rasters are in one of the runs alone"] if alone else []))
    names = tuple(plan.info.stem for plan, _ in common)
    return Comparison(names, sums.quality.result(), sums.changes, None if np.isnan(area) else area, notes)


def _check_grids(a: RasterPlan, b: RasterPlan) -> None:
    same = (a.info.height, a.info.width) == (b.info.height, b.info.width)
    if not same or not np.allclose(a.info.transform, b.info.transform, rtol=1e-9, atol=0):
        raise invalid(
            f"{a.info.stem}: the runs lie on different grids ({a.info.height}x{a.info.width} and "
            f"{b.info.height}x{b.info.width} pixels): compare runs with the same --gsd."
        )


def _compare_videos(a: FinishedRun, b: FinishedRun, matched: MatchedClasses, console: Console) -> Comparison:
    found = [counterpart(key, a.videos, b.videos) for key in a.videos]
    common = [(key, other) for key, other in zip(a.videos, found, strict=True) if other is not None]
    if not common:
        raise invalid(f"{a.store.root} and {b.store.root} have no video in common.")
    sums, notes = _Sums(matched), list(matched.notes)
    for key, other in common:
        console.say(f"compare {stem_of(key)}")
        old = a.video(key, _ids(a, matched.truth), rest=BACKGROUND)
        new = b.video(other, _ids(b, matched.found))
        counter, alone = PairCounter(), Counter[str]()
        for _, left, right in both_frames(stem_of(key), old, new, alone):
            counter.add(left, right)
        sums.add(counter.result(), old, new)
        if alone:
            notes.append(f"{stem_of(key)}: frames that only one of the two runs has were left out.")
    lone = len(a.videos) + len(b.videos) - 2 * len(common)
    notes += [f"{lone} videos are in one of the runs alone"] if lone else []
    names = tuple(stem_of(key) for key, _ in common)
    return Comparison(names, sums.quality.result(), sums.changes, None, tuple(notes))


# --- changed segments as GeoJSON ---------------------------------------------------------------------------------


def _features(
    run: FinishedRun, info: RasterInfo, side: str, labels: np.ndarray, changes: np.ndarray
) -> list[dict[str, Any]]:
    """Changed things of one run, in longitude and latitude (in the raster's coordinates where it has no CRS)."""
    table = run.segment_table(info)
    if table is None:
        raise invalid(f"{run.store.root} has no table of segments: --geojson needs runs with --vector.")
    changed = {int(i): str(c) for i, c in zip(labels, changes, strict=True) if c != Change.MATCHED}
    columns = ["segment_id", "class_name", "score", "area_px", "geometry"]
    wanted = pa.array(sorted(changed), pa.uint32())
    batches = read_batches(table, columns) if changed else ()
    found: list[dict[str, Any]] = []
    for row in (row for b in batches for row in b.filter(pc.is_in(b["segment_id"], wanted)).to_pylist()):
        shape = shapely.transform(shapely.from_wkb(row.pop("geometry")), lambda xy: _to_degrees(info, xy))
        properties = {"run": side, "change": changed[row["segment_id"]], "raster": info.stem, **row}
        found.append(
            {"type": "Feature", "geometry": json.loads(shapely.to_geojson(shape)), "properties": properties}
        )
    return found


def _to_degrees(info: RasterInfo, xy: np.ndarray) -> np.ndarray:
    if info.crs_wkt is None:
        return xy
    x, y = transform_points(CRS.from_wkt(info.crs_wkt), CRS.from_epsg(4326), xy[:, 0], xy[:, 1])
    return np.stack([x, y], axis=1)


def _write(path: str, document: dict[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(document), encoding="utf-8")
    except OSError as e:
        raise invalid(f"Cannot write {path}: {e.strerror or e}.") from e


# --- words ---------------------------------------------------------------------------------------------------------


def compare_fields(result: Comparison) -> dict[str, Any]:
    """What ``compare --json`` prints."""
    return {
        "compared": list(result.names),
        "self_pq": panoptic_fields(result.panoptic),
        "things": {"old": result.things("old"), "new": result.things("new"), "ratio": result.ratio},
        "things_per_km2": {
            side: None if not result.km2 else result.things(side) / result.km2 for side in ("old", "new")
        },
        "changes": result.changes,
        "notes": list(result.notes),
    }


def compare_text(result: Comparison) -> str:
    """The table that ``compare`` prints."""
    lines = [
        f"compared {_some(result.names)} (self-PQ: the first run in the place of the ground truth)",
        "",
        *panoptic_lines(result.panoptic),
        "",
    ]
    names = [c.value for c in Change]
    lines.append(f"{'things':<7}{'all':>9}" + "".join(f"{n:>11}" for n in names))
    for side in ("old", "new"):
        counts = result.changes[side]
        cells = "".join(f"{counts[n]:>11,}" if n in counts else f"{'':>11}" for n in names)
        lines.append(f"{side:<7}{result.things(side):>9,}{cells}")
    ratio = "" if result.ratio is None else f"objects new : old {result.ratio:.3f}"
    if ratio and result.km2:
        per = [f"{result.things(side) / result.km2:,.1f}" for side in ("old", "new")]
        ratio += f" ({per[0]} and {per[1]} per km²)"
    return "\n".join([*lines, "", ratio, *(f"note     {note}" for note in result.notes)]).rstrip()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
