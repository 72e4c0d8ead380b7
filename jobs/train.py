"""A training from start to end: checks, resumption, steps, validation, checkpoints.

The run folder holds ``train.json`` (what is trained on what), ``labels.json`` (what was wrong with the labels),
``metrics.jsonl``, ``tensorboard/``, ``state.pt`` (all that a later process needs to go on), and the checkpoints
``last/`` and ``best/`` (averaged weights, the latter those with the best validation PQ).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.train_engine import TrainEngine
from panoptile.jobs.train_log import MetricsLog, TrainProgress
from panoptile.jobs.train_options import TrainOptions
from panoptile.jobs.train_start import Start, start_digest, start_of, write_checkpoint
from panoptile.model.training import OptimiserRecipe, TrainingBatch, TrainingRun
from panoptile.pipeline.panoptic_quality import PanopticQuality, PanopticScores
from panoptile.pipeline.training_batches import BatchPlan, step_batches
from panoptile.pipeline.training_data import TrainingData
from panoptile.pipeline.training_split import ValidationWindow
from panoptile.pipeline.training_windows import Augmentation, WindowSampler
from panoptile.pipeline.window_quality import scored_classes, window_overlaps

SPEC, LABELS, STATE = "train.json", "labels.json", "state.pt"
BEST, LAST = "best", "last"
_KNOWN = {SPEC, LABELS, STATE, BEST, LAST, "metrics.jsonl", "tensorboard", "sources"}


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """How a training ended."""

    folder: str
    steps: int
    windows: int
    """Validation windows."""
    held_out: bool
    best_pq: float
    best_step: int
    last: PanopticScores
    """Of the last validation."""
    seconds: float


def identity(
    options: TrainOptions,
    data: TrainingData,
    *,
    data_spec: dict[str, Any],
    model: str | None,
    backbone: str | None,
    processes: int,
) -> dict[str, Any]:
    """Everything that decides the result: what two trainings must share for one to go on with the other."""
    return {
        **options.model_dump(mode="json"),
        "processes": processes,
        "start_sha256": start_digest(model, backbone),
        "data": data_spec,
        "data_files": [list(state) for state in data.files],
        "classes": data.classes.to_json(),
    }


def check_folder(folder: Path, mine: dict[str, Any]) -> bool:
    """True where the folder holds this training already. Raises :class:`JobError`: 2 foreign files, 5 another one."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise invalid(f"Cannot use {folder} as the run folder: it is a file.")
    names = {p.name for p in folder.iterdir() if not p.name.endswith(".partial")}
    if not names:
        return False
    foreign = sorted(names - _KNOWN)
    if foreign:
        raise invalid(
            f"{folder} holds files that are not of a training ({foreign[0]}): choose an empty folder."
        )
    if SPEC not in names:
        return False
    theirs = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    plain = json.loads(json.dumps(mine))
    changed = [name for name in plain if theirs.get(name) != plain[name]]
    if changed:
        name = changed[0]
        raise JobError(
            Exit.OTHER_JOB,
            f"{folder} holds another training: {name} is {_short(theirs.get(name))} there and {_short(plain[name])} "
            f"here{f' ({len(changed)} fields differ)' if len(changed) > 1 else ''}. Repeat the same command to go "
            "on with it, or choose another folder with -o.",
        )
    return True


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"


def window_sampler(options: TrainOptions, data: TrainingData, *, stride: int) -> WindowSampler:
    """Windows at the resolution that the network sees after averaging its input over ``stride`` pixels."""
    low, high = (s / stride for s in options.scale_range)
    augmentation = Augmentation((low, high), options.rotate, options.flip, options.colour)
    return WindowSampler(data.sources, data.weights, augmentation, options.min_object_px, options.seed)


def recipe_of(options: TrainOptions) -> OptimiserRecipe:
    """The part of the options that moves weights."""
    names = OptimiserRecipe.__dataclass_fields__
    return OptimiserRecipe(**{name: getattr(options, name) for name in names})


