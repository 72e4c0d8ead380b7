"""From a job specification to a plan: every check that can be made before anything starts.

Nothing here writes: a job that fails leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from panoptile.jobs.console import counted
from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.incremental import KeptInputs, holds_job, kept_inputs
from panoptile.jobs.job_record import check_same_job, is_unstarted
from panoptile.jobs.lease import Observer
from panoptile.jobs.models import ResolvedModel, resolve_model
from panoptile.jobs.spec import JobSpec
from panoptile.jobs.state import cannot_write
from panoptile.jobs.survey import NONE_KEPT, Kept
from panoptile.jobs.video_sources import plan_video, split_sources
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.gdal_env import ALLOWED_DRIVERS
from panoptile.pipeline.ground_area import has_notable_scale, pixel_area_m2
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.mosaic import inspect_mosaic
from panoptile.pipeline.plan import RasterPlan, fingerprint
from panoptile.pipeline.raster_file import Limits
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store import StoreUnreachable, open_store
from panoptile.pipeline.video_plan import VideoPlan

HEADER_READERS = 8
"""Inputs whose headers are read at once."""


@dataclass(frozen=True, slots=True)
class SkippedInput:
    """An input that is left out: it failed its header check, or it is gone and so is its result."""

    uri: str
    stage: Literal["open", "header", "lost"]
    """Whether it could not be opened at all, is not what can be segmented, or was published once (--incremental) and can
    neither be kept nor made again."""
    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that may start."""

    spec: JobSpec
    model: ResolvedModel
    plans: tuple[AnyPlan, ...]
    fingerprint: str
    notes: tuple[str, ...]
    """Sentences for the user: what is missing or unusual."""
    uris: tuple[str, ...] = ()
    """Every input that the job names, the skipped ones too."""
    skipped: tuple[SkippedInput, ...] = ()
    """Inputs that --skip-invalid leaves out, and those that are lost (--incremental)."""
    kept: Kept = NONE_KEPT
    """Which of the inputs the sources do not name any more (--incremental)."""
    rested_at: int | None = 0
    """Epoch of the newest lease before anything was looked at; None where a run was, or may have been, at work then."""

    @property
    def tiles(self) -> int:
        """Tiles of rasters and frames of videos."""
        return sum(p.item_count for p in self.plans)

    @property
    def units(self) -> int:
        return sum(p.unit_count for p in self.plans)

    @property
    def pixels(self) -> int:
        return sum(p.pixels for p in self.plans)

    @property
    def input_bytes(self) -> int:
        return sum(p.info.size_bytes for p in self.plans)

    @property
    def videos(self) -> tuple[VideoPlan, ...]:
        return tuple(p for p in self.plans if isinstance(p, VideoPlan))

    def node_filter(self, plan: AnyPlan) -> NodeFilter:
        """Which segments of one input are published."""
        area = pixel_area_m2(plan.info) if isinstance(plan, RasterPlan) else None
        return node_filter(self.spec, self.model.classes, area)

    def allowed_failures(self) -> int:
        """Units that may fail: what --max-failures allows of units and skipped inputs, less the skipped inputs.

        A lost input does not count: however many are, what is new is done. Raises :class:`JobError` (exit 4) where the
        skipped inputs alone are too many.
        """
        refused = [s for s in self.skipped if s.stage != "lost"]
        skipped = len(refused)
        allowed = self.spec.allowed_failures(self.units + skipped) - skipped
        if allowed < 0:
            raise JobError(
                Exit.FAILED,
                f"{counted(skipped, 'input')} cannot be segmented, more than --max-failures {self.spec.max_failures} tolerates (a "
                f"skipped input counts as one unit; there are {self.units} others). The first: {refused[0].message}",
            )
        return allowed

    @property
    def lost(self) -> tuple[SkippedInput, ...]:
        """Inputs that were published once, and can neither be kept nor made again."""
        return tuple(s for s in self.skipped if s.stage == "lost")

    @property
    def skipped_sha256(self) -> str:
        """Tells which inputs are skipped: a result says nothing of those that have come since. Empty for none."""
        if not self.skipped:
            return ""
        return fingerprint({"skipped": sorted(s.uri for s in self.skipped)})

    @property
    def link_fields(self) -> dict[str, object]:
        """What decides how segments of videos are linked; empty where there are none."""
        return self.spec.link_fields() if self.videos else {}

    def result_name(self, plan: AnyPlan) -> str:
        """What decides the published bytes of one input, given its fragments."""
        return _result_name(self.spec, self.fingerprint, plan)

    def accepted_names(self, plan: AnyPlan) -> set[str]:
        """Names under which what was published of an input still stands."""
        if plan.key in self.kept.recorded:
            return _kept_names(self.spec, self.fingerprint, plan)
        return {self.result_name(plan)}


