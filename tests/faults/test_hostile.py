"""Hostile input: nothing outside is read, nobody is asked, nothing is written elsewhere, nothing is run, no secret is
told. Each test prints its figures."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.faults.canaries import CanaryServer, ReadWatch, files_below, texts_of
from tests.jobs.checkpoints import tiny_checkpoint
from tests.jobs.runs import threads

from panoptile.jobs.cli import main
from panoptile.pipeline import gdal_env
from panoptile.pipeline.echo import EchoReplica

gdal_env.configure()  # before rasterio

import rasterio

SIDE = 64
SECRET = "canary/Secret+of-this-test=="
OUTSIDE = "canary content of a file outside 7f3a9c"


@dataclass
class Ground:
    """A place with canaries around it."""

    inputs: Path
    out: Path
    secret_file: Path
    secret_raster: Path
    marker: Path
    """Appears where code of an input is run."""
    server: CanaryServer
    watch: ReadWatch
    model: str

    def run(self, *arguments: object) -> int:
        """The command line in this process, replicas as threads; its exit code."""
        before = sys.argv
        sys.argv = ["panoptile", *map(str, arguments)]
        try:
            with threads():
                main()
        except SystemExit as e:
            return int(e.code or 0)
        finally:
            sys.argv = before
        return 0

    def segment(self, *sources: object, model: object = None, options: tuple[object, ...] = ()) -> int:
        more = ["-o", self.out, "--model", model or self.model, "--tile", SIDE, "--overlap", 0, "--local"]
        return self.run("segment", *more, "--workers", 1, *options, "--", *sources)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    for name in ("in", "outside", "home", "tmp"):
        (tmp_path / name).mkdir()
    secret = tmp_path / "outside" / "secret.txt"
    secret.write_text(OUTSIDE * 200)
    secret_raster = raster(tmp_path / "outside" / "secret.tif")
    labels = tmp_path / "labels.tif"
    with rasterio.open(labels, "w", driver="GTiff", height=SIDE, width=SIDE, count=1, dtype="int32") as dst:
        dst.write(np.arange(SIDE * SIDE, dtype=np.int32).reshape(1, SIDE, SIDE) // (SIDE * 16) + 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "in")
    with CanaryServer() as server, ReadWatch(secret, secret_raster) as watch:
        yield Ground(
            tmp_path / "in", tmp_path / "out", secret, secret_raster, tmp_path / "outside" / "pwned", server,
            watch, f"echo:{labels}",
        )  # fmt: skip


def raster(path: Path, **tags: str) -> Path:
    data = np.random.default_rng(0).integers(1, 255, (3, SIDE, SIDE)).astype(np.uint8)
    with rasterio.open(
        os.fspath(path), "w", driver="GTiff", height=SIDE, width=SIDE, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 4e6), photometric="RGB",
    ) as dst:  # fmt: skip
        dst.write(data)
        if tags:
            dst.update_tags(ns="OVERVIEWS", **tags)
    return path


def vrt(band: str, size: int = SIDE) -> str:
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}">'
        + "".join(f'<VRTRasterBand dataType="Byte" band="{i}"{band}</VRTRasterBand>' for i in (1, 2, 3))
        + "</VRTDataset>"
    )


def simple(name: object) -> str:
    return f'><SimpleSource><SourceFilename relativeToVRT="0">{name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'


def huge_tiff() -> bytes:
    """A header that declares 2^31 - 1 pixels a side, in one strip."""
    entries = {
        256: 2**31 - 1,
        257: 2**31 - 1,
        258: 8,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 2**31 - 1,
        279: 64,
    }
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + body + bytes(4) + bytes(64)


def sparse(path: Path) -> Path:
    """1.1 million pixels a side in a file of a few kilobytes."""
    with rasterio.open(
        path, "w", driver="GTiff", width=1_100_000, height=1_100_000, count=1, dtype="uint8", tiled=True,
        blockxsize=16384, blockysize=16384, compress="deflate", SPARSE_OK=True, BIGTIFF="YES",
    ):  # fmt: skip
        pass
    return path


class Bomb:
    """What a pickle runs when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def payloads(g: Ground) -> dict[str, tuple[object, ...]]:
    """Inputs that point elsewhere or blow up, by name: arguments after the options."""
    remote, texts = f"/vsicurl/{g.server.address}/x.tif", {}
    texts["raw.tif"] = vrt(
        f' subClass="VRTRawRasterBand"><SourceFilename relativetoVRT="0">{g.secret_file}</SourceFilename>'
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>64</LineOffset>"
    )
    texts["simple.tif"] = vrt(simple(g.secret_raster))
    texts["curl.tif"] = vrt(simple(remote))
    texts["vast.tif"] = vrt(simple(g.secret_raster), 2**31 - 1)
    texts["wms.tif"] = (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{g.server.address}/${{z}}</ServerUrl></Service></GDAL_WMS>'
    )
    texts["bom.tif"] = "\ufeff" + texts["simple.tif"]
    texts["playlist.tif"] = f"#EXTM3U\n{g.server.address}/a.ts\n"
    for name, text in texts.items():
        (g.inputs / name).write_text(text)
    (g.inputs / "huge.tif").write_bytes(huge_tiff())
    sparse(g.inputs / "sparse.tif")
    raster(g.inputs / "inside.tif", OVERVIEW_FILE=remote)
    (g.inputs / "pickle.tif").write_bytes(pickle.dumps(Bomb(g.marker)))
    np.save(g.inputs / "array.npy", np.array([Bomb(g.marker)], dtype=object), allow_pickle=True)
    (g.inputs / "array.npy").rename(g.inputs / "array.tif")
    os.mkfifo(g.inputs / "fifo.tif")
    files = [*texts, "huge.tif", "sparse.tif", "inside.tif", "pickle.tif", "array.tif", "fifo.tif"]
    named = [remote, f"{g.server.address}/x.tif", f"vrt://{g.secret_raster}", f"vrt://{remote}", "/dev/zero"]
    named += [f"WMS:{g.server.address}", f"GTIFF_DIR:1:{g.secret_raster}", f"zip://{g.secret_file}!a.tif"]
    named += [f"/vsizip/{g.secret_file}", f"/vsistdin/{g.secret_file}", f"s3://key:{SECRET}@bucket/a.tif"]
    named += [f"https://host/a.tif?X-Amz-Signature={SECRET}", f"s3://bucket/a.tif?X-Amz-Signature={SECRET}"]
    return {n: (n,) for n in [*files, *named]}


