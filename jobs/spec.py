"""A job: everything that ``panoptile segment`` was asked to do, as one frozen value."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from panoptile.pipeline.gdal_env import SKIPPED_DRIVERS
from panoptile.pipeline.link_options import LinkMethod, LinkOptions
from panoptile.pipeline.remote_uri import needs_one_process
from panoptile.pipeline.terms import Compression, Precision, Task

InputKind = Literal["auto", "raster", "video"]
"""What sources are; auto: videos by their names, the rest rasters."""
Decoder = Literal["auto", "pyav", "decord"]
"""What decodes videos; auto: decord where it is provably right, else PyAV."""

IfRunning = Literal["attach", "skip", "fail"]
"""What to do where another run of this very job is at work."""

LINK_OPTIONS = (
    "link",
    "max_age",
    "match_threshold",
    "iou_weight",
    "class_weight",
    "min_cosine",
    "min_iou",
    "birth_score",
    "min_hits",
    "camera_motion",
    "scene_cut",
)
MINVIS_IGNORES = tuple(name for name in LINK_OPTIONS if name not in ("link", "min_hits"))
"""Fields that ``relink`` can change without segmenting anew."""

LAYOUT_VERSION = 3
"""Raised whenever equal parameters can give other pixels or other files than before."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Sources, model and options of one job. Validated on creation."""

    sources: tuple[str, ...]
    out: str
    model: str = "builtin"
    task: Task | None = None
    labels: str | None = None
    fuse: tuple[str, ...] = ()
    tile: int = 512
    overlap: int = 128
    bands: tuple[int, ...] | None = None
    scale: str = "auto"
    gsd: float | None = None
    """Metres per pixel to work at; None: the raster's own."""
    nodata: float | None = None
    aoi: str | None = None
    classes: tuple[str, ...] = ()
    """Names of the classes to keep; empty keeps all."""
    exclude: tuple[str, ...] = ()
    min_area: float = 0.0
    """Square metres; pixels where a raster has no CRS."""
    score: float | None = None
    raster: bool = True
    vector: bool = True
    compression: Compression = "zstd"
    batch: int = 1
    threads: int = 1
    """Threads per replica on a CPU."""
    precision: Precision = "auto"
    compile: bool = False
    """Run the network through torch.compile, which rounds in other places."""
    kind: InputKind = "auto"
    fps: float | None = None
    """Frames a second of a video to segment; None: all, or every ``every``-th."""
    every: int | None = None
    start: float | None = None
    """Seconds from the first frame of a video."""
    end: float | None = None
    frame_size: int | None = None
    """Shorter side, in pixels, at which the network sees a frame; None: as it is."""
    sequence_fps: float | None = None
    """Frames a second of a directory of images."""
    decoder: Decoder = "auto"
    all_queries: bool = False
    """Keep the states of all queries of each frame: relinking by minvis needs them."""
    overlay: bool = False
    # How segments of frames become tracks: it needs no network, so it is part of the result's name, not of the job's.
    link: LinkMethod = "panoptile"
    max_age: float = 1.0
    match_threshold: float = 1.0
    iou_weight: float = 0.5
    class_weight: float = 0.3
    min_cosine: float = 0.5
    min_iou: float = 0.1
    birth_score: float = 0.5
    min_hits: int = 3
    camera_motion: bool = True
    scene_cut: float = 0.5
    mosaic: bool = False
    """The rasters are sheets of one: objects are whole across files."""
    regions: tuple[str, ...] = ()
    """Stuff classes whose connected regions are segments of their own; ("all",): every stuff class."""
    # What follows changes how the job runs, never a pixel.
    workers: int | None = None
    local: bool = False
    retries: int = 2
    max_failures: str = "10%"
    unit_timeout: float = 1800.0
    skip_invalid: bool = False
    """Inputs that fail their header check go to the dead letter instead of stopping the job."""
    if_running: IfRunning = "attach"
    incremental: bool = False
    """OUT grows: new and changed inputs are done, finished ones stay though the sources name them no more."""
    start_timeout: float = 600.0
    """Seconds until the first replica must be ready."""
    accelerator_type: str | None = None
    """Ray's name of the GPUs to use, such as H100."""
    max_pixels: float = 1e12
    """A raster that declares more is taken for a bomb."""
    allow_drivers: tuple[str, ...] = ()
    """GDAL drivers that may open an input; empty: those of gdal_env.ALLOWED_DRIVERS."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("Name at least one raster, folder or pattern.")
        if self.task not in (None, *get_args(Task)):
            raise ValueError(f"--task is panoptic, instance or semantic, got {self.task!r}.")
        if self.precision not in get_args(Precision):
            raise ValueError(f"--precision is fp32, bf16 or auto, got {self.precision!r}.")
        if not 64 <= self.tile <= 8192:
            raise ValueError(f"--tile must lie between 64 and 8192 pixels, got {self.tile}.")
        if not 0 <= self.overlap <= self.tile // 2:
            raise ValueError(
                f"--overlap must lie between 0 and half the tile ({self.tile // 2} px), got {self.overlap} px."
            )
        for name, low in (("batch", 1), ("threads", 1), ("retries", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"--{name} must be at least {low}, got {getattr(self, name)}.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}.")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"--score must lie between 0 and 1, got {self.score}.")
        if self.gsd is not None and not 0 < self.gsd < math.inf:
            raise ValueError(f"--gsd must be positive metres per pixel, got {self.gsd}.")
        if not 0 <= self.min_area < math.inf:
            raise ValueError(f"--min-area must be square metres from 0, got {self.min_area}.")
        if self.incremental and self.mosaic:
            raise ValueError("--incremental does not go with --mosaic: a new sheet changes the whole mosaic.")
        if self.skip_invalid and self.mosaic:
            raise ValueError(
                "--skip-invalid does not go with --mosaic: a sheet that is left out would be a hole in the result."
            )
        if self.if_running not in get_args(IfRunning):
            raise ValueError(f"--if-running is attach, skip or fail, got {self.if_running!r}.")
        if not 0 < self.start_timeout < math.inf:
            raise ValueError(f"--start-timeout must be positive seconds, got {self.start_timeout}.")
        if self.accelerator_type is not None and self.local:
            raise ValueError("--accelerator-type chooses nodes of a Ray cluster: leave it out with --local.")
        if not 1 <= self.max_pixels < math.inf:
            raise ValueError(f"--max-pixels must be a number of pixels from 1, got {self.max_pixels}.")
        pointing = sorted({d.upper() for d in self.allow_drivers} & set(SKIPPED_DRIVERS))
        if pointing:
            raise ValueError(
                f"--allow-drivers cannot allow {', '.join(pointing)}: such files name other files or hosts, which "
                "would be read."
            )
        if needs_one_process(self.out) and not self.local:
            raise ValueError(
                f"{self.out} is the memory of one process: add --local, or choose another place."
            )
        if not 0 < self.unit_timeout < math.inf:
            raise ValueError(f"--timeout-unit must be positive seconds, got {self.unit_timeout}.")
        if self.compression not in ("zstd", "deflate"):
            raise ValueError(f"--compression is zstd or deflate, got {self.compression!r}.")
        if not (self.raster or self.vector):
            raise ValueError("--no-raster and --no-vector together leave nothing to write: drop one of them.")
        both = sorted(set(self.classes) & set(self.exclude))
        if both:
            raise ValueError(f"{', '.join(both)}: named both by --classes and by --exclude.")
        self._check_video()
        self.allowed_failures(100)

    def _check_video(self) -> None:
        if self.kind not in get_args(InputKind):
            raise ValueError(f"--as is auto, raster or video, got {self.kind!r}.")
        if self.decoder not in get_args(Decoder):
            raise ValueError(f"--decoder is auto, pyav or decord, got {self.decoder!r}.")
        if self.fps is not None and self.every is not None:
            raise ValueError("--fps and --every exclude each other: give one of them.")
        for name in ("fps", "sequence_fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be positive frames a second, got {value}.")
        if self.every is not None and self.every < 1:
            raise ValueError(f"--every must be at least 1, got {self.every}.")
        if self.frame_size is not None and not 32 <= self.frame_size <= 8192:
            raise ValueError(f"--frame-size must lie between 32 and 8192 pixels, got {self.frame_size}.")
        if self.start is not None and not 0 <= self.start < math.inf:
            raise ValueError(f"--start must be seconds after the first frame, from 0, got {self.start}.")
        if self.end is not None and not self.end > 0:
            raise ValueError(f"--end must be positive seconds after the first frame, got {self.end}.")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"--end {self.end} must lie after --start {self.start}.")
        self.link_options()
        idle = [n for n in MINVIS_IGNORES if getattr(self, n) != self.__dataclass_fields__[n].default]
        if self.link == "minvis" and idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise ValueError(f"{flags}: nothing to --link minvis, which has no births, deaths or thresholds.")

    def link_options(self) -> LinkOptions:
        """How segments of frames become tracks. Raises ``ValueError``."""
        fields = self.link_fields()
        return LinkOptions(method=fields.pop("link"), **fields)  # type: ignore[arg-type]

    def link_fields(self) -> dict[str, object]:
        """What decides how segments of frames become tracks, besides the segments."""
        return {name: getattr(self, name) for name in LINK_OPTIONS}

    @property
    def keeps_all_queries(self) -> bool:
        """Whether fragments of videos hold the states of all queries."""
        return self.all_queries or self.link == "minvis"

    def allowed_failures(self, units: int) -> int:
        """How many of ``units`` may fail before the run stops; a skipped input counts as one unit, and as failed."""
        text = self.max_failures.strip()
        try:
            if text.endswith("%"):
                share = float(text[:-1])
                if 0 <= share <= 100:
                    return int(units * share // 100)
            elif int(text) >= 0:
                return int(text)
        except ValueError:
            pass
        raise ValueError(f"--max-failures is a number of units or a percentage such as 10%, got {text!r}.")

    def fingerprint_fields(self, model_sha256: str) -> dict[str, object]:
        """All parameters that can change a published byte, with file contents in place of file names."""
        fields: dict[str, object] = {
            name: getattr(self, name)
            for name in (
                "task",
                "fuse",
                "tile",
                "overlap",
                "bands",
                "scale",
                "gsd",
                "nodata",
                "min_area",
                "score",
                "raster",
                "vector",
                "compression",
                "batch",
                "threads",
                "precision",
                "compile",
                "mosaic",
                "kind",
                "fps",
                "every",
                "start",
                "end",
                "frame_size",
                "sequence_fps",
                "decoder",
                "overlay",
            )
        }
        fields["all_queries"] = self.keeps_all_queries
        fields["classes"] = sorted(self.classes)
        fields["exclude"] = sorted(self.exclude)
        fields["regions"] = sorted(self.regions)
        fields["labels"] = _content(self.labels)
        fields["aoi"] = _content(self.aoi)
        fields["model_sha256"] = model_sha256
        fields["layout_version"] = LAYOUT_VERSION
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    def fingerprint(self, model_sha256: str) -> str:
        """sha256 over :meth:`fingerprint_fields`: two jobs with the same one publish the same bytes."""
        from panoptile.pipeline.plan import fingerprint  # late: the command line reads this module for --help

        return fingerprint(self.fingerprint_fields(model_sha256))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> JobSpec:
        """The job that :meth:`to_json` wrote. Raises ``ValueError`` for a field that there is not."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"This version knows no job option {', '.join(unknown)}.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    def to_json(self) -> dict[str, object]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def _content(path: str | None) -> str | None:
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
