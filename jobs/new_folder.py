"""A folder, or a ZIP of one, that is there only when it is whole: made under a hidden name beside it, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
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
