"""Whole jobs between local disk and object stores: the same bytes wherever they are read from and written to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pystac
import pytest
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from tests.faults.fault_proxy import FaultProxy, Faults
from tests.jobs.runs import WorldFiles, published, threads
from tests.object_stores import Server, reach

from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.prepare import prepare
from panoptile.jobs.previews import redraw
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.jobs.stac import write_catalog
from panoptile.pipeline import layout
from panoptile.pipeline.store import open_store

WORLD = (31, 230, 260)
TILING = {"tile": 128, "overlap": 32}


def segment(files: WorldFiles, source: str, out: str, **options: object) -> Summary:
    fields: dict[str, object] = {
        "model": files.model,
        "labels": str(files.table),
        "local": True,
        "workers": 1,
    }
    spec = JobSpec((source,), out, **{**fields, **TILING, **options})  # type: ignore[arg-type]
    with threads():
        return run_job(prepare(spec), Console(quiet=True))


def tree(out: str) -> dict[str, str]:
    """sha256 of every file of the published tree in any store."""
    store = open_store(out)
    keys = [s.key for s in store.walk() if s.key.split("/")[0] in layout.PUBLISHED]
    return {key: store.sha256(key) for key in keys}


def rasters(files: dict[str, str]) -> list[str]:
    """Hashes of the label rasters, whose bytes do not depend on where the input was; tables name it."""
    return sorted(v for k, v in files.items() if k.startswith("rasters/"))


def test_a_store_gets_the_bytes_of_a_folder(
    files: WorldFiles, calm_tree: dict[str, str], s3_root: str
) -> None:
    """Disk to S3: the published tree is byte-identical, and the same command then does nothing."""
    summary = segment(files, str(files.image), s3_root)
    assert summary.exit == 0
    assert summary.out == s3_root
    assert tree(s3_root) == calm_tree
    assert segment(files, str(files.image), s3_root).already_done
    (drawn,) = redraw(s3_root, 512).paths
    assert drawn.startswith(f"{s3_root}/previews/")


def test_an_archived_object_is_published_again(files: WorldFiles, s3_root: str) -> None:
    """A growing job from S3 to S3: the object and a file of its result are gone; the file is made from the fragments, and
    the picture stays."""
    source, out = open_store(f"{s3_root}/in"), f"{s3_root}/out"
    for name in ("a.tif", "b.tif"):
        source.put_bytes(name, files.image.read_bytes())
    job = {"files": files, "source": f"{s3_root}/in/*.tif", "out": out, "incremental": True}
    assert segment(**job).exit == 0  # type: ignore[arg-type]
    before, store = tree(out), open_store(out)
    source.delete("a.tif")
    store.delete(next(key for key in before if key.startswith("segments/a-")))
    assert segment(**job).exit == 0  # type: ignore[arg-type]
    after = tree(out)
    assert {key for key in before if after.pop(key) != before[key]} <= {layout.MANIFEST}
    assert not after
    assert redraw(out, 512).left == (source.uri("a.tif"),)
    store.delete(store.keys("_state/data")[0])
    assert segment(**job).already_done  # type: ignore[arg-type]


def test_an_object_gives_the_bytes_of_a_file(
    files: WorldFiles, calm_tree: dict[str, str], s3_root: str, tmp_path: Path
) -> None:
    """S3 to disk and S3 to S3: equal trees, and the label rasters of the run from disk; the manifest names the URI."""
    source = open_store(s3_root)
    source.put_bytes("in/image.tif", files.image.read_bytes())
    uri = source.uri("in/image.tif")
    assert segment(files, uri, str(tmp_path / "out")).exit == 0
    assert segment(files, f"{s3_root}/in/*.tif", f"{s3_root}/out").exit == 0
    assert tree(f"{s3_root}/out") == published(tmp_path / "out")
    assert rasters(tree(f"{s3_root}/out")) == rasters(calm_tree)


def item_of(out: str) -> dict[str, Any]:
    """The only item of the catalogue of a finished job, which is written anew and is valid STAC."""
    write_catalog(out)
    validator = JsonSchemaSTACValidator()
    found = list[dict[str, Any]]()
    for path in sorted((Path(out) / "catalog").rglob("*.json")):
        document = json.loads(path.read_text())
        kinds = pystac.STACObjectType
        kind = kinds.COLLECTION if document["type"] == "Collection" else kinds.ITEM
        validator.validate_core(document, kind, document["stac_version"], str(path))
        found += [document] if path.parent.name == "items" else []
    assert len(found) == 1
    return found[0]


def test_the_time_of_an_object_is_told_and_not_compared(
    files: WorldFiles, s3_root: str, tmp_path: Path
) -> None:
    """The catalogue has the time at which an object was written. Equal bytes written again are no changed input, nor is a plan
    that was stored without such a time, which the catalogue then does not make up."""
    out, source = str(tmp_path / "out"), open_store(s3_root)
    before = datetime.now(UTC) - timedelta(seconds=5)
    source.put_bytes("in/image.tif", files.image.read_bytes())
    uri = source.uri("in/image.tif")
    assert segment(files, uri, out).exit == 0
    assert before <= datetime.fromisoformat(item_of(out)["properties"]["datetime"]) <= datetime.now(UTC)
    [plan] = (tmp_path / "out" / "_state" / "plan").glob("*.json")
    time.sleep(1.1)  # S3 tells whole seconds
    source.put_bytes("in/image.tif", files.image.read_bytes())
    assert segment(files, uri, out).already_done
    stored = json.loads(plan.read_text())
    assert stored["info"].pop("written_ns") > before.timestamp() * 1e9
    plan.write_text(json.dumps(stored, sort_keys=True, indent=1))
    assert item_of(out)["properties"]["datetime"] is None
    assert segment(files, uri, out).already_done


def test_memory_is_a_store_for_one_process(files: WorldFiles, calm_tree: dict[str, str]) -> None:
    """memory:// with --local publishes the same bytes; without --local it is refused before anything starts."""
    out = f"memory://{uuid.uuid4().hex}/out"
    assert segment(files, str(files.image), out).exit == 0
    assert tree(out) == calm_tree
    with pytest.raises(ValueError, match="add --local"):
        JobSpec((str(files.image),), out)


