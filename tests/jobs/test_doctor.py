"""``panoptile doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from panoptile.jobs import doctor
from panoptile.jobs.cli import app


def examined(*args: str) -> tuple[int, dict[str, dict[str, Any]]]:
    result = CliRunner().invoke(app, ["doctor", *args, "--json"])
    found = json.loads(result.stdout)["findings"]
    return result.exit_code, {f["what"]: f for f in found}


def test_a_healthy_machine_and_an_empty_folder(tmp_path: Path) -> None:
    """Everything that the tests themselves need is found, and the trial leaves nothing behind."""
    code, found = examined(str(tmp_path / "out"))
    assert code == 0
    assert {"gdal", "ray", "video", "model", "memory", "scratch", "store"} <= set(found)
    assert found["store"]["verdict"] == "ok"
    assert "put-if-absent works" in found["store"]["found"]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A store below a file is wrong: exit 4, and what to check."""
    (tmp_path / "file").write_text("x")
    code, found = examined(str(tmp_path / "file" / "out"))
    assert code == 4
    assert found["store"]["verdict"] == "wrong"
    assert found["store"]["advice"]


def test_a_job_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    """The trial touches nothing that is there."""
    (tmp_path / "job.json").write_text("{}")
    _, found = examined(str(tmp_path))
    assert "a job" in found["store"]["found"]
    assert [p.name for p in tmp_path.iterdir()] == ["job.json"]


def test_no_cluster_answers(tmp_path: Path) -> None:
    """An address without a dashboard is named."""
    code, found = examined("--cluster", "http://127.0.0.1:9")
    assert code == 4
    assert "127.0.0.1:9" in found["cluster"]["found"]


@pytest.mark.parametrize("address", ["ray-head:8265", "http://me:secret@head:8265"])
def test_a_wrong_address_is_not_a_broken_installation(address: str) -> None:
    """The sentence of submit, without the password; nobody is sent to reinstall anything."""
    code, found = examined("--cluster", address)
    assert code == 4
    assert "--cluster" in found["cluster"]["found"]
    assert "secret" not in json.dumps(found["cluster"])
    assert "einstall" not in found["cluster"]["advice"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_password_in_an_address_is_not_repeated(options: tuple[str, ...]) -> None:
    """It is told to take it out, and does not reach the terminal or the log of whoever ran this."""
    result = CliRunner().invoke(app, ["doctor", "s3://key:hunter2pass@bucket/x", *options])
    assert result.exit_code == 4
    assert "take it out" in result.stdout
    assert "hunter2pass" not in result.output


def test_scratch_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python quietly takes another folder than TMPDIR, which is told; where there is none at all, what to set."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    monkeypatch.setattr("tempfile.tempdir", None)
    findings = {f.what: f for f in doctor.examine()}
    assert findings["scratch"].verdict == "note"
    assert "absent, which cannot be used" in findings["scratch"].advice

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    findings = {f.what: f for f in doctor.examine()}
    assert (findings["scratch"].verdict, "TMPDIR" in findings["scratch"].advice) == ("wrong", True)


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation gives a line, not a traceback, and the other checks go on."""

    def broken() -> Any:
        raise ImportError("libgdal.so.36: cannot open shared object file")

    monkeypatch.setattr(doctor, "_gdal", broken)
    findings = {f.what: f for f in doctor.examine()}
    assert findings["gdal"].verdict == "wrong"
    assert "libgdal" in findings["gdal"].found
    assert findings["ray"].verdict == "ok"


def test_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full scratch disk is a note with the variable that helps."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1 << 20})())
    findings = {f.what: f for f in doctor.examine()}
    assert findings["scratch"].verdict == "note"
    assert "TMPDIR" in findings["scratch"].advice