def spoils(g: Ground) -> dict[str, tuple[object, dict[str, object]]]:
    """Files other than inputs that would run code: (source, further arguments)."""
    good = raster(g.inputs / "good.tif")
    bomb = pickle.dumps(Bomb(g.marker))
    weights = tiny_checkpoint(g.inputs / "model")
    (weights / "model.safetensors").unlink()
    (weights / "pytorch_model.bin").write_bytes(bomb)
    (g.inputs / "model.pkl").write_bytes(bomb)
    (g.inputs / "model.pth").write_bytes(bomb)
    (g.inputs / "labels.json").write_bytes(bomb)
    np.save(g.inputs / "labels.npy", np.array([Bomb(g.marker)], dtype=object), allow_pickle=True)
    (g.inputs / "area.geojson").write_bytes(bomb)
    job = f"sources: [{good}]\nout: {g.out}\n"
    (g.inputs / "tag.yaml").write_text(job + f"model: !!python/object/apply:os.system ['touch {g.marker}']\n")
    (g.inputs / "alias.yaml").write_text(job + "a: &a [x,x]\nb: &b [*a,*a]\nmodel: *b\n")
    return {
        "checkpoint .bin": (good, {"model": weights}),
        "checkpoint .pkl": (good, {"model": g.inputs / "model.pkl"}),
        "checkpoint .pth": (good, {"model": g.inputs / "model.pth"}),
        "labels pickle": (good, {"options": ("--labels", g.inputs / "labels.json")}),
        "labels npy": (good, {"options": ("--labels", g.inputs / "labels.npy")}),
        "area pickle": (good, {"options": ("--aoi", g.inputs / "area.geojson")}),
        "job file tag": (g.inputs / "tag.yaml", {}),
        "job file alias": (g.inputs / "alias.yaml", {}),
        "allowed VRT": (g.inputs / "simple.tif", {"options": ("--allow-drivers", "GTiff,VRT")}),
    }