def panoptile(files: WorldFiles, source: str, out: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "panoptile", "segment", source, "-o", out, "--model", files.model]
    command += ["--labels", str(files.table), "--tile", "128", "--overlap", "32", "--workers", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_ray_workers_write_to_a_store(files: WorldFiles, calm_tree: dict[str, str], s3_root: str) -> None:
    """Ray actors open the store by its URI and find credentials in their environment."""
    ended = panoptile(files, str(files.image), s3_root, "--workers", "2")
    assert ended.returncode == 0, ended.stderr
    assert tree(s3_root) == calm_tree


@pytest.mark.parametrize("kind", ["gcs", "azure"])
def test_google_and_azure_hold_whole_jobs(
    kind: str,
    files: WorldFiles,
    calm_tree: dict[str, str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Input and output in the store of another kind: the same label rasters."""
    root = reach(request.getfixturevalue(f"{kind}_server"), monkeypatch)
    source = open_store(root)
    source.put_bytes("in/image.tif", files.image.read_bytes())
    assert segment(files, source.uri("in/image.tif"), f"{root}/out").exit == 0
    assert rasters(tree(f"{root}/out")) == rasters(calm_tree)


# --- refusals ------------------------------------------------------------------------------------------


def check_refused(ended: subprocess.CompletedProcess[str], words: str, seconds: float) -> None:
    print(f"exit {ended.returncode} after {seconds:.1f} s: {ended.stderr.strip()}")
    assert ended.returncode == 6
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert words in lines[0]
    assert lines[0].endswith(".")


def test_a_missing_bucket_ends_with_exit_6(files: WorldFiles, s3_root: str) -> None:
    """One sentence that names the bucket, at once."""
    started = time.monotonic()
    ended = panoptile(files, str(files.image), "s3://panoptile-no-such-bucket/out", "--local")
    check_refused(ended, "panoptile-no-such-bucket", time.monotonic() - started)


def test_a_refusing_store_ends_with_exit_6(
    files: WorldFiles, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """403: one sentence with what to check; it is not tried again for minutes."""
    if s3_server.port is None:
        pytest.skip("PANOPTILE_TEST_S3 names a real store, before which no proxy can stand")
    with FaultProxy(s3_server.port, Faults(denied=1.0)) as proxy:
        root = reach(s3_server, monkeypatch, proxy.port)
        started = time.monotonic()
        ended = panoptile(files, str(files.image), root, "--local")
        check_refused(ended, "credentials", time.monotonic() - started)
        assert proxy.requests <= 4


def test_no_credentials_at_all_end_with_exit_6(
    files: WorldFiles, s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing in the environment, no profile, no role: one sentence."""
    for name in list(os.environ):
        if name.startswith("AWS_") and name not in ("AWS_ENDPOINT_URL", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    started = time.monotonic()
    ended = panoptile(files, str(files.image), s3_root, "--local")
    check_refused(ended, "credentials", time.monotonic() - started)


def test_an_unreachable_input_ends_with_exit_6(files: WorldFiles, s3_root: str, tmp_path: Path) -> None:
    """The store of the inputs is missing: nothing is written."""
    ended = panoptile(files, "s3://panoptile-no-such-bucket/a.tif", str(tmp_path / "out"), "--local")
    assert ended.returncode in (2, 6), ended.stderr
    assert "panoptile-no-such-bucket" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_store_that_ignores_put_if_absent_still_gets_the_right_bytes(
    files: WorldFiles, calm_tree: dict[str, str], s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits are elected, the user is told in one sentence, and the published tree is the same."""
    if s3_server.port is None:
        pytest.skip("PANOPTILE_TEST_S3 names a real store, before which no proxy can stand")
    with FaultProxy(s3_server.port, Faults(), drop_headers=("if-none-match",)) as proxy:
        root = reach(s3_server, monkeypatch, proxy.port)
        ended = panoptile(files, str(files.image), root, "--local")
        assert ended.returncode == 0, ended.stderr
        assert sum("ignores put-if-absent" in line for line in ended.stderr.splitlines()) == 1
        assert proxy.counts["dropped if-none-match"] >= 1
        assert tree(root) == calm_tree
        assert not [s.key for s in open_store(root).walk("_state/attempts")]


# --- faults --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_through_a_bad_network_publishes_the_same_bytes(
    files: WorldFiles, s3_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Input and output behind a proxy with 10 % each of 503, resets, silence, torn GETs and lost answers of PUTs:
    exit 0, the bytes of a calm run, no false conflict."""
    if s3_server.port is None:
        pytest.skip("PANOPTILE_TEST_S3 names a real store, before which no proxy can stand")
    faults = Faults(unavailable=0.1, reset=0.1, silence=0.1, torn=0.1, lost=0.1)
    with FaultProxy(s3_server.port, faults, seed=7, hold=2.5) as proxy:
        root = reach(s3_server, monkeypatch, proxy.port)
        monkeypatch.setenv(
            "FSSPEC_S3", json.dumps({"config_kwargs": {"read_timeout": 2, "connect_timeout": 2}})
        )
        monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "2")
        proxy.enabled = False
        source = open_store(root)
        source.put_bytes("in/image.tif", files.image.read_bytes())
        assert segment(files, source.uri("in/image.tif"), f"{root}/calm").exit == 0
        calm_requests = proxy.requests
        proxy.enabled = True
        started = time.monotonic()
        ended = panoptile(files, source.uri("in/image.tif"), f"{root}/out", "--local", "--json")
        wall = time.monotonic() - started
        proxy.enabled = False
        print(ended.stderr)
        assert ended.returncode == 0, ended.stderr
        same = tree(f"{root}/out") == tree(f"{root}/calm")
        dead = open_store(f"{root}/out").keys("_state/dead")
        commits = len(open_store(f"{root}/out").keys("_state/commits"))
        print(
            f"requests calm {calm_requests}, with faults {proxy.requests - calm_requests}, "
            f"{json.dumps(dict(sorted(proxy.counts.items())))}; wall {wall:.0f} s; commits {commits}; same bytes {same}; "
            f"false conflicts {_false_conflicts(ended.stderr)}"
        )
        assert same
        assert not dead
        assert all(proxy.counts[n] for n in ("unavailable", "reset", "silence", "torn", "lost"))
        assert _false_conflicts(ended.stderr) == 0


def _false_conflicts(stderr: str) -> int:
    """A conflict that is not one would be told: another job or run holds the folder, or a unit runs again."""
    return sum("another" in line or "retry" in line for line in stderr.splitlines())
