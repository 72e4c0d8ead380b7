"""Options that speak to the network, on a tiny real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.jobs.checkpoints import NAMES, tiny_checkpoint
from tests.jobs.runs import WorldFiles, published, run, table, write_world
from tests.pipeline.worlds import make_world

from panoptile.jobs.exits import JobError
from panoptile.jobs.prepare import prepare
from panoptile.jobs.spec import JobSpec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    return write_world(make_world(8, 150, 170, wedge=False), tmp_path_factory.mktemp("world"))


def network(files: WorldFiles, out: Path, checkpoint: str, **options: object) -> Path:
    fields: dict[str, object] = {"model": checkpoint, "labels": None, "tile": 96, "overlap": 32, "score": 0.0}
    run(files, out, **{**fields, **options})  # type: ignore[arg-type]
    return out


def test_score(files: WorldFiles, checkpoint: str, tmp_path: Path) -> None:
    """--score 0 keeps what the network claims, --score 1 nothing; the default lies between."""
    assert table(network(files, tmp_path / "a", checkpoint)).num_rows > 0
    assert table(network(files, tmp_path / "b", checkpoint, score=1.0)).num_rows == 0


def test_task_semantic_gives_stuff_alone(files: WorldFiles, checkpoint: str, tmp_path: Path) -> None:
    """--task semantic: one stuff segment per class, and every pixel has one."""
    rows = table(network(files, tmp_path / "out", checkpoint, task="semantic"))
    assert not any(rows["is_thing"].to_pylist())
    assert sum(rows["area_px"].to_pylist()) == 150 * 170


def test_task_instance_gives_things_alone(files: WorldFiles, checkpoint: str, tmp_path: Path) -> None:
    """--task instance: things on a void background."""
    rows = table(network(files, tmp_path / "out", checkpoint, task="instance"))
    assert rows.num_rows > 0
    assert all(rows["is_thing"].to_pylist())


def test_labels_decide_what_is_a_thing(files: WorldFiles, checkpoint: str, tmp_path: Path) -> None:
    """--labels renames the classes and decides which are things; a wrong number is refused."""
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([{"name": n.upper(), "is_thing": False} for n in NAMES.values()]))
    rows = table(network(files, tmp_path / "out", checkpoint, labels=str(labels)))
    assert set(rows["class_name"].to_pylist()) <= {"HOUSE", "TREE", "GRASS", "ROAD"}
    assert not any(rows["is_thing"].to_pylist())
    labels.write_text(json.dumps([{"name": "house", "is_thing": True}]))
    spec = JobSpec((str(files.image),), str(tmp_path / "x"), model=checkpoint, labels=str(labels), local=True)
    with pytest.raises(JobError, match="4 classes"):
        prepare(spec)


def test_fused_classes_become_stuff(files: WorldFiles, checkpoint: str, tmp_path: Path) -> None:
    """--fuse CLASS,… makes one segment of each such class: it is stuff from then on, here and in classes.json."""
    labels = tmp_path / "things.json"
    labels.write_text(json.dumps([{"name": n, "is_thing": True} for n in NAMES.values()]))
    apart = table(network(files, tmp_path / "a", checkpoint, labels=str(labels)))
    assert all(apart["is_thing"].to_pylist())
    fused = network(files, tmp_path / "b", checkpoint, labels=str(labels), fuse=tuple(NAMES.values()))
    assert not any(table(fused)["is_thing"].to_pylist())
    assert not any(c["is_thing"] for c in json.loads((fused / "classes.json").read_text()))


def test_batch_does_not_change_a_byte(files: WorldFiles, checkpoint: str, tmp_path: Path) -> None:
    """A tile alone and in a batch of three gives the same published tree."""
    a = published(network(files, tmp_path / "a", checkpoint))
    b = published(network(files, tmp_path / "b", checkpoint, batch=3, workers=2))
    assert a == b


def test_precision_and_compile_are_part_of_the_fingerprint(files: WorldFiles) -> None:
    """Both can change a pixel; a word that is none is refused."""
    spec = JobSpec(("a.tif",), "out")
    prints = {
        JobSpec(("a.tif",), "out", precision=p, compile=c).fingerprint("x")
        for p in ("auto", "fp32", "bf16")
        for c in (False, True)
    }
    assert len(prints) == 6
    assert spec.fingerprint("x") in prints
    with pytest.raises(ValueError, match="--precision is fp32, bf16 or auto, got 'fp16'"):
        JobSpec(("a.tif",), "out", precision="fp16")  # type: ignore[arg-type]


def test_precision_bf16(files: WorldFiles, checkpoint: str, tmp_path: Path) -> None:
    """--precision bf16 runs on a CPU too."""
    assert table(network(files, tmp_path / "out", checkpoint, precision="bf16")).num_rows > 0


def test_compile_without_a_compiler_is_refused(
    files: WorldFiles, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--compile asks for a compiler before anything starts: exit 2, one sentence."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(JobError, match="there is no no-such-compiler here") as raised:
        network(files, tmp_path / "out", checkpoint, compile=True)
    assert raised.value.code == 2