def test_payloads_reach_nothing(ground: Ground, capfd: pytest.CaptureFixture[str]) -> None:
    """VRT, WMS, GDAL's own names, bombs, pickles, YAML tags: each is refused with exit 2 in one sentence; nothing
    outside is read, asked, written or run, and no secret is told."""
    cases = payloads(ground)
    others = spoils(ground)
    before, root = files_below(ground.inputs.parent), ground.inputs.parent
    ground.watch.take()
    told = []
    for name, sources in cases.items():
        code = ground.segment(*sources)
        told.append(_told(capfd, name, code))
    for name, (source, fields) in others.items():
        code = ground.segment(source, **fields)  # type: ignore[arg-type]
        told.append(_told(capfd, name, code))
    reads, after = ground.watch.take(), files_below(root)
    text = "\n".join(told)
    figures = {
        "payloads": len(told),
        "files read outside": reads + text.count(OUTSIDE[:16]),
        "requests": len(ground.server.requests),
        "writes": sum(before.get(k) != v for k, v in after.items()) + len(before.keys() - after.keys()),
        "side effects": int(ground.marker.exists()),
        "occurrences of the secret": text.count(SECRET),
    }
    print(json.dumps(figures))
    assert {k: v for k, v in figures.items() if v and k != "payloads"} == {}
    assert figures["payloads"] >= 30
    assert not ground.out.exists()


def _told(capfd: pytest.CaptureFixture[str], name: str, code: int) -> str:
    out, err = capfd.readouterr()
    assert code == 2, (name, code, err)
    assert len(err.strip().splitlines()) == 1, (name, err)
    assert "Traceback" not in err
    return out + err


def test_the_canaries_sing(ground: Ground) -> None:
    """A read, a request, a write and a run would have been noticed."""
    ground.secret_file.read_text()
    assert ground.watch.take() >= 1
    import urllib.request

    urllib.request.urlopen(f"{ground.server.address}/x", timeout=5).read()
    assert len(ground.server.requests) == 1
    os.system(Bomb(ground.marker).__reduce__()[1][0])
    assert ground.marker.exists()


def test_side_files_and_tampered_state_reach_nothing(
    ground: Ground, capfd: pytest.CaptureFixture[str]
) -> None:
    """An .aux.xml beside a good raster makes no request, and commits that point outside OUT are done again."""
    source = raster(ground.inputs / "pam.tif")
    remote = f"/vsicurl/{ground.server.address}/x.tif"
    Path(f"{source}.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{remote}</MDI></Metadata></PAMDataset>'
    )
    assert ground.segment(source) == 0
    commits = list((ground.out / "_state" / "commits").iterdir())
    for commit in commits:
        fields = json.loads(commit.read_text())
        for target in ("../outside/secret.txt", str(ground.secret_file)):
            commit.write_text(
                json.dumps({**fields, "fragment": target, "size": ground.secret_file.stat().st_size})
            )
            (ground.out / "_SUCCESS.json").unlink(missing_ok=True)
            ground.watch.take()
            assert ground.segment(source) == 0
            assert ground.watch.take() == 0
    assert commits
    assert ground.server.requests == []
    text = "".join(capfd.readouterr())
    print(f"side file and {2 * len(commits)} tampered commits: 0 requests, 0 reads outside")
    assert SECRET not in text


