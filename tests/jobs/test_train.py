"""``panoptile train``: the four forms of data, resumption, the run folder, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.jobs.checkpoints import tiny_checkpoint
from tests.jobs.training_worlds import (
    NAMES,
    World,
    learner,
    outlines,
    world,
    write_coco,
    write_geoparquet,
    write_raster,
)
from typer.testing import CliRunner, Result

from panoptile.jobs.cli import app
from panoptile.jobs.exits import Exit, JobError

RECIPE = """
batch: 4
size: 64
scale_range: [0.9, 1.1]
rotate: false
colour: 0.3
learning_rate: 0.003
backbone_factor: 1.0
clip_norm: 1.0
schedule: linear
warmup_steps: 10
ema_decay: 0.9
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that can learn the world quickly."""
    return learner(tmp_path_factory.mktemp("base") / "learner")


def recipe_file(folder: Path, **changes: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE + "".join(f"{k}: {json.dumps(v)}\n" for k, v in changes.items()))
    return str(path)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--device", "cpu", "--json", "-q"])


def trained(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    fields: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return fields


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    found = [row for row in rows(run) if "loss" in row]
    assert len({row["step"] for row in found}) == len(found)  # each step once
    return {row["step"]: row["loss"] for row in found}


def validations(run: Path) -> list[float]:
    return [row["val_pq"] for row in rows(run) if "val_pq" in row]


def two_images(folder: Path) -> World:
    """A raster of 128 x 64 px with its outlines, ids and classes in all forms."""
    scene = world(3, height=128, width=64)
    write_raster(folder / "image.tif", scene.image)
    write_raster(folder / "ids.tif", scene.ids.astype(np.uint32))
    write_raster(folder / "classes.tif", (scene.labels + 1).astype(np.uint8))
    write_geoparquet(folder / "labels.parquet", list(outlines(scene)))
    rows = [{"name": n, "is_thing": i < 2} for i, n in enumerate(NAMES)]
    (folder / "classes.json").write_text(json.dumps(rows))
    return scene


def check_rise(run: Path, summary: dict[str, Any], *, least: float) -> None:
    curve = validations(run)
    assert curve[-1] > curve[0]
    assert summary["best_pq"] == pytest.approx(max(curve))
    assert summary["best_pq"] > least
    assert not summary["held_out"]
    for name in ("best", "last"):
        assert {p.name for p in (run / name).iterdir()} == {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        }


# --- the four forms ----------------------------------------------------------------------------------------------


def test_polygons_raise_the_training_pq(tmp_path: Path, base: Path) -> None:
    """(a) A raster with GeoParquet polygons and a class column: PQ on the training windows rises."""
    two_images(tmp_path)
    recipe = recipe_file(tmp_path, steps=40, validate_every=10, save_every=40)
    summary = trained(
        tmp_path / "image.tif", "--labels", tmp_path / "labels.parquet", "--class-column", "kind",
        "--stuff", "grass,soil", "--val-fraction", 0, "--model", base, "--recipe", recipe, "-o", tmp_path / "run",
    )  # fmt: skip
    check_rise(tmp_path / "run", summary, least=0.3)
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert sorted(config["id2label"].values()) == sorted(NAMES)
    assert config["panoptile"]["gsd_m"] == pytest.approx(0.5, rel=0.01)
    assert len(config["panoptile"]["colors"]) == 4


@pytest.mark.slow
def test_label_rasters_raise_the_training_pq(tmp_path: Path, base: Path) -> None:
    """(b) A raster with a raster of object ids and one of classes: PQ on the training windows rises."""
    two_images(tmp_path)
    recipe = recipe_file(tmp_path, steps=150, validate_every=50, save_every=150)
    summary = trained(
        tmp_path / "image.tif", "--labels", tmp_path / "ids.tif", "--label-classes", tmp_path / "classes.tif",
        "--classes", tmp_path / "classes.json", "--val-fraction", 0, "--model", base, "--recipe", recipe,
        "-o", tmp_path / "run",
    )  # fmt: skip
    check_rise(tmp_path / "run", summary, least=0.45)


def test_coco_panoptic_raises_the_training_pq(tmp_path: Path, base: Path) -> None:
    """(c) A COCO panoptic file with its label images: PQ on the training windows rises."""
    file = write_coco(tmp_path / "coco", [world(i) for i in range(3)], panoptic=True)
    recipe = recipe_file(tmp_path, steps=80, validate_every=20, save_every=80)
    summary = trained(
        file, "--masks", file.parent / "panoptic", "--val-fraction", 0, "--model", base, "--recipe", recipe,
        "-o", tmp_path / "run",
    )  # fmt: skip
    check_rise(tmp_path / "run", summary, least=0.3)


@pytest.mark.slow
def test_coco_instances_raise_the_training_pq(tmp_path: Path, base: Path) -> None:
    """(d) A COCO instances file: PQ of the objects on the training windows rises."""
    file = write_coco(tmp_path / "coco", [world(i) for i in range(3)], panoptic=False)
    recipe = recipe_file(tmp_path, steps=200, validate_every=40, save_every=200)
    summary = trained(file, "--val-fraction", 0, "--model", base, "--recipe", recipe, "-o", tmp_path / "run")
    check_rise(tmp_path / "run", summary, least=0.3)
    assert set(summary["classes"]) == {"square", "disc"}


@pytest.mark.slow
def test_one_image_is_learnt_by_heart(tmp_path: Path, base: Path) -> None:
    """A tiny network overfits one 128² image to a PQ above 95 within five minutes on a CPU."""
    scene = world(5, height=128, width=128)
    file = write_coco(tmp_path / "coco", [scene], panoptic=True)
    recipe = recipe_file(
        tmp_path, size=128, batch=1, steps=300, validate_every=100, save_every=300, colour=0.0, flip=False,
        scale_range=[1.0, 1.0], ema_decay=0.95, points=1024,
    )  # fmt: skip
    started = time.process_time()  # one thread: other programs on the machine do not count
    summary = trained(
        file, "--masks", file.parent / "panoptic", "--val-fraction", 0, "--model", base, "--recipe", recipe,
        "-o", tmp_path / "run",
    )  # fmt: skip
    seconds = time.process_time() - started
    print(
        f"best PQ {100 * summary['best_pq']:.1f} at step {summary['best_step']}, {seconds:.0f} s of one core"
    )
    assert summary["best_pq"] > 0.95
    assert seconds < 300


# --- the published folder ----------------------------------------------------------------------------------------


def test_transformers_loads_the_best_checkpoint(tmp_path: Path) -> None:
    """RUN/best is a folder that transformers loads, with the same logits as ours and our own block in it."""
    transformers = pytest.importorskip("transformers")
    from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

    base = tiny_checkpoint(tmp_path / "base")
    file = write_coco(tmp_path / "coco", [world(0), world(1)], panoptic=True)
    run = tmp_path / "run"
    trained(
        file, "--masks", file.parent / "panoptic", "--val-fraction", 0.5, "--model", base, "--recipe",
        recipe_file(tmp_path, steps=2, batch=1), "-o", run,
    )  # fmt: skip
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(run / "best").eval()
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(run / "best")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = theirs(pixel_values=pixels), ours(pixels)
    torch.testing.assert_close(a.class_queries_logits, b.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.masks_queries_logits, b.masks_queries_logits, rtol=1e-3, atol=1e-3)
    config = json.loads((run / "best" / "config.json").read_text())
    assert config["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    assert config["panoptile"]["thing_label_ids"] == [0, 1]
    processor = transformers.Mask2FormerImageProcessorPil.from_pretrained(run / "best")
    assert processor.num_labels == 4
    assert (run / "tensorboard").is_dir()


def test_classes_of_the_same_name_keep_their_weights(tmp_path: Path) -> None:
    """The class layer is new for new names, and the old one's rows for those that the checkpoint knows."""
    from panoptile.jobs.train_options import TrainOptions
    from panoptile.jobs.train_start import start_of
    from panoptile.model.classes import ClassTable
    from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
    from panoptile.pipeline.label_report import LabelReport
    from panoptile.pipeline.training_data import TrainingData

    base = tiny_checkpoint(tmp_path / "base", seed=1)
    table = ClassTable.from_names(["road", "lake", "house"], {2})
    data = TrainingData((), (), (), False, table, None, LabelReport(), ())
    start = start_of(str(base), None, data, TrainOptions(), lambda: torch.zeros(0))
    old = Mask2FormerForUniversalSegmentation.from_pretrained(base).class_predictor.weight
    new = start.model.class_predictor.weight
    assert new.shape[0] == 4
    assert torch.equal(new[0], old[3])
    assert torch.equal(new[2], old[0])
    assert torch.equal(new[3], old[4])
    assert not any(torch.equal(new[1], row) for row in old)
    assert start.notes == ["The class layer starts anew for lake; kept for road, house."]
    assert start.rules.thing_label_ids == {2}


