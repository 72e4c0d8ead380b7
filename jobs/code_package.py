"""What a job takes along to a cluster: its job file, small files that it names, and, if asked, panoptile itself.

Ray unpacks this folder on every node and makes it the working directory, which stands first on Python's path. Its own
way of installing a wheel calls pip on every node, which would fetch torch from the network; unpacking does not.
"""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from panoptile.jobs.exits import invalid
from panoptile.jobs.job_file import job_file_text, with_absolute_paths
from panoptile.jobs.spec import JobSpec

JOB_FILE = "job.yaml"
LARGEST_MODEL = 400 << 20
"""Bytes of a checkpoint folder that still travels with a job."""


def pack(spec: JobSpec, folder: Path, *, wheel: str | None) -> None:
    """Fill an empty folder for a job.

    ``wheel``: None where the cluster's image holds panoptile; ``"this"`` for the code that is running; else a wheel
    file. Raises :class:`JobError` (exit 2).
    """
    spec = with_absolute_paths(spec)
    moved: dict[str, Any] = {}
    for name in ("labels", "aoi"):
        path = getattr(spec, name)
        if path is not None and Path(path).is_file():
            moved[name] = f"{name}{Path(path).suffix}"
            shutil.copyfile(path, folder / moved[name])
    if Path(spec.model).is_dir():
        size = sum(p.stat().st_size for p in Path(spec.model).rglob("*") if p.is_file())
        if size > LARGEST_MODEL:
            raise invalid(
                f"The checkpoint {spec.model} has {size >> 20} MiB, too much to travel with a job: put it on an object "
                "store's mount or a hub, and name it by a path that every node sees."
            )
        moved["model"] = "./checkpoint"
        shutil.copytree(spec.model, folder / "checkpoint")
    (folder / JOB_FILE).write_text(job_file_text(dataclasses.replace(spec, **moved)), encoding="utf-8")
    if wheel == "this":
        _pack_this(folder)
    elif wheel is not None:
        _unpack_wheel(Path(wheel), folder)


def _pack_this(folder: Path) -> None:
    """The running code and its version, without what Python compiles."""
    import panoptile

    source = Path(panoptile.__file__).parent
    shutil.copytree(source, folder / "panoptile", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    number = version("panoptile")
    info = folder / f"panoptile-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: panoptile\nVersion: {number}\n", encoding="utf-8"
    )


def _unpack_wheel(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            inside = all(not n.startswith("/") and ".." not in n.split("/") for n in names)
            if not inside or not any(n.startswith("panoptile/") for n in names):
                raise invalid(f"{wheel} is no wheel of panoptile.")
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as e:
        raise invalid(f"--wheel {wheel} cannot be read: {e}.") from e