def _result_name(spec: JobSpec, job: str, plan: AnyPlan) -> str:
    """See :meth:`Prepared.result_name`."""
    if not isinstance(plan, RasterPlan):
        return fingerprint({"job": job, **spec.link_fields()})
    if (spec.vector or spec.min_area > 0) and has_notable_scale(plan.info):
        return fingerprint({"job": job, "areas": "ground"})  # earlier versions: of the map
    return job


def _kept_names(spec: JobSpec, job: str, plan: AnyPlan) -> set[str]:
    """The names of what stands though it cannot be published again: an earlier version's, too."""
    return {_result_name(spec, job, plan), job}


def prepare(spec: JobSpec, *, any_job: bool = False) -> Prepared:
    """Validate sources, model and options. Raises :class:`JobError` with exit code 2 (or 5, 6).

    ``any_job``: the output folder may hold another job; who asks only wants to know what would be run.
    """
    try:
        rested_at = _rested_at(spec.out)
        grows = spec.incremental and holds_job(spec.out)
        rasters, videos = split_sources(spec, may_be_empty=grows)
    except InputError as e:
        raise invalid(str(e)) from e
    except StoreUnreachable as e:
        raise cannot_write(spec.out, e) from e
    if spec.regions and videos and not rasters:
        raise invalid("--regions parts the stuff of rasters, but all sources are videos: leave it out.")
    model = resolve_model(spec)
    _check_class_names(spec, model.classes)
    if videos and model.channels != 3:
        raise invalid(f"A video has 3 channels, the network of --model wants {model.channels}.")
    uris = [*rasters, *videos]
    plans, skipped = _plan_all(spec, rasters, videos, model.channels, may_be_none=grows)
    for plan in plans:
        model.check_input(plan.info)
    job = spec.fingerprint(model.sha256)
    if not any_job:
        check_output(spec.out, job, spec, model.sha256, uris)
    kept = _kept_inputs(spec, job, plans) if spec.incremental else KeptInputs()
    skipped += _lost(kept.lost, {s.uri for s in skipped})
    notes = _notes(spec, plans, skipped)
    if spec.incremental and not uris:
        notes.append("nothing lies in the sources today: what was finished stays as it is.")
    if kept.unfinished:
        notes.append(
            f"left out: {counted(kept.unfinished, 'input')} of earlier runs, unfinished or lost, and gone from the sources."
        )
    plans, uris = (*plans, *kept.plans), [*uris, *(plan.uri for plan in kept.plans)]
    return Prepared(spec, model, plans, job, tuple(notes), tuple(uris), tuple(skipped), kept.kept, rested_at)


def _rested_at(out: str) -> int | None:
    """See :attr:`Prepared.rested_at`. Raises :class:`StoreUnreachable`; what else is wrong with OUT is said later."""
    try:
        sight = Observer(open_store(out)).look()
    except StoreUnreachable:
        raise
    except (OSError, ValueError):
        return 0
    return sight.epoch if sight.is_at_rest else None


def _kept_inputs(spec: JobSpec, job: str, plans: Sequence[AnyPlan]) -> KeptInputs:
    """Inputs of OUT that the sources do not name any more; see ``incremental``."""
    try:
        named = {plan.key for plan in plans}
        return kept_inputs(open_store(spec.out), job, named, partial(_kept_names, spec, job))
    except OSError as e:
        raise cannot_write(spec.out, e) from e


