"""Which replica ``--model`` means: a checkpoint folder, a hub id, the built-in one, or an echo."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.spec import JobSpec
from panoptile.model.classes import ClassTable
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.replica import NetworkFactory, ReplicaFactory

if TYPE_CHECKING:
    from panoptile.pipeline.echo import EchoFactory
    from panoptile.pipeline.video_echo import VideoEchoFactory
    from panoptile.pipeline.video_plan import VideoInfo

    CheckSize = Callable[["RasterInfo | VideoInfo"], None]

BUILTIN = "builtin"
ECHO = "echo:"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is known to load, though nothing is loaded yet."""

    factory: ReplicaFactory
    classes: ClassTable
    channels: int
    sha256: str
    """Of everything that decides the model's answers."""
    max_queries: int
    parameters: int
    description: str
    check_input: Callable[[RasterInfo | VideoInfo], None]
    """Raises :class:`JobError` where the model cannot serve this input."""


def resolve_model(spec: JobSpec) -> ResolvedModel:
    """Find and check the model without loading it. Raises :class:`JobError`."""
    if spec.model.startswith(ECHO):
        return _echo(spec)
    path = checkpoint_folder(spec.model)
    return _network(spec, path)


def checkpoint_folder(model: str) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded once into the hub's own cache."""
    if model == BUILTIN:
        return Path(str(importlib.resources.files("panoptile.model"))) / "builtin"
    path = Path(model).expanduser()
    if path.exists():
        return path
    looks_like_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not looks_like_id:
        raise invalid(
            f"There is no checkpoint at {model}: give a folder with config.json and model.safetensors."
        )
    return _download(model)


def _download(model: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            model,
            allow_patterns=[
                "config.json",
                "preprocessor_config.json",
                "*.safetensors",
                "*.safetensors.index.json",
            ],
        )
    except RepositoryNotFoundError as e:
        raise invalid(f"There is neither a folder nor a hub model called {model}.") from e
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise JobError(
            Exit.UNREACHABLE,
            f"There is no folder {model}, and the model hub cannot be reached to look for it there ({type(e).__name__}).",
        ) from e
    return Path(folder)


def _network(spec: JobSpec, path: Path) -> ResolvedModel:
    from panoptile.model.checkpoint import inspect_checkpoint

    try:
        info = inspect_checkpoint(str(path), task=spec.task, labels=spec.labels, fuse=spec.fuse)
    except ValueError as e:
        raise invalid(str(e)) from e
    if spec.compile:
        _refuse_missing_compiler()
    if info.queries_are_places:
        _refuse_weights_of_looks(spec)
    factory = NetworkFactory(
        str(path),
        spec.task,
        spec.labels,
        spec.fuse,
        spec.score,
        device="auto",
        threads=spec.threads,
        precision=spec.precision,
        compiled=spec.compile,
        all_queries=spec.keeps_all_queries,
    )
    return ResolvedModel(
        factory,
        info.classes,
        info.channels,
        info.sha256,
        info.num_queries,
        info.parameters,
        f"Mask2Former {info.backbone}, {info.task}, {len(info.classes)} classes, {info.parameters / 1e6:.1f} M parameters",
        lambda info: None,
    )


def _refuse_weights_of_looks(spec: JobSpec) -> None:
    for name in ("iou_weight", "min_cosine"):
        if getattr(spec, name) != JobSpec.__dataclass_fields__[name].default:
            raise invalid(
                f"--{name.replace('_', '-')} weighs overlap against the likeness of queries, and this model's queries know "
                "places, not objects: its segments are linked by overlap alone. Leave it out."
            )


def _refuse_missing_compiler() -> None:
    """Where this machine has no GPU, its CPU stands for those of the workers, which check again."""
    import torch

    from panoptile.model.compiled import compile_problem

    problem = compile_problem("cuda" if torch.cuda.is_available() else "cpu")
    if problem:
        raise invalid(problem)


def _echo(spec: JobSpec) -> ResolvedModel:
    asked = {
        "--task": spec.task,
        "--fuse": spec.fuse,
        "--score": spec.score,
        "--precision": spec.precision != "auto",
        "--compile": spec.compile,
    }
    for option, given in asked.items():
        if given:
            raise invalid(f"{option} asks something of a network; an echo has none. Leave it out.")
    labels_path, _, classes_path = spec.model.removeprefix(ECHO).partition(",")
    paths = [labels_path, *([classes_path] if classes_path else [])]
    for path in paths:
        if not Path(path).is_file():
            raise invalid(
                f"There is no label raster {path!r}. Write --model echo:LABELS.tif[,CLASSES.tif], for a video "
                "echo:LABELS.npy[,CLASSES.npy]."
            )
    absolute = [str(Path(path).absolute()) for path in paths]
    try:
        table = None if spec.labels is None else ClassTable.from_file(spec.labels)
        factory: EchoFactory | VideoEchoFactory
        if labels_path.endswith(".npy"):
            factory, check_size = _video_echo(absolute, table)
        else:
            factory, check_size = _raster_echo(absolute, table)
        classes = factory.class_table()
    except ValueError as e:
        raise invalid(str(e)) from e

    def check(info: RasterInfo | VideoInfo) -> None:
        try:
            check_size(info)
        except ValueError as e:
            raise invalid(str(e)) from e

    digest = hashlib.sha256(b"echo")
    for path in paths:
        with Path(path).open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return ResolvedModel(factory, classes, 3, digest.hexdigest(), 0, 0, f"echo of {', '.join(paths)}", check)


def _raster_echo(paths: list[str], table: ClassTable | None) -> tuple[EchoFactory, CheckSize]:
    from panoptile.pipeline.echo import EchoFactory

    draft = EchoFactory(paths[0], paths[1] if len(paths) > 1 else None, table)
    factory = dataclasses.replace(draft, classes=draft.class_table())

    def check(info: RasterInfo | VideoInfo) -> None:
        if not isinstance(info, RasterInfo):
            raise ValueError(f"{info.uri} is a video: its echo is an array of frames, echo:LABELS.npy.")  # noqa: TRY004  (a user's mistake)
        factory.check(info.height, info.width)

    return factory, check


def _video_echo(paths: list[str], table: ClassTable | None) -> tuple[VideoEchoFactory, CheckSize]:
    from panoptile.pipeline.video_echo import VideoEchoFactory

    draft = VideoEchoFactory(paths[0], paths[1] if len(paths) > 1 else None, table)
    factory = dataclasses.replace(draft, classes=draft.class_table())

    def check(info: RasterInfo | VideoInfo) -> None:
        if isinstance(info, RasterInfo):
            raise ValueError(f"{info.uri} is a raster: its echo is a label raster, echo:LABELS.tif.")  # noqa: TRY004  (a user's mistake)
        factory.check(len(info.index), info.height, info.width)

    return factory, check
