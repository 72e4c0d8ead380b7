"""From what the user named (files, globs, directories) to the list of input files and their output keys."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from panoptile.pipeline import remote_object
from panoptile.pipeline.redaction import redacted
from panoptile.pipeline.remote_raster import READABLE
from panoptile.pipeline.remote_uri import checked_uri, local_path_of, scheme_of

RASTER_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2")
"""Files that a directory contributes, in lower or upper case. A file named directly may end in anything."""

MAX_STEM = 80
NAMED = 20
"""Most sources that one error names."""


class InputError(ValueError):
    """The input cannot be used: one sentence of what, where, and what to do. Exit code 2."""


class NothingThere(InputError):
    """A folder without inputs, or a pattern without match: at other times something may lie there."""


def find_inputs(sources: Sequence[str], *, may_be_empty: bool = False) -> list[str]:
    """Absolute paths and URIs of the rasters that ``sources`` name, in the order named, each file once.

    A source is a file, a glob (``**`` descends), a directory (its rasters, sorted by name, without
    sub-directories), a ``file://`` URL, or an object, glob or folder in an object store. Two names of one file (a
    link, a relative path) count as one, the first. Raises InputError that names every missing file, directory without
    rasters and glob without match, and StoreUnreachable for an object store that cannot be listed.

    ``may_be_empty``: folders without rasters and globs without match contribute nothing, and the list may be empty.
    """
    found = expanded(
        sources, lambda s: _expand_remote(s) if remote_object.is_remote(s) else _expand(s), may_be_empty
    )
    for path in found:
        if not path.isprintable() and not _is_text(path):
            raise InputError(
                f"{shown(path)} has a name that is not UTF-8, which tables cannot hold: rename the file."
            )
    if not found and not may_be_empty:
        raise InputError("No input was named: give at least one raster, directory or glob.")
    return found


def expanded(
    sources: Sequence[str], expand: Callable[[str], Sequence[str]], may_be_empty: bool = False
) -> list[str]:
    """What ``expand`` finds for every source, each file once, under the first of its names.

    Raises InputError for all sources that it refuses together; ``may_be_empty``: but not for those that name nothing.
    """
    found: dict[str, str] = {}
    wrong: list[InputError] = []
    for source in sources:
        try:
            for path in expand(source):
                found.setdefault(path if remote_object.is_remote(path) else os.path.realpath(path), path)
        except InputError as e:
            if not (may_be_empty and isinstance(e, NothingThere)):
                wrong.append(e)
    if wrong:
        raise together(wrong)
    return list(found.values())


def together(wrong: Sequence[InputError]) -> InputError:
    """One error that says what all of them say, a line each; a single one is itself."""
    if len(wrong) == 1:
        return wrong[0]
    rest = [f"… and {len(wrong) - NAMED:,} more"] if len(wrong) > NAMED else []
    return InputError("\n".join([*map(str, wrong[:NAMED]), *rest]))


def output_key(uri: str) -> tuple[str, str]:
    """(key, stem) for the outputs of one input; two inputs never share a key.

    The stem is the name of the file or object without ending, in ASCII letters, digits and ``._-``, at most 80
    characters, never starting with a dot or a dash. The key is the stem, a dash and the first 10 hex digits
    of sha256(uri). A local path is made absolute first, so the key does not depend on the working directory.
    """
    if "://" in uri:
        name = uri.split("://", 1)[1]  # a key as it is: #, ? and % mean nothing in it
    else:
        uri = name = os.path.abspath(uri)
    stem = sanitised(PurePosixPath(name).stem)
    digest = hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{stem}-{digest[:10]}", stem


def sanitised(name: str) -> str:
    """``name`` as a harmless file name: see output_key; "raster" where nothing is left of it."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_name).lstrip("._-")[:MAX_STEM] or "raster"


def shown(path: str) -> str:
    """``path`` for a message: without secrets, and with escapes where it holds control characters, which could
    forge log lines."""
    path = redacted(path)
    return path if path.isprintable() else repr(path)


def stands_for_a_file(path: str) -> bool:
    """Whether a name that a folder holds, or a pattern matches, is an input: a file, or a link that leads nowhere.

    Behind such a link may be a share that is not mounted: passing it over would lose its scenes without a word.
    """
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _expand(source: str) -> list[str]:
    path = _local_path(source)
    if os.path.isdir(path):
        return _directory_rasters(path)
    if os.path.lexists(path):
        return [os.path.abspath(path)]
    if glob.has_magic(path):
        matches = sorted(m for m in glob.glob(path, recursive=True) if stands_for_a_file(m))
        if not matches:
            raise NothingThere(
                f"No file matches {shown(path)}: check the pattern, and quote it in the shell."
            )
        return [os.path.abspath(m) for m in matches]
    raise InputError(f"{shown(path)} does not exist: check the path.")


def _local_path(source: str) -> str:
    if not source or "\0" in source:
        raise InputError(f"{source!r} is not a path: name a file, a directory or a glob.")
    if scheme_of(source) == "file":
        try:
            return str(local_path_of(source))
        except ValueError as e:
            raise InputError(str(e)) from e
    if source.startswith("/vsi"):
        raise InputError(
            f"{shown(source)} is GDAL's own name: give a local path or a URI such as s3://bucket/key."
        )
    return source


def _expand_remote(source: str) -> list[str]:
    scheme = scheme_of(source)
    if scheme not in READABLE:
        readable = ", ".join(f"{s}://" for s in READABLE)
        raise InputError(
            f"{shown(source)} cannot be read: download it first; local files and {readable} are read."
        )
    try:
        uri = checked_uri(source)
        if not source.endswith("/") and remote_object.exists(uri):
            return [uri]
        if glob.has_magic(uri):
            matches = remote_object.objects_like(uri)
            if not matches:
                raise NothingThere(
                    f"No object matches {shown(uri)}: check the pattern, and quote it in the shell."
                )
            return matches
        inside = [u for u in remote_object.objects_in(uri) if _is_raster_name(u.rsplit("/", 1)[-1])]
    except InputError:
        raise
    except ValueError as e:
        raise InputError(shown(str(e))) from e
    if not inside:
        raise NothingThere(
            f"{shown(uri)} is neither an object nor a folder with rasters ({' '.join(RASTER_ENDINGS)}): check the name."
        )
    return inside


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_raster_name(name: str) -> bool:
    return name.lower().endswith(RASTER_ENDINGS) and not name.startswith(".")


def _directory_rasters(directory: str) -> list[str]:
    names = sorted(os.listdir(directory))
    rasters = [os.path.abspath(os.path.join(directory, name)) for name in names if _is_raster_name(name)]
    files = [path for path in rasters if stands_for_a_file(path)]
    if not files:
        raise NothingThere(
            f"{shown(directory)} holds no raster: looked for {' '.join(RASTER_ENDINGS)}, not in sub-directories."
        )
    return files
