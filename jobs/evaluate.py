"""``panoptile eval``: a result against ground truth, streaming over blocks or frames."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import shapely

from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import FinishedRun, is_run, open_run, stem_of
from panoptile.jobs.ground_truth import CocoTruth, GroundTruth, TruthOptions, open_truth
from panoptile.jobs.truth_classes import MatchedClasses, NamedClass, match_classes, parse_renames
from panoptile.pipeline.aoi import AreaOfInterest, read_aoi
from panoptile.pipeline.coco_panoptic import is_coco_panoptic, read_coco_panoptic
from panoptile.pipeline.contingency import Contingency, Labels, PairCounter
from panoptile.pipeline.count_labels import Describes, Mask, count_labels, described
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.instance_ap import AveragePrecision, InstanceAP
from panoptile.pipeline.label_source import LabelSource
from panoptile.pipeline.overlaps import ScoredClass, overlaps
from panoptile.pipeline.panoptic_quality import PanopticQuality, PanopticScores
from panoptile.pipeline.raster_file import RasterReadError
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.segmentation_tracking_quality import SegmentationTrackingQuality, TrackingScores
from panoptile.pipeline.semantic_iou import SemanticIoU, SemanticScores
from panoptile.pipeline.video_labels import VideoLabels
from panoptile.pipeline.video_quality import WINDOWS, VideoPanopticQuality, VideoScores
from panoptile.pipeline.window import Window


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What is judged, and which part of it."""

    truth: TruthOptions
    renames: tuple[str, ...] = ()
    """``TRUTH=RUN`` pairs of class names."""
    window: str | None = None
    """``ROW,COL,HEIGHT,WIDTH`` in pixels."""
    area: str | None = None
    """``MINX,MINY,MAXX,MAXY`` in the raster's CRS, or a GeoJSON file."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was measured."""

    kind: str
    """rasters, images or video."""
    names: tuple[str, ...]
    """What was compared."""
    pixels: int
    matched: MatchedClasses
    panoptic: PanopticScores
    semantic: SemanticScores
    instances: AveragePrecision
    """Of tracks, for a video."""
    video: tuple[VideoScores, TrackingScores] | None
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[ScoredClass, ...]:
        return self.matched.classes


def evaluate(out: str, options: EvalOptions, console: Console) -> Evaluation:
    """Compare OUT with the ground truth. Raises ``JobError``: exit 2 with one sentence for bad input."""
    with tempfile.TemporaryDirectory(prefix="panoptile-") as scratch:
        try:
            return _evaluate(out, options, console, Path(scratch))
        except (InputError, RasterReadError) as e:
            raise invalid(str(e)) from e


def _evaluate(out: str, options: EvalOptions, console: Console, scratch: Path) -> Evaluation:
    renames = parse_renames(options.renames)
    if not is_run(out) and is_coco_panoptic(out):
        return _evaluate_images(out, options, renames, scratch)
    run = open_run(out, scratch)
    if run.rasters and run.videos:
        raise invalid(f"{out} holds rasters and videos: evaluate runs of one kind.")
    truth = open_truth(options.truth, scratch, video=bool(run.videos))
    found = [NamedClass(c.name, c.is_thing) for c in run.classes]
    matched = match_classes(truth.classes, found, renames)
    if run.videos:
        return _evaluate_videos(run, truth, matched, options, console)
    return _evaluate_rasters(run, truth, matched, options, console)


class _Scores:
    """Every figure that label maps allow."""

    def __init__(self, classes: Sequence[ScoredClass]) -> None:
        self.panoptic = PanopticQuality(classes)
        self.semantic = SemanticIoU(classes)
        self.instances = InstanceAP(classes)
        self.pixels = 0

    def add(self, pairs: Contingency, truth: Describes, found: Describes) -> None:
        """Add one raster, image or video."""
        named = described(pairs, truth, found)
        shared = overlaps(pairs, *named)
        self.panoptic.add(shared)
        self.instances.add(shared)
        self.semantic.add(pairs, *named)
        self.pixels += int(pairs.pixels.sum())


# --- rasters and images ------------------------------------------------------------------------------------------


def _evaluate_rasters(
    run: FinishedRun, truth: GroundTruth, matched: MatchedClasses, options: EvalOptions, console: Console
) -> Evaluation:
    found_ids = {c.class_id: matched.found[c.name] for c in run.classes if c.name in matched.found}
    scores, names, without = _Scores(matched.classes), [], []
    for plan in run.rasters:
        info = plan.info
        with contextlib.ExitStack() as stack:
            labels = truth.raster(info, matched)
            if labels is None:
                without.append(info.stem)
                continue
            stack.callback(labels.close)
            found = run.raster(info, found_ids)
            stack.callback(found.close)
            _check_shape(info.stem, labels, found)
            console.say(f"compare {info.stem}")
            window = None if options.window is None else _window(options.window, info)
            mask = None if options.area is None else _mask(options.area, info)
            scores.add(count_labels(labels, found, window=window, mask=mask), labels, found)
            names.append(info.stem)
    if not names:
        raise invalid(
            f"The ground truth has nothing for {', '.join(without[:5])}: name its files like the rasters."
        )
    return _summary("rasters", names, scores, matched, (*matched.notes, _missing("rasters", without)))


