"""From checked options to a training: data, labels report, processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid
from panoptile.jobs.train import Training, check_folder, identity, summary_fields, summary_text
from panoptile.jobs.train_engine import launched_engine, launched_processes, launched_rank, relaunch
from panoptile.jobs.train_options import TrainOptions
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.raster_file import RasterReadError
from panoptile.pipeline.training_data import TrainingData, open_training_data
from panoptile.pipeline.training_spec import DataSpec


def run_command(
    spec: DataSpec,
    folder: Path,
    options: TrainOptions,
    *,
    model: str | None,
    backbone: str | None,
    processes: int,
    device: str,
    loaders: int,
    threads: int | None,
    console: Console,
    quiet: bool,
) -> None:
    """Check data and folder, say what is wrong with the labels, then train. Raises :class:`JobError`."""
    if threads is not None:
        torch.set_num_threads(threads)
    data = open_data(spec, options)
    launched = launched_processes()
    mine: dict[str, Any] = identity(
        options,
        data,
        data_spec=spec.model_dump(mode="json"),
        model=model,
        backbone=backbone,
        processes=launched or processes,
    )
    speaks = launched_rank() == 0
    resumes = check_folder(folder, mine)
    if speaks:
        _say_data(console, data)
    if processes > 1 and not launched:
        relaunch(processes)
    engine = launched_engine(device)
    training = Training(
        folder,
        options,
        data,
        model=model,
        backbone=backbone,
        engine=engine,
        console=console,
        loaders=loaders,
    )
    if speaks and not resumes:
        for note in training.start.notes:
            console.say(f"note    {note}")
    try:
        summary = training.go(mine, quiet=quiet)
    except (InputError, RasterReadError) as e:
        raise invalid(str(e)) from e
    if speaks:
        console.data(summary_text(summary), summary_fields(summary))


def open_data(spec: DataSpec, options: TrainOptions) -> TrainingData:
    """The data with its hold-out. Raises :class:`JobError` (exit 2) where no label can be used."""
    low, high = options.scale_range
    extent = round(options.size / (low * high) ** 0.5)
    try:
        return open_training_data(spec, extent=extent, seed=options.seed)
    except (InputError, RasterReadError) as e:
        raise invalid(str(e)) from e


def _say_data(console: Console, data: TrainingData) -> None:
    things = sum(c.is_thing for c in data.classes)
    held = f"{len(data.validation)} held-out windows" if data.held_out else "nothing held out"
    console.say(f"data    {len(data.sources)} images, {len(data.classes)} classes ({things} things), {held}")
    for line in data.report.lines():
        console.say(f"labels  {line}")
