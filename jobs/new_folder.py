"""Folders, ZIPs and files that are there only when they are whole: made under a hidden name, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

from panoptile.jobs.exits import invalid


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` if the block ends well and vanishes if it does not.

    With the ending ``.zip``, its files become a ZIP, stored as they are. Raises :class:`JobError` (exit 2) where
    ``target`` is there already, ``OSError`` where it cannot be made.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    packed = scratch.with_suffix(".zip")
    scratch.mkdir()
    try:
        yield scratch
        whole = scratch
        if is_packed(target):
            _pack(scratch, packed)
            whole = packed
        refuse_existing(target)
        os.rename(whole, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        packed.unlink(missing_ok=True)


@contextlib.contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """A scratch folder to fill, whose files move into ``folder`` if the block ends well and vanish if it does not.

    ``folder`` may hold others already; where it is not there, it is made, and stays only if the block ends well. Raises
    :class:`JobError` (exit 2) where one of the files is there already, ``OSError`` where ``folder`` cannot be made.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as scratch:
            yield Path(scratch)
            files = sorted(Path(scratch).iterdir())
            for file in files:
                refuse_existing(folder / file.name)
            for file in files:
                os.rename(file, folder / file.name)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # it was never made, or another has put something into it
                path.rmdir()
        raise


def is_packed(target: Path) -> bool:
    """Whether ``target`` will be a ZIP."""
    return target.suffix.lower() == ".zip"


def refuse_existing(target: Path) -> None:
    """Raise :class:`JobError` (exit 2) where ``target`` is there already."""
    if os.path.lexists(target):
        raise invalid(f"{target} is there already: remove it, or name another -o.")


def _pack(folder: Path, path: Path) -> None:
    """Pictures are compressed already, and text is little beside them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
