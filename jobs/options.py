"""The options that several commands share, each described once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Out = Annotated[
    str | None, typer.Option("-o", "--out", metavar="OUT", help="Output folder; made if it is not there.")
]
JobFolder = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a job: what -o named.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="PATH|ID",
        help="Checkpoint folder, hub id, 'builtin', or echo:LABELS.tif[,CLASSES.tif] (diagnostics: returns "
        "the label raster's own crop, so that anything wrong in the result is the pipeline's; .npy of frames "
        "for a video).",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="TASK", help="panoptic, instance or semantic; default: the checkpoint's own."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help='Class table, JSON: [{"name": "house", "is_thing": true}, …] in label order.'
    ),
]
Fuse = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS,…", help="Classes whose segments are fused into one per tile; default: all stuff."
    ),
]
TileSide = Annotated[int, typer.Option("--tile", metavar="PX", help="Side of a tile.")]
Overlap = Annotated[
    int, typer.Option(metavar="PX", help="Overlap of neighbouring tiles, at most half a tile.")
]
Bands = Annotated[
    str | None,
    typer.Option(metavar="N,N,N", help="Bands that the network sees, from 1; default: red, green, blue."),
]
Scale = Annotated[
    str,
    typer.Option(
        metavar="auto|MIN,MAX|pA,pB",
        help="What becomes 0…255, once for the whole raster: numbers or percentiles; auto: uint8 as it is, else p2,p98.",
    ),
]
Gsd = Annotated[
    float | None, typer.Option(metavar="M", help="Metres per pixel to work at; default: the raster's own.")
]
Nodata = Annotated[
    float | None,
    typer.Option(
        metavar="VALUE",
        help="Value that means 'no input', in place of the file's; -1 switches off the file's.",
    ),
]
Aoi = Annotated[
    str | None, typer.Option(metavar="FILE", help="GeoJSON polygons; pixels outside are no input.")
]
Classes = Annotated[str | None, typer.Option(metavar="CLASS,…", help="Publish these classes alone.")]
Exclude = Annotated[str | None, typer.Option(metavar="CLASS,…", help="Do not publish these classes.")]
RegionClasses = Annotated[
    str | None,
    typer.Option(
        "--regions",
        metavar="CLASS,…|all",
        help="Stuff classes of rasters whose connected regions become segments of their own: lakes, fields.",
    ),
]
MinArea = Annotated[
    float, typer.Option(metavar="M2", help="Drop smaller segments; square metres (pixels without a CRS).")
]
Score = Annotated[
    float | None,
    typer.Option(metavar="T", help="Lowest score of a segment, 0-1; default: the checkpoint's own."),
]
Raster = Annotated[bool, typer.Option("--raster/--no-raster", help="Write label COGs.")]
Vector = Annotated[bool, typer.Option("--vector/--no-vector", help="Write GeoParquet.")]
CompressionName = Annotated[
    str, typer.Option(metavar="zstd|deflate", help="Of the label COGs; deflate for old readers.")
]
Batch = Annotated[int, typer.Option(metavar="N", help="Tiles per forward pass.")]
Threads = Annotated[int, typer.Option(metavar="N", help="Threads per replica on a CPU.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "--gpus",
        metavar="N",
        help="Replicas; default: the GPUs, else the cores that memory allows.",
    ),
]
Local = Annotated[
    bool,
    typer.Option(
        "--local/--no-local",
        show_default=False,
        help="Run on this machine without Ray, each replica in a process of its own.",
    ),
]
Retries = Annotated[int, typer.Option(metavar="N", help="Further tries of a unit that failed.")]
MaxFailures = Annotated[
    str,
    typer.Option(
        metavar="N|P%",
        help="Units that may fail before the run stops (exit 4); else exit 3. A skipped input counts as a unit.",
    ),
]
TimeoutUnit = Annotated[
    str, typer.Option("--timeout-unit", metavar="TIME", help="How long a unit may run: 90, 90s, 10m or 1h.")
]
PrecisionName = Annotated[
    str,
    typer.Option(
        metavar="auto|fp32|bf16",
        help="Numbers that the network computes in; auto: bf16 on a GPU that has it, else fp32.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        show_default=False,
        help="Run the network through torch.compile. It costs minutes of compiling before the first tile, per replica; see tests/benchmarks/forward.py --compile for the gain.",
    ),
]
SkipInvalid = Annotated[
    bool,
    typer.Option(
        "--skip-invalid/--no-skip-invalid",
        show_default=False,
        help="Leave out inputs that cannot be opened (they go to the dead letter, exit 3) instead of refusing the job.",
    ),
]
IfRunning = Annotated[
    str,
    typer.Option(
        metavar="attach|skip|fail",
        help="Where another run of this job is at work: follow it to its end, leave it alone (exit 0), or exit 5.",
    ),
]
Incremental = Annotated[
    bool,
    typer.Option(
        "--incremental/--no-incremental",
        show_default=False,
        help="Let OUT grow: do new and changed inputs, keep finished ones though they are gone from SRC.",
    ),
]
Mosaic = Annotated[
    bool,
    typer.Option(
        "--mosaic/--no-mosaic",
        show_default=False,
        help="Join rasters of one CRS and pixel grid: objects are whole across files.",
    ),
]
StartTimeout = Annotated[
    str,
    typer.Option(
        "--start-timeout", metavar="TIME", help="Until when the first replica must be ready: 90, 90s, 10m."
    ),
]
AcceleratorType = Annotated[
    str | None,
    typer.Option("--accelerator-type", metavar="NAME", help="Ray's name of the GPUs, such as H100."),
]
MaxPixels = Annotated[
    float,
    typer.Option("--max-pixels", metavar="N", help="Refuse a raster that declares more pixels."),
]
AllowDrivers = Annotated[
    str | None,
    typer.Option(
        "--allow-drivers",
        metavar="NAME,…",
        help="GDAL drivers that may open an input; default: GTiff, PNG, JPEG, JP2OpenJPEG. Others are checked less: "
        "name them for files that you trust.",
    ),
]
_VIDEO, _LINKING = "Video", "Linking of video segments (relink changes these without segmenting anew)"
Kind = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="auto|raster|video",
        help="What the sources are; auto: videos by their endings, all else rasters (a folder too).",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(metavar="N", help="Frames a second to segment; default: all.", rich_help_panel=_VIDEO),
]
Every = Annotated[
    int | None, typer.Option(metavar="N", help="Segment every N-th frame.", rich_help_panel=_VIDEO)
]
Start = Annotated[
    float | None,
    typer.Option(metavar="S", help="Begin so many seconds after the first frame.", rich_help_panel=_VIDEO),
]
End = Annotated[
    float | None,
    typer.Option(
        metavar="S", help="End before so many seconds after the first frame.", rich_help_panel=_VIDEO
    ),
]
FrameSize = Annotated[
    int | None,
    typer.Option(
        "--frame-size",
        metavar="PX",
        help="Shorter side at which the network sees a frame; masks keep the frame's size. Default: as it is.",
        rich_help_panel=_VIDEO,
    ),
]
SequenceFps = Annotated[
    float | None,
    typer.Option(
        "--sequence-fps",
        metavar="N",
        help="Frames a second of a folder of numbered images (with --as video).",
        rich_help_panel=_VIDEO,
    ),
]
DecoderName = Annotated[
    str,
    typer.Option(
        "--decoder",
        metavar="auto|pyav|decord",
        help="auto: decord where it is provably right, else PyAV; frames.parquet says which and why.",
        rich_help_panel=_VIDEO,
    ),
]
AllQueries = Annotated[
    bool,
    typer.Option(
        "--all-queries/--no-all-queries",
        show_default=False,
        help="Keep the states of all queries, so that relink can use minvis (100 KB a frame).",
        rich_help_panel=_VIDEO,
    ),
]
Overlay = Annotated[
    bool,
    typer.Option(
        "--overlay/--no-overlay",
        show_default=False,
        help="Also write an MP4 with the tracks drawn in.",
        rich_help_panel=_VIDEO,
    ),
]
Link = Annotated[
    str,
    typer.Option(
        metavar="panoptile|minvis",
        help="panoptile: embeddings, overlap and class with births and deaths; minvis: as in that paper.",
        rich_help_panel=_LINKING,
    ),
]
MaxAge = Annotated[
    float,
    typer.Option(
        "--max-age", metavar="S", help="Seconds unseen after which a track ends.", rich_help_panel=_LINKING
    ),
]
MatchThreshold = Annotated[
    float,
    typer.Option(
        "--match-threshold",
        metavar="COST",
        help="Cost from which a segment starts a track of its own.",
        rich_help_panel=_LINKING,
    ),
]
IouWeight = Annotated[
    float,
    typer.Option(
        "--iou-weight",
        metavar="W",
        help="Weight of 1 - IoU with the frame before.",
        rich_help_panel=_LINKING,
    ),
]
ClassWeight = Annotated[
    float,
    typer.Option("--class-weight", metavar="W", help="Cost of another class.", rich_help_panel=_LINKING),
]
MinCosine = Annotated[
    float,
    typer.Option(
        "--min-cosine",
        metavar="T",
        help="A pair below this cosine and below --min-iou is never joined.",
        rich_help_panel=_LINKING,
    ),
]
MinIou = Annotated[
    float,
    typer.Option("--min-iou", metavar="T", help="See --min-cosine.", rich_help_panel=_LINKING),
]
BirthScore = Annotated[
    float,
    typer.Option(
        "--birth-score",
        metavar="T",
        help="Lowest score that starts or shapes a track.",
        rich_help_panel=_LINKING,
    ),
]
MinHits = Annotated[
    int,
    typer.Option(
        "--min-hits",
        metavar="N",
        help="Tracks in fewer frames are not 'confirmed' (they are published all the same).",
        rich_help_panel=_LINKING,
    ),
]
CameraMotion = Annotated[
    bool,
    typer.Option(
        "--camera-motion/--no-camera-motion",
        help="Count overlap after moving the frame before as the whole picture has, where that is plain to see.",
        rich_help_panel=_LINKING,
    ),
]
SceneCut = Annotated[
    float,
    typer.Option(
        "--scene-cut",
        metavar="T",
        help="Change of colours, 0-1, from which overlap with the frame before says nothing.",
        rich_help_panel=_LINKING,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No messages but errors.")]

Save = Annotated[
    str | None,
    typer.Option(
        metavar="job.yaml", help="Write this job as a file that every command takes in place of SRC…"
    ),
]
SourcesOrJob = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SRC…|job.yaml",
        help="Rasters, videos, folders or quoted patterns such as 'scenes/*.tif'; or one job file.",
    ),
]

JOB: Mapping[str, Any] = {
    "out": Out,
    "model": Model,
    "task": TaskName,
    "labels": Labels,
    "fuse": Fuse,
    "tile": TileSide,
    "overlap": Overlap,
    "bands": Bands,
    "scale": Scale,
    "gsd": Gsd,
    "nodata": Nodata,
    "aoi": Aoi,
    "classes": Classes,
    "exclude": Exclude,
    "regions": RegionClasses,
    "min_area": MinArea,
    "score": Score,
    "raster": Raster,
    "vector": Vector,
    "compression": CompressionName,
    "batch": Batch,
    "threads": Threads,
    "precision": PrecisionName,
    "compile": Compile,
    "kind": Kind,
    "fps": Fps,
    "every": Every,
    "start": Start,
    "end": End,
    "frame_size": FrameSize,
    "sequence_fps": SequenceFps,
    "decoder": DecoderName,
    "all_queries": AllQueries,
    "overlay": Overlay,
    "link": Link,
    "max_age": MaxAge,
    "match_threshold": MatchThreshold,
    "iou_weight": IouWeight,
    "class_weight": ClassWeight,
    "min_cosine": MinCosine,
    "min_iou": MinIou,
    "birth_score": BirthScore,
    "min_hits": MinHits,
    "camera_motion": CameraMotion,
    "scene_cut": SceneCut,
    "workers": Workers,
    "local": Local,
    "retries": Retries,
    "max_failures": MaxFailures,
    "unit_timeout": TimeoutUnit,
    "skip_invalid": SkipInvalid,
    "if_running": IfRunning,
    "incremental": Incremental,
    "mosaic": Mosaic,
    "start_timeout": StartTimeout,
    "accelerator_type": AcceleratorType,
    "max_pixels": MaxPixels,
    "allow_drivers": AllowDrivers,
}
"""The options of a job by the names of JobSpec's fields, which give their defaults; in the order of --help."""
