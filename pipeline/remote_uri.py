"""URIs of object stores: which are understood, and which are refused because they carry a secret.

Credentials come from the environment or the machine's role, never from a URI: a URI ends up in job files, logs,
reports and shell histories.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from panoptile.pipeline.redaction import redacted

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""The extra of panoptile that brings the client for each scheme."""
SCHEMES = (*EXTRAS, "memory")
"""Object stores that can be read and written."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTAINER = re.compile(r"[A-Za-z0-9$-]+@[A-Za-z0-9.-]+")
"""Azure's own way to name a container of an account: no password is in it."""


def scheme_of(text: str) -> str | None:
    """The scheme of a URI in lower case; None for a local path."""
    match = _SCHEME.match(text)
    return None if match is None else match[1].lower()


def local_path_of(text: str) -> Path:
    """The absolute local path of a path or of a ``file://`` URL. Raises ``ValueError`` for another host's file."""
    if scheme_of(text) == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{text} names a file of the host {parts.netloc}: give a path of this machine.")
        text = unquote(parts.path)
    if "\0" in text or not text:
        raise ValueError(f"{text!r} is not a path.")
    return Path(text).expanduser().absolute()


def checked_uri(text: str) -> str:
    """``text`` with its scheme in lower case and without slashes at its end.

    Raises ``ValueError`` for a scheme that is not understood, a URI without a bucket, and one with a password or a
    signature in it; the message never repeats the secret.
    """
    scheme = scheme_of(text)
    if scheme not in SCHEMES:
        raise ValueError(
            f"{redacted(text)} cannot be used: give a local path or one of {', '.join(s + '://' for s in SCHEMES)}."
        )
    rest = text.split("://", 1)[1]
    place = rest.split("/", 1)[0]
    named_account = EXTRAS.get(scheme) == "azure" and _CONTAINER.fullmatch(place)
    if ("@" in place or ":" in place) and not named_account:
        raise ValueError(
            f"{redacted(text)} has a user name or password in it: take it out and give credentials by the environment."
        )
    if re.search(r"\?[^/]*=", rest):
        raise ValueError(
            f"{redacted(text)} has query parameters, such as a signature: give the plain URI, and credentials by the "
            "environment."
        )
    if "\0" in rest or ".." in rest.split("/"):
        raise ValueError(f"{redacted(text)!r} is not a place in an object store: '..' means nothing there.")
    if not place:
        raise ValueError(f"{redacted(text)} names no bucket: write {scheme}://bucket/folder.")
    return f"{scheme}://{rest.rstrip('/')}"


def needs_one_process(uri: str) -> bool:
    """True where only one process sees the place (``memory://``): no Ray worker could write to it."""
    return scheme_of(uri) == "memory"
