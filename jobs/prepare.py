"""From a job specification to a plan: every check that can be made before anything starts.

Nothing here writes: a job that fails leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from panoptile.jobs.exits import invalid
from panoptile.jobs.models import ResolvedModel, resolve_model
from panoptile.jobs.spec import JobSpec
from panoptile.jobs.state import cannot_write, check_same_job, is_unstarted
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.gdal_env import ALLOWED_DRIVERS
from panoptile.pipeline.ground_area import pixel_area_m2
from panoptile.pipeline.inputs import InputError, find_inputs
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_file import Limits
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store import StoreUnreachable, open_store


@dataclass(frozen=True, slots=True)
class SkippedInput:
    """An input that failed its header check."""

    uri: str
    stage: Literal["open", "header"]
    """Whether it could not be opened at all, or is not what can be segmented."""
    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that may start."""

    spec: JobSpec
    model: ResolvedModel
    plans: tuple[RasterPlan, ...]
    fingerprint: str
    notes: tuple[str, ...]
    """Sentences for the user: what is missing or unusual."""
    uris: tuple[str, ...] = ()
    """Every input that the job names, the skipped ones too."""
    skipped: tuple[SkippedInput, ...] = ()
    """Inputs that --skip-invalid leaves out."""

    @property
    def tiles(self) -> int:
        return sum(len(p.grid) for p in self.plans)

    @property
    def units(self) -> int:
        return sum(p.unit_count for p in self.plans)

    @property
    def pixels(self) -> int:
        return sum(p.info.height * p.info.width for p in self.plans)

    @property
    def input_bytes(self) -> int:
        return sum(p.info.size_bytes for p in self.plans)

    def node_filter(self, plan: RasterPlan) -> NodeFilter:
        """Which segments of one raster are published."""
        return node_filter(self.spec, self.model.classes, plan.info)


def prepare(spec: JobSpec, *, any_job: bool = False) -> Prepared:
    """Validate sources, model and options. Raises :class:`JobError` with exit code 2 (or 5, 6).

    ``any_job``: the output folder may hold another job; who asks only wants to know what would be run.
    """
    try:
        uris = find_inputs(spec.sources)
    except InputError as e:
        raise invalid(str(e)) from e
    except StoreUnreachable as e:
        raise cannot_write(spec.out, e) from e
    model = resolve_model(spec)
    _check_class_names(spec, model.classes)
    infos, skipped = _inspect_all(spec, uris, model.channels)
    plans = tuple(RasterPlan(info, spec.tile, spec.overlap) for info in infos)
    for plan in plans:
        model.check_input(plan.info)
    fingerprint = spec.fingerprint(model.sha256)
    if not any_job:
        check_output(spec.out, fingerprint, spec, model.sha256, uris)
    notes = [f"skipped: {s.message}" for s in skipped]
    notes += [f"{plan.info.uri}: {note}" for plan in plans for note in plan.info.notes]
    if spec.overlap < 16:
        notes.append(
            f"--overlap {spec.overlap} is too little to make objects whole across tile borders: use 16 or more."
        )
    if spec.min_area > 0:
        notes += [
            f"{plan.info.uri}: --min-area counts pixels here, because the raster has no CRS."
            for plan in plans
            if pixel_area_m2(plan.info) is None
        ]
    return Prepared(spec, model, plans, fingerprint, tuple(notes), tuple(uris), tuple(skipped))


def _inspect_all(
    spec: JobSpec, uris: Sequence[str], channels: int
) -> tuple[list[RasterInfo], list[SkippedInput]]:
    """The inputs that can be segmented, and those that --skip-invalid leaves out."""
    limits = Limits(pixels=int(spec.max_pixels), drivers=spec.allow_drivers or ALLOWED_DRIVERS)
    infos: list[RasterInfo] = []
    wrong: list[SkippedInput] = []
    for uri in uris:
        try:
            infos.append(
                inspect_raster(
                    uri,
                    bands=spec.bands,
                    scale=spec.scale,
                    gsd=spec.gsd,
                    nodata=spec.nodata,
                    aoi=spec.aoi,
                    channels=channels,
                    limits=limits,
                )
            )
        except StoreUnreachable as e:
            raise cannot_write(spec.out, e) from e
        except InputError as e:
            cause = e.__cause__ or e
            stage: Literal["open", "header"] = "open" if isinstance(cause, OSError) else "header"
            wrong.append(SkippedInput(uri, stage, type(cause).__name__, str(e)))
    if wrong and not (spec.skip_invalid and infos):
        first = "\n".join(w.message for w in wrong[:20])
        rest = "" if len(wrong) <= 20 else f"\n… and {len(wrong) - 20} more"
        hint = "\n--skip-invalid leaves such inputs out." if len(wrong) < len(uris) else ""
        raise invalid(first + rest + hint)
    return infos, wrong


def _check_class_names(spec: JobSpec, classes: ClassTable) -> None:
    for option, names in (("--classes", spec.classes), ("--exclude", spec.exclude), ("--fuse", spec.fuse)):
        for name in names:
            try:
                classes.by_name(name)
            except ValueError as e:
                raise invalid(f"{option}: {e}") from e


def node_filter(spec: JobSpec, classes: ClassTable, info: RasterInfo) -> NodeFilter:
    """The filter that --classes, --exclude and --min-area ask for, in published ids and pixels."""
    wanted = {classes.by_name(name).class_id for name in spec.classes} or {c.class_id for c in classes}
    wanted -= {classes.by_name(name).class_id for name in spec.exclude}
    keep = None if len(wanted) == len(classes) else frozenset(wanted)
    return NodeFilter(keep, math.ceil(spec.min_area / (pixel_area_m2(info) or 1.0)))


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
    if layout.JOB not in entries:
        if entries and not is_unstarted(store):
            raise invalid(f"{out} is not empty but holds no {layout.JOB}: choose an empty folder with -o.")
        return
    check_same_job(store, fingerprint, spec.fingerprint_fields(model_sha256), list(uris))