# --- resumption --------------------------------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "panoptile", "train", *map(str, arguments), "--device", "cpu", "-q"]


@pytest.mark.slow
def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, base: Path) -> None:
    """SIGKILL at a random moment, the same command again, until it is done: the loss of every step is that of one run."""
    file = write_coco(tmp_path / "coco", [world(i) for i in range(3)], panoptic=True)
    recipe = recipe_file(tmp_path, steps=24, batch=2, accumulate=2, validate_every=7, save_every=3)
    shared = (file, "--masks", file.parent / "panoptic", "--model", base, "--recipe", recipe)
    subprocess.run(command(*shared, "-o", tmp_path / "whole"), check=True, timeout=300)
    killed, seed = tmp_path / "killed", random.randrange(2**32)
    print(f"seed {seed}")
    dice, kills = random.Random(seed), 0
    while True:
        process = subprocess.Popen(command(*shared, "-o", killed))
        if kills < 2:
            target = dice.randrange(1 + 9 * kills, 9 + 9 * kills)
            until = time.monotonic() + 240
            while time.monotonic() < until and process.poll() is None:
                path = killed / "metrics.jsonl"
                if (
                    path.exists()
                    and len([1 for line in path.read_text().splitlines() if "loss" in line]) >= target
                ):
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
            kills += 1
            continue
        assert process.wait(timeout=300) == 0
        break
    assert losses(killed) == losses(tmp_path / "whole")
    assert sorted(losses(killed)) == list(range(1, 25))
    assert validations(killed) == validations(tmp_path / "whole")
    for name in ("best", "last"):
        weights = [(tmp_path / run / name / "model.safetensors").read_bytes() for run in ("killed", "whole")]
        assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path, base: Path) -> None:
    """On two CPU processes (gloo) a step is that of one process with twice the accumulation, but for sampled points."""
    file = write_coco(tmp_path / "coco", [world(i) for i in range(3)], panoptic=True)
    shared = (file, "--masks", file.parent / "panoptic", "--model", base)
    two = recipe_file(tmp_path, steps=4, batch=1, validate_every=4, save_every=4, points=8000)
    subprocess.run(
        command(*shared, "--recipe", two, "-o", tmp_path / "two", "--gpus", 2), check=True, timeout=400
    )
    one = recipe_file(tmp_path, steps=4, batch=1, accumulate=2, validate_every=4, save_every=4, points=8000)
    subprocess.run(command(*shared, "--recipe", one, "-o", tmp_path / "one"), check=True, timeout=300)
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert sorted(found) == sorted(expected) == [1, 2, 3, 4]
    assert found[1] == pytest.approx(expected[1], rel=0.02)
    assert found[4] == pytest.approx(expected[4], rel=0.1)
    assert json.loads((tmp_path / "two" / "train.json").read_text())["processes"] == 2