class Training:
    """One training in one process (of several)."""

    def __init__(
        self,
        folder: Path,
        options: TrainOptions,
        data: TrainingData,
        *,
        model: str | None,
        backbone: str | None,
        engine: TrainEngine,
        console: Console,
        loaders: int = 0,
    ) -> None:
        self.folder, self.options, self.data = folder, options, data
        self.engine, self.console, self.loaders = engine, console, loaders
        stride = options.input_stride if backbone is not None else 1

        def first_images() -> torch.Tensor:
            sampler = window_sampler(options, data, stride=stride)
            size = options.size // stride
            return torch.stack([w.image for w in sampler.batch(0, count=options.batch, size=size)])

        self.start: Start = start_of(model, backbone, data, options, first_images)
        self.size = options.size // self.start.input_stride
        self.run = TrainingRun(
            self.start.model,
            self.start.criterion(options),
            recipe_of(options),
            backbone=self.start.backbone,
            engine=engine,
        )
        self.best_pq, self.best_step = -1.0, 0
        every = max(1, -(-len(data.validation) // options.validation_windows))
        self.validation: tuple[ValidationWindow, ...] = data.validation[::every]

    @property
    def is_main(self) -> bool:
        return self.engine.rank == 0

    def go(self, mine: dict[str, Any], *, quiet: bool = False) -> TrainSummary:
        """Train to the end, from the start or from where an earlier process was killed."""
        started = time.monotonic()
        self._prepare(mine)
        scores: PanopticScores | None = None
        options, run = self.options, self.run
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(MetricsLog(self.folder, step=run.step)) if self.is_main else None
            if log is not None and log.note:
                self.console.say(f"note    {log.note}")
            progress = stack.enter_context(
                TrainProgress(options.steps, run.step, quiet=quiet or not self.is_main)
            )
            for batches in self._batches():
                row = run.take_step([b.to(self.engine.device) for b in batches], steps=options.steps)
                progress.show(run.step, loss=row["loss"])
                if log is not None:
                    log.row(row)
                done = run.step == options.steps
                if done or run.step % options.validate_every == 0:
                    scores = self._judge(log)
                if done or run.step % options.save_every == 0 or run.step % options.validate_every == 0:
                    self._save()
        scores = scores or self.validate()
        return TrainSummary(
            str(self.folder),
            run.step,
            len(self.validation),
            self.data.held_out,
            self.best_pq,
            self.best_step,
            scores,
            time.monotonic() - started,
        )

    def validate(self) -> PanopticScores:
        """Panoptic quality of the averaged weights on the validation windows."""
        with self.run.average.applied_to(self.run.model) as network:
            mine = window_overlaps(
                network,
                self.validation[self.engine.rank :: self.engine.processes],
                size=self.size,
                pixels=self.start.pixels,
                rules=self.start.rules,
                device=self.engine.device,
            )
        quality = PanopticQuality(scored_classes(self.data.classes))
        for image in self.engine.gather(mine):
            quality.add(image)
        return quality.result()

    def _prepare(self, mine: dict[str, Any]) -> None:
        """Make the folder, or resume from it."""
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(self.folder / LABELS, self.data.report.to_json())
            _write_json(self.folder / SPEC, mine)
        state = self.folder / STATE
        if state.exists():
            extra = self.run.resume(state)
            self.best_pq, self.best_step = float(extra["best_pq"]), int(extra["best_step"])
            if self.is_main:
                self.console.say(f"resume  step {self.run.step} of {self.options.steps}")
        self.engine.wait()

    def _batches(self) -> Iterator[list[TrainingBatch]]:
        options = self.options
        plan = BatchPlan(options.batch, options.accumulate, self.engine.rank, self.engine.processes)
        return step_batches(
            window_sampler(options, self.data, stride=self.start.input_stride),
            plan,
            self.start.pixels,
            size=self.size,
            first_step=self.run.step,
            steps=options.steps,
            loaders=self.loaders,
        )

    def _judge(self, log: MetricsLog | None) -> PanopticScores:
        """Validate, log, and keep the weights if they are the best so far."""
        scores = self.validate()
        better = scores.all.pq > self.best_pq
        if better:
            self.best_pq, self.best_step = scores.all.pq, self.run.step
        if self.is_main:
            if better:
                write_checkpoint(self.folder / BEST, self.start, self.run.average.weights)
            if log is not None:
                log.row({"step": self.run.step, **score_fields(scores)})
            name = "validation" if self.data.held_out else "training windows"
            self.console.say(
                f"step {self.run.step}: {name} PQ {100 * scores.all.pq:.1f} (things {100 * scores.things.pq:.1f}, "
                f"stuff {100 * scores.stuff.pq:.1f}){', the best so far' if better else ''}"
            )
        return scores

    def _save(self) -> None:
        if self.is_main:
            write_checkpoint(self.folder / LAST, self.start, self.run.average.weights)
            self.run.save(self.folder / STATE, best_pq=self.best_pq, best_step=self.best_step)
        self.engine.wait()


def score_fields(scores: PanopticScores) -> dict[str, float]:
    """The figures of a validation for a log row, 0-1."""
    fields = {
        "val_pq": scores.all.pq,
        "val_pq_things": scores.things.pq,
        "val_pq_stuff": scores.stuff.pq,
        "val_f1_things": scores.things.f1,
    }
    return fields | {f"val_pq/{c.name}": quality.pq for c, quality in scores.per_class}


def summary_text(summary: TrainSummary) -> str:
    """The end of a training, for people."""
    where = "held-out windows" if summary.held_out else "training windows (nothing was held out)"
    head = f"{summary.steps} steps in {summary.seconds:.0f} s; best PQ {100 * summary.best_pq:.1f}"
    lines = [
        f"{head} at step {summary.best_step} on {summary.windows} {where}",
        "",
        f"{'class':<24} {'PQ':>6} {'F1':>6} {'found':>7} {'missed':>7} {'invented':>9}",
    ]
    for c, q in summary.last.per_class:
        lines.append(
            f"{c.name[:24]:<24} {100 * q.pq:>6.1f} {100 * q.rq:>6.1f} {q.matched:>7,} {q.missed:>7,} {q.invented:>9,}"
        )
    best = Path(summary.folder) / BEST
    return "\n".join([*lines, "", f"use it:  panoptile segment RASTER -o OUT --model {best}"])


def summary_fields(summary: TrainSummary) -> dict[str, Any]:
    """The end of a training as JSON."""
    fields = {k: v for k, v in asdict(summary).items() if k != "last"}
    classes = {c.name: asdict(q) | {"pq": q.pq, "f1": q.rq} for c, q in summary.last.per_class}
    return fields | {"last": score_fields(summary.last), "classes": classes}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)
