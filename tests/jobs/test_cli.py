"""The command line itself: what it prints, and what it does not do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.jobs.runs import WorldFiles
from tests.jobs.test_bad_input import panoptile

WORLD = (31, 150, 160)


def arguments(files: WorldFiles, out: Path) -> list[object]:
    tiling = ["--tile", "80", "--overlap", "24", "--local", "-q"]
    return [files.image, "-o", out, "--model", files.model, "--labels", files.table, *tiling]


@pytest.mark.parametrize("command", [[], ["segment"], ["plan"], ["preview"], ["model"], ["model", "info"]])
def test_help_imports_no_heavy_library(command: list[str]) -> None:
    """--help of every command imports neither torch, Ray nor GDAL."""
    code = (
        "import sys; from panoptile.jobs.cli import app; sys.argv[0] = 'panoptile'\n"
        f"app({[*command, '--help']!r}, standalone_mode=False)\n"
        "print([m for m in ('torch', 'ray', 'rasterio', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_plan_writes_nothing(files: WorldFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """plan prints tiles, units, bytes and memory, and makes no folder."""
    assert panoptile("plan", *arguments(files, tmp_path / "out"), "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["tiles"], fields["units"]) == (9, 9)
    assert fields["memory_per_worker_bytes"] > 0
    assert panoptile("plan", *arguments(files, tmp_path / "out")) == 0
    assert "memory per worker" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_json_is_all_of_stdout(files: WorldFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """segment --json prints one object: classes, files and metrics."""
    assert panoptile("segment", *arguments(files, tmp_path / "out"), "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["exit"] == 0
    (found,) = fields["inputs"]
    assert set(found["classes"]) == {"house", "tree", "grass", "road"}
    assert all((tmp_path / "out" / asset).exists() for asset in found["assets"])
    assert panoptile("segment", *arguments(files, tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["already_done"] is True


def test_preview_draws_again(files: WorldFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """preview makes the pictures at another size, and refuses sizes and folders that it cannot draw."""
    from PIL import Image

    out = tmp_path / "out"
    assert panoptile("preview", out) == 2
    assert panoptile("segment", *arguments(files, out)) == 0
    assert panoptile("preview", out, "--max-side", "600") == 0
    (picture,) = (out / "previews").iterdir()
    assert max(Image.open(picture).size) <= 600
    capsys.readouterr()
    assert panoptile("preview", out, "--max-side", "100") == 2
    assert "--max-side" in capsys.readouterr().err
    (out / "classes.json").write_text("{}")
    assert panoptile("preview", out) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("--min-area", "nan"), ("--timeout-unit", "nan"), ("--classes", " ,"), ("--exclude", "")],
)
def test_empty_and_impossible_values_are_refused(
    files: WorldFiles, tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that would switch an option off silently ends with exit 2 and names the option."""
    assert panoptile("segment", *arguments(files, tmp_path / "out"), option, value) == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