# --- what is refused ---------------------------------------------------------------------------------------------


def error_of(*arguments: object) -> JobError:
    result = invoke(*arguments)
    assert isinstance(result.exception, JobError), (result.output, result.exception)
    return result.exception


def test_another_option_in_the_same_folder_is_named(tmp_path: Path) -> None:
    """The same command on a finished run is done at once; another option or changed labels end with exit 5 and the field."""
    base = tiny_checkpoint(tmp_path / "base")
    file = write_coco(tmp_path / "coco", [world(0), world(1)], panoptic=True)
    recipe = recipe_file(tmp_path, steps=1, batch=1)
    shared = (file, "--masks", file.parent / "panoptic", "--model", base, "--recipe", recipe)
    run = tmp_path / "run"
    trained(*shared, "-o", run)
    before = losses(run)
    trained(*shared, "-o", run)
    assert losses(run) == before
    error = error_of(*shared, "-o", run, "--lr", 0.5)
    assert error.code == Exit.OTHER_JOB
    assert "learning_rate is 0.003 there and 0.5 here" in str(error)
    os.utime(file)
    error = error_of(*shared, "-o", run)
    assert error.code == Exit.OTHER_JOB
    assert "data_files is" in str(error)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    error = error_of(*shared, "-o", tmp_path / "full")
    assert error.code == Exit.INVALID
    assert "notes.txt" in str(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("image.tif",), "needs labels"),
        (("image.tif", "--labels", "nowhere.parquet"), "nowhere.parquet"),
        (("image.tif", "--labels", "labels.parquet", "--class-column", "sort"), "no column 'sort'"),
        (("image.tif", "--labels", "labels.parquet", "--images", "x"), "COCO"),
        (("image.tif", "--labels", "labels.parquet", "--val-area", "1,2,3"), "--val-area wants 4 numbers"),
        (("image.tif", "--labels", "labels.parquet", "--val-area", "0,0,1,1"), "does not meet any image"),
        (("image.tif", "--labels", "labels.parquet", "--stuff", "lava"), "No label is of the class 'lava'"),
        (("image.tif", "--labels", "far.parquet"), "No label can be used: 1 labels lie outside"),
        (("image.tif", "--labels", "labels.parquet", "--recipe", "wrong.yaml"), "did you mean 'steps'"),
        (
            ("image.tif", "--labels", "labels.parquet", "--size", "100"),
            "size: input should be a multiple of 32",
        ),
        (("image.tif", "--labels", "labels.parquet", "--backbone", "a", "--model", "b"), "give one of them"),
        (("data.yaml",), "sources.0.lables: extra inputs"),
    ],
)
def test_what_cannot_be_trained_ends_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    """Each mistake is exit 2 with one sentence, and leaves no run folder."""
    import shapely

    monkeypatch.chdir(tmp_path)
    two_images(tmp_path)
    write_geoparquet(tmp_path / "far.parquet", [("square", shapely.box(0, 0, 1, 1))])
    (tmp_path / "wrong.yaml").write_text("step: 3")
    (tmp_path / "data.yaml").write_text("sources: [{images: image.tif, lables: labels.parquet}]")
    (tmp_path / "a").write_text("")
    error = error_of(*arguments, "-o", "run")
    assert error.code == Exit.INVALID
    assert words in str(error)
    assert not (tmp_path / "run").exists()


def test_a_data_file_names_sources_and_hold_out(tmp_path: Path) -> None:
    """A YAML file with two sources, classes and an area trains; its paths are its own folder's."""
    base = tiny_checkpoint(tmp_path / "base")
    two_images(tmp_path)
    write_coco(tmp_path / "coco", [world(0)], panoptic=True)
    (tmp_path / "data.yaml").write_text(
        """
classes: [{name: square}, {name: disc, color: "#0000ff"}, {name: grass, thing: false}, {name: soil, thing: false}]
sources:
  - {images: image.tif, labels: labels.parquet, class_column: kind, unlabelled: ignore}
  - {coco: coco/panoptic.json, images: coco, masks: coco/panoptic, weight: 0.5}
validation: {area: [350000, 3049936, 350032, 3049968], guard: 8}
"""
    )
    summary = trained(
        tmp_path / "data.yaml",
        "--model",
        base,
        "--recipe",
        recipe_file(tmp_path, steps=1),
        "--amp",
        "bf16",
        "-o",
        tmp_path / "run",
    )
    assert summary["held_out"]
    assert summary["windows"] == 1
    report = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert report["found"] == report["used"] > 10