def _lost(uris: Sequence[str], skipped: Collection[str]) -> list[SkippedInput]:
    """Published inputs that are left out; one that is there and broken is told of as skipped."""
    message = (
        "{}, which the sources do not name any more, has lost both files of its result and fragments to make them from: "
        "left out. Put it back among the sources and run again."
    )
    return [
        SkippedInput(uri, "lost", "LostResult", message.format(shown(uri)))
        for uri in uris
        if uri not in skipped
    ]


def _notes(spec: JobSpec, plans: Sequence[AnyPlan], skipped: Sequence[SkippedInput]) -> list[str]:
    notes = [f"{'lost' if s.stage == 'lost' else 'skipped'}: {s.message}" for s in skipped]
    notes += _grouped((plan, note) for plan in plans for note in plan.info.notes)
    rasters = [plan for plan in plans if isinstance(plan, RasterPlan)]
    if spec.overlap < 16 and rasters:
        notes.append(
            f"--overlap {spec.overlap} is too little to make objects whole across tile borders: use 16 or more."
        )
    if spec.regions and len(rasters) < len(plans):
        notes.append(
            "--regions parts the stuff of the rasters alone: in a video stuff is one track per class."
        )
    if spec.min_area > 0:
        sentence = "--min-area counts pixels here, because the raster has no CRS."
        notes += _grouped((plan, sentence) for plan in rasters if pixel_area_m2(plan.info) is None)
    return notes


def _grouped(notes: Iterable[tuple[AnyPlan, str]]) -> list[str]:
    """Each note once, with the input that it is about, or how many they are and the first."""
    about: dict[tuple[str, str], list[str]] = {}
    for plan, note in notes:
        about.setdefault((plan.kind, note), []).append(shown(plan.uri))
    return [
        f"{uris[0]}: {note}" if len(uris) == 1 else f"{len(uris):,} {kind}s, the first {uris[0]}: {note}"
        for (kind, note), uris in about.items()
    ]


def _plan_all(
    spec: JobSpec, rasters: Sequence[str], videos: Sequence[str], channels: int, *, may_be_none: bool
) -> tuple[tuple[AnyPlan, ...], list[SkippedInput]]:
    """The inputs that can be segmented, cut into units, and those that --skip-invalid leaves out.

    ``may_be_none``: it may leave out all of them, because OUT holds others.
    """
    if spec.mosaic:
        return _plan_mosaic(spec, rasters, videos, channels), []
    uris = [*rasters, *videos]

    def plan(number: int) -> AnyPlan | SkippedInput:
        uri = uris[number]
        try:
            is_raster = number < len(rasters)
            return _plan_raster(spec, uri, channels) if is_raster else plan_video(spec, uri)
        except InputError as e:
            cause = e.__cause__ or e
            stage: Literal["open", "header"] = "open" if isinstance(cause, OSError) else "header"
            return SkippedInput(uri, stage, type(cause).__name__, str(e))

    try:
        with ThreadPoolExecutor(HEADER_READERS) as threads:  # waiting for disks and networks, mostly
            found = list(threads.map(plan, range(len(uris))))
    except StoreUnreachable as e:
        raise cannot_write(spec.out, e) from e
    plans = [p for p in found if not isinstance(p, SkippedInput)]
    wrong = [p for p in found if isinstance(p, SkippedInput)]
    if wrong and not (spec.skip_invalid and (plans or may_be_none)):
        first = "\n".join(w.message for w in wrong[:20])
        rest = "" if len(wrong) <= 20 else f"\n… and {len(wrong) - 20} more"
        hint = "\n--skip-invalid leaves such inputs out." if len(wrong) < len(uris) else ""
        raise invalid(first + rest + hint)
    return tuple(plans), wrong