NAMES = [
    "a\nb.tif", "a\r[31mred.tif", "a\x1b[2Jb.tif", "a\tb.tif", "quote'.tif", 'double".tif', "semi;touch pwned.tif",
    "$(touch pwned).tif", "`touch pwned`.tif", "${HOME}.tif", "a|b.tif", "a&b.tif", "a>b.tif", "..tif", "...tif",
    "\u202efit.gnp.tif", "é\u0301€😀.tif", "x" * 250 + ".tif", "-rf.tif", "--out=pwned.tif", "<script>alert(1)</script>.tif".replace("/", "\u2215"),
    "=cmd|' !A0.tif", "@SUM(1).tif", "%2e%2e%2fpwned.tif", "back\\slash.tif", "con.tif", "~.tif", "[a]*?.tif", "{a,b}.tif",
    "s3:bucket.tif", " .tif", "{{7*7}}.tif", "a.tif.aux.xml.tif",
]  # fmt: skip
"""File names that are commands, markup, formulas or escapes."""


def test_a_name_that_is_no_text_is_refused(ground: Ground, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes that are not UTF-8: exit 2 in one sentence, with the name escaped."""
    bad = raster(ground.inputs / "a.tif").rename(ground.inputs / "\udcff\udcfe.tif")
    assert ground.segment("../in") == 2
    out, err = capfd.readouterr()
    assert bad.exists()
    assert len(err.strip().splitlines()) == 1
    assert "not UTF-8" in err
    assert (out + err).isascii()


@pytest.mark.slow
def test_hostile_names_stay_names(
    ground: Ground, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job over all names, in which one unit fails with the secret in its message: everything is written below OUT
    under harmless names, none collides, and no secret or control character is told."""
    template = raster(ground.inputs / "template.tif").read_bytes()
    (ground.inputs / "template.tif").unlink()
    for name in NAMES:
        (ground.inputs / name).write_bytes(template)
    real, calls = EchoReplica.segment, [0]

    def unlucky(replica: EchoReplica, batch: object) -> object:
        calls[0] += 1
        if calls[0] == 1:
            raise RuntimeError(f"cannot reach https://user:{SECRET}@host with {SECRET} in {dict(os.environ)}")
        return real(replica, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(EchoReplica, "segment", unlucky)
    root = ground.inputs.parent
    before = files_below(root)
    code = ground.segment("../in", *[n for n in NAMES if n.startswith(("-", "."))], options=("--retries", 0))
    out, err = capfd.readouterr()
    assert code in (0, 3), (code, err)
    after = files_below(root)
    outside = [k for k, v in after.items() if before.get(k) != v and not k.startswith("out/")]
    contents = list(texts_of(ground.out))
    keys = {p.name for p in (ground.out / "rasters").iterdir()}
    figures = {
        "names": len(NAMES),
        "keys": len(keys),
        "writes outside OUT": len(outside) + len(before.keys() - after.keys()),
        "requests": len(ground.server.requests),
        "side effects": int(any(p.name == "pwned" for p in root.rglob("*"))),
        "occurrences of the secret": (out + err).count(SECRET)
        + sum(SECRET.encode() in t for _, t in contents),
        "control characters told": sum((out + err).count(c) for c in "\x1b\r\u202e"),
    }
    print(json.dumps(figures))
    assert len(keys) == len(NAMES)
    assert all(key.isascii() and key[0].isalnum() and len(key) <= 91 for key in keys), keys
    assert {k: v for k, v in figures.items() if v and k not in ("names", "keys")} == {}
    for path, text in contents:
        if path.suffix == ".html":
            assert b"<script>alert" not in text, path
    if code == 3:
        rows = pq.read_table(ground.out / "deadletter.parquet").to_pylist()
        assert "***" in rows[0]["message"]
