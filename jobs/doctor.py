"""``panoptile doctor``: is everything there that a run needs, and what to do where it is not.

Each check is a function of its own that never raises: what it cannot find out is a finding too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from panoptile.jobs.exits import JobError
from panoptile.pipeline.redaction import redacted

Verdict = Literal["ok", "note", "wrong"]
SCRATCH_WANTED = 20 << 30
"""Bytes of scratch that a large raster needs: labels and spooled polygons."""
_DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "PNG", "JPEG", "GeoJSON", "GPKG")
_REINSTALL = "Reinstall panoptile's dependencies: pip install --force-reinstall panoptile."
_ADVICE = {
    "scratch": "Set TMPDIR to a folder that can be written.",
    "store": "Check the address, the rights and the credentials.",
    "cluster": "Check the address, and that its dashboard runs the same version of Ray.",
}
"""What to do where a check itself breaks and no installation is to blame."""
_CODECS = ("h264", "hevc", "vp9", "av1")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""
    """What to do; empty where nothing has to be done."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(
    out: str | None = None, cluster: str | None = None, token_file: str | None = None
) -> Iterator[Finding]:
    """All findings, one by one as they come. ``out`` and ``cluster`` are looked at where they are named."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("torch", _torch),
        ("gdal", _gdal),
        ("ray", _ray),
        ("video", _video),
        ("model", _model),
        ("memory", _memory),
        ("scratch", _scratch),
        ("object stores", _clients),
    ]
    if out is not None:
        checks.append(("store", lambda: _store(out)))
    if cluster is not None:
        checks.append(("cluster", lambda: _cluster(cluster, token_file)))
    for name, check in checks:
        try:
            yield from check()
        except JobError as e:  # its sentence says what to do
            yield Finding(name, "wrong", str(e))
        except Exception as e:  # noqa: BLE001  (whatever breaks a check is what the user has to see)
            yield Finding(name, "wrong", f"{type(e).__name__}: {e}", _ADVICE.get(name, _REINSTALL))


def finding_text(finding: Finding) -> str:
    """One line, or two with the advice."""
    mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[finding.verdict]
    line = f"{mark}  {finding.what:<14} {finding.found}"
    return redacted(line if not finding.advice else f"{line}\n                       -> {finding.advice}")


def _torch() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        yield Finding(
            "gpu",
            "note",
            f"none (torch {torch.__version__}, {os.cpu_count()} CPU cores)",
            "Replicas run on the CPU. With an NVIDIA GPU: check its driver (nvidia-smi)."
            if built
            else "This torch is built without CUDA: replicas run on the CPU.",
        )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding(
            f"gpu {index}",
            "ok",
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}, torch {torch.__version__}",
        )
    triton = _version("triton")
    yield Finding(
        "triton",
        "ok" if triton else "note",
        triton or "not installed",
        "" if triton else "pip install triton makes the network's attention faster on this GPU.",
    )


def _gdal() -> Iterator[Finding]:
    from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)

    rasterio = importlib.import_module("rasterio")
    drivers = importlib.import_module("rasterio.drivers").raster_driver_extensions
    with rasterio.Env() as env:
        known = set(env.drivers())
    missing = [name for name in _DRIVERS if name not in known]
    yield Finding(
        "gdal",
        "wrong" if {"GTiff", "COG"} & set(missing) else "note" if missing else "ok",
        f"GDAL {rasterio.__gdal_version__}, rasterio {rasterio.__version__}, {len(known)} drivers, "
        f"{len(drivers())} file extensions" + (f"; without {', '.join(missing)}" if missing else ""),
        "Install rasterio from its wheel: pip install --force-reinstall rasterio." if missing else "",
    )


def _ray() -> Iterator[Finding]:
    found = _version("ray")
    if found is None:
        yield Finding("ray", "wrong", "not installed", "pip install 'ray[default]', or run with --local.")
        return
    token = os.environ.get("RAY_AUTH_TOKEN_PATH", os.path.expanduser("~/.ray/auth_token"))
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or os.path.isfile(token)
    address = os.environ.get("RAY_ADDRESS")
    yield Finding(
        "ray",
        "ok",
        f"{found}; {'RAY_ADDRESS ' + address if address else 'no cluster named: runs start a private Ray'}; "
        f"{'a token for clusters is there' if has_token else 'no token for clusters'}",
    )


def _video() -> Iterator[Finding]:
    import av
    from av.codec import codecs_available

    missing = [name for name in _CODECS if name not in codecs_available]
    decord = _version("decord")
    yield Finding(
        "video",
        "note" if missing else "ok",
        f"PyAV {av.__version__}, decord {decord or 'not installed (PyAV decodes everything)'}"
        + (f"; no decoder for {', '.join(missing)}" if missing else ""),
        "Install av from its wheel: pip install --force-reinstall av." if missing else "",
    )


def _model() -> Iterator[Finding]:
    from panoptile.jobs.models import BUILTIN, checkpoint_folder
    from panoptile.model.checkpoint import inspect_checkpoint

    info = inspect_checkpoint(str(checkpoint_folder(BUILTIN)))
    yield Finding(
        "model", "ok", f"built-in: {info.parameters / 1e6:.1f} M parameters, sha256 {info.sha256[:12]}"
    )


def _memory() -> Iterator[Finding]:
    import psutil

    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    small = free < 2 << 30
    yield Finding(
        "memory",
        "note" if small else "ok",
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        "A replica on a CPU takes 1 to 3 GiB: use --workers 1 and a smaller --tile." if small else "",
    )


def _scratch() -> Iterator[Finding]:
    folder, wanted = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with tempfile.NamedTemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    advice = []
    if wanted and os.path.abspath(wanted) != folder:
        advice.append(f"TMPDIR names {wanted}, which cannot be used: make it, or give its rights.")
    if free < SCRATCH_WANTED:
        advice.append(f"Large rasters need up to {SCRATCH_WANTED >> 30} GiB: set TMPDIR to a larger disk.")
    yield Finding(
        "scratch",
        "note" if advice else "ok",
        f"{folder}, {free / 2**30:.0f} GiB free",
        " ".join(advice),
    )


def _clients() -> Iterator[Finding]:
    parts, missing = [], []
    for scheme, package, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")):
        found = _version(package)
        parts.append(f"{scheme}:// {found}" if found else f"{scheme}:// no client")
        if not found:
            missing.append(extra)
    yield Finding(
        "object stores",
        "note" if missing else "ok",
        ", ".join(parts),
        f"pip install 'panoptile[{','.join(missing)}]' if you use them." if missing else "",
    )


def _store(out: str) -> Iterator[Finding]:
    """Write, read back, list, delete, and try to overwrite what must not be overwritten."""
    from panoptile.pipeline.store import open_store

    try:
        store = open_store(out)
        key, data = f"_state/probe/{uuid.uuid4().hex}", b"panoptile doctor"
        before = set(store.entries())
        began = time.perf_counter()
        store.put_bytes(key, data)
        seconds = time.perf_counter() - began
        same = store.read_bytes(key) == data
        abilities = store.abilities
        store.delete(key)
        _leave_no_folders(store.root)
    except (OSError, ValueError) as e:
        yield Finding("store", "wrong", f"{out}: {e}", _ADVICE["store"])
        return
    if not same:
        yield Finding("store", "wrong", f"{out} does not give back what was written", "Use another store.")
        return
    held = "a job" if "job.json" in before else "other files" if before - {"_state"} else "nothing yet"
    yield Finding(
        "store",
        "ok" if abilities.exclusive else "note",
        f"{store.root} holds {held}; a put takes {seconds * 1e3:.0f} ms; put-if-absent "
        f"{'works' if abilities.exclusive else 'is ignored'}",
        abilities.note,
    )


def _leave_no_folders(root: str) -> None:
    """Remove the empty folders that the trial made in a local store."""
    for name in ("_state/probe", "_state/tmp", "_state", ""):
        with contextlib.suppress(OSError):  # not empty, or no local folder
            os.rmdir(os.path.join(root, name))


def _cluster(url: str, token_file: str | None) -> Iterator[Finding]:
    from panoptile.jobs.cluster import ClusterAddress, asks_for_token, connect

    address = ClusterAddress(url, token_file, insecure=True)
    asks = asks_for_token(url)
    connect(address).list_jobs()
    yield Finding(
        "cluster",
        "ok" if asks else "note",
        f"{url} {'asks for a token and takes ours' if asks else 'asks for no token'}",
        "" if asks else "Anybody who reaches it can run code there: start it with RAY_AUTH_MODE=token.",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