def _plan_mosaic(
    spec: JobSpec, rasters: Sequence[str], videos: Sequence[str], channels: int
) -> tuple[AnyPlan, ...]:
    """All rasters as one; a sheet that does not fit, or a video, is refused."""
    if videos:
        raise invalid(f"--mosaic joins rasters, but {videos[0]} is a video: leave it out.")
    try:
        info = inspect_mosaic(
            rasters,
            bands=spec.bands,
            scale=spec.scale,
            gsd=spec.gsd,
            nodata=spec.nodata,
            aoi=spec.aoi,
            channels=channels,
            limits=_limits(spec),
        )
    except StoreUnreachable as e:
        raise cannot_write(spec.out, e) from e
    except InputError as e:
        raise invalid(str(e)) from e
    return (RasterPlan(info, spec.tile, spec.overlap),)


def _limits(spec: JobSpec) -> Limits:
    return Limits(pixels=int(spec.max_pixels), drivers=spec.allow_drivers or ALLOWED_DRIVERS)


def _plan_raster(spec: JobSpec, uri: str, channels: int) -> AnyPlan:
    info = inspect_raster(
        uri,
        bands=spec.bands,
        scale=spec.scale,
        gsd=spec.gsd,
        nodata=spec.nodata,
        aoi=spec.aoi,
        channels=channels,
        limits=_limits(spec),
    )
    return RasterPlan(info, spec.tile, spec.overlap)


def _check_class_names(spec: JobSpec, classes: ClassTable) -> None:
    for option, names in (("--classes", spec.classes), ("--exclude", spec.exclude), ("--fuse", spec.fuse)):
        for name in names:
            try:
                classes.by_name(name)
            except ValueError as e:
                raise invalid(f"{option}: {e}") from e
    try:
        region_classes(spec, classes)
    except ValueError as e:
        raise invalid(f"--regions: {e}") from e


def node_filter(spec: JobSpec, classes: ClassTable, pixel_area: float | None) -> NodeFilter:
    """The filter that --classes, --exclude and --min-area ask for, in published ids and pixels.

    ``pixel_area`` is in square metres; None where pixels have no size on the ground: areas are pixels then.
    """
    wanted = {classes.by_name(name).class_id for name in spec.classes} or {c.class_id for c in classes}
    wanted -= {classes.by_name(name).class_id for name in spec.exclude}
    keep = None if len(wanted) == len(classes) else frozenset(wanted)
    return NodeFilter(keep, math.ceil(spec.min_area / (pixel_area or 1.0)))


def region_classes(spec: JobSpec, classes: ClassTable) -> frozenset[int]:
    """Published ids of the stuff classes that --regions names. Raises :class:`JobError` for a thing (exit 2)."""
    if spec.regions == ("all",) and "all" not in {c.name for c in classes}:
        return frozenset(c.class_id for c in classes if not c.is_thing)
    named = [classes.by_name(name) for name in spec.regions]
    for c in named:
        if c.is_thing:
            raise invalid(f"--regions: {c.name} is a thing, whose objects are segments already: name stuff.")
    return frozenset(c.class_id for c in named)


def check_output(out: str, fingerprint: str, spec: JobSpec, model_sha256: str, uris: Sequence[str]) -> None:
    """Refuse a folder with foreign files (2), of another job (5), or that cannot be written (2)."""
    try:
        store = open_store(out)
    except ValueError as e:
        raise invalid(f"Cannot use it as the output folder: {e}") from e
    try:
        store.check_writable()
        entries = store.entries()
    except (StoreUnreachable, PermissionError) as e:
        raise cannot_write(out, e) from e
    except OSError as e:
        raise invalid(f"Cannot use {out} as the output folder: {e}.") from e
    foreign = [name for name in entries if name not in layout.KNOWN]
    if foreign:
        raise invalid(
            f"{out} holds files that are not panoptile's ({', '.join(foreign[:3])}): choose an empty folder with -o."
        )
    if layout.JOB not in entries and not store.exists(layout.JOB_COPY):
        if not entries or is_unstarted(store):
            return
        if not store.exists(layout.JOB):  # else another run has begun the job since the folder was listed
            raise invalid(f"{out} is not empty but holds no {layout.JOB}: choose an empty folder with -o.")
    check_same_job(
        store, fingerprint, spec.fingerprint_fields(model_sha256), list(uris), growing=spec.incremental
    )