def _evaluate_images(out: str, options: EvalOptions, renames: dict[str, str], scratch: Path) -> Evaluation:
    if options.window is not None or options.area is not None:
        raise invalid("--window and --area are for rasters; a COCO panoptic folder is compared whole.")
    found = read_coco_panoptic(out)
    truth = open_truth(options.truth, scratch, video=False)
    if not isinstance(truth, CocoTruth):
        raise invalid(f"{out} is COCO panoptic: its ground truth must be too, {options.truth.gt} is not.")
    names = [NamedClass(c.name, c.is_thing) for c in found.categories]
    matched = match_classes(truth.classes, names, renames)
    found_ids = {c.value: matched.found[c.name] for c in found.categories if c.name in matched.found}
    without = sorted(set(truth.coco.annotations) - set(found.annotations))
    if without:
        raise invalid(
            f"{out} has no prediction for {len(without)} images of the ground truth: {', '.join(without[:3])}."
        )
    scores = _Scores(matched.classes)
    for stem in sorted(truth.coco.annotations):
        sides = truth.image(stem, matched), found.source(stem, found_ids)
        _check_shape(stem, *sides)
        scores.add(count_labels(*sides), *sides)
    return _summary("images", sorted(truth.coco.annotations), scores, matched, matched.notes)


def _check_shape(name: str, truth: LabelSource, found: LabelSource) -> None:
    if truth.shape != found.shape:
        (a, b), (c, d) = truth.shape, found.shape
        raise invalid(f"{name}: the ground truth has {a}x{b} pixels (rows x columns), the result {c}x{d}.")


def _window(text: str, info: RasterInfo) -> Window:
    try:
        row, col, height, width = (int(v) for v in text.split(","))
        window = Window(row, col, height, width)
    except ValueError as e:
        raise invalid(f"--window wants ROW,COL,HEIGHT,WIDTH in pixels, got {text!r}.") from e
    if window.intersect(Window(0, 0, info.height, info.width)) != window:
        raise invalid(
            f"--window {text} reaches out of {info.stem}, which has {info.height}x{info.width} pixels."
        )
    return window


def _mask(text: str, info: RasterInfo) -> Mask:
    try:
        box = shapely.box(*(float(v) for v in text.split(",")))
    except (TypeError, ValueError):
        shape = (info.height, info.width)
        wkb, _ = read_aoi(text, crs_wkt=info.crs_wkt, transform=info.transform, shape=shape)
        return AreaOfInterest(wkb, info.transform).mask
    return AreaOfInterest(shapely.to_wkb(box, hex=True), info.transform).mask


# --- videos ------------------------------------------------------------------------------------------------------


def _evaluate_videos(
    run: FinishedRun, truth: GroundTruth, matched: MatchedClasses, options: EvalOptions, console: Console
) -> Evaluation:
    if options.window is not None or options.area is not None:
        raise invalid("--window and --area are for rasters; videos are compared whole.")
    found_ids = {c.class_id: matched.found[c.name] for c in run.classes if c.name in matched.found}
    scores, names, notes = _Scores(matched.classes), [], list(matched.notes)
    vpq, stq = VideoPanopticQuality(matched.classes, WINDOWS), SegmentationTrackingQuality(matched.classes)
    without = []
    for key in run.videos:
        labels = truth.video(key, matched, alone=len(run.videos) == 1)
        if labels is None:
            without.append(stem_of(key))
            continue
        console.say(f"compare {stem_of(key)}")
        found = run.video(key, found_ids)
        vpq.start_video(labels.describe, found.describe)
        total, frames, alone = PairCounter(), 0, Counter[str]()
        for _, left, right in both_frames(stem_of(key), labels, found, alone):
            counter = PairCounter()
            counter.add(left, right)
            vpq.add_frame(counter.result())
            total.include(counter.result())
            frames += 1
        pairs = total.result()
        scores.add(pairs, labels, found)
        stq.add(pairs, *described(pairs, labels, found))
        names.append(f"{stem_of(key)} ({frames} frames)")
        if alone:
            notes.append(f"{stem_of(key)}: frames that only {' or '.join(sorted(alone))} has were left out.")
    if not names:
        raise invalid(f"The ground truth has nothing for {', '.join(without[:5])}: name it like the videos.")
    video = (vpq.result(), stq.result())
    return _summary("video", names, scores, matched, (*notes, _missing("videos", without)), video)


def both_frames(
    name: str, truth: VideoLabels, found: VideoLabels, alone: Counter[str] | None = None
) -> Iterator[tuple[int, Labels, Labels]]:
    """(number, labels, labels) of the frames that both have, in order. Exit 2 without any, and for two sizes.

    ``alone``: takes up which side has frames that the other has not.
    """
    alone = Counter() if alone is None else alone
    left, right = truth.frames(), found.frames()
    a, b = next(left, None), next(right, None)
    common = 0
    while a is not None and b is not None:
        if a[0] == b[0]:
            if a[1].shape != b[1].shape:
                raise invalid(
                    f"{name}, frame {a[0]}: {a[1].shape} pixels on one side, {b[1].shape} on the other."
                )
            common += 1
            yield a[0], a[1], b[1]
            a, b = next(left, None), next(right, None)
        elif a[0] < b[0]:
            alone["the ground truth"] += 1
            a = next(left, None)
        else:
            alone["the result"] += 1
            b = next(right, None)
    alone.update({"the ground truth": 1} if a is not None else {"the result": 1} if b is not None else {})
    if not common:
        raise invalid(f"{name}: the two sides have no frame in common.")


def _summary(
    kind: str,
    names: Sequence[str],
    scores: _Scores,
    matched: MatchedClasses,
    notes: Sequence[str],
    video: tuple[VideoScores, TrackingScores] | None = None,
) -> Evaluation:
    return Evaluation(
        kind,
        tuple(names),
        scores.pixels,
        matched,
        scores.panoptic.result(),
        scores.semantic.result(),
        scores.instances.result(),
        video,
        tuple(filter(None, notes)),
    )


def _missing(what: str, stems: Sequence[str]) -> str:
    """A note on inputs without ground truth."""
    return f"no ground truth for {len(stems)} {what}: {', '.join(stems[:5])}" if stems else ""
