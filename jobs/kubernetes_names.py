"""What Kubernetes takes for a name, an image and a mount: a wrong one is found by nobody before its night."""

from __future__ import annotations

import os
import re

from panoptile.jobs.exits import invalid

JOB_MOUNT = "/etc/panoptile"
"""Where the job file lies in a pod."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:{_HOST}(?:\.{_HOST})*(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,})?"
)


def check_namespace(text: str) -> None:
    """Raises :class:`JobError` (exit 2) for what is no label of RFC 1123."""
    if not re.fullmatch(_LABEL, text):
        raise invalid(
            f"--namespace wants lower-case letters, digits and '-' (at most 63), not '-' first or last; got {text!r}."
        )


def check_secret(text: str) -> None:
    """Raises :class:`JobError` (exit 2) for what is no subdomain of RFC 1123."""
    if not _SUBDOMAIN.fullmatch(text):
        raise invalid(
            f"--secret wants a secret's name, lower-case letters, digits, '-' and '.'; got {text!r}."
        )


def check_image(text: str) -> None:
    """Raises :class:`JobError` (exit 2) for what no container runtime takes for an image."""
    if not _IMAGE.fullmatch(text):
        raise invalid(
            f"--image wants an image such as registry.org/team/panoptile:1, its name in lower case; got {text!r}."
        )


def parse_claim(text: str) -> tuple[str, str]:
    """'CLAIM:/path' as (claim, path). Raises :class:`JobError` (exit 2) for a path that would not do as a mount."""
    name, _, path = text.partition(":")
    place = os.path.normpath(f"/{path.lstrip('/')}")
    if not _SUBDOMAIN.fullmatch(name) or not path.startswith("/") or ":" in path or ".." in path.split("/"):
        raise invalid(
            f"--volume-claim wants CLAIM:/path, a claim's name and an absolute path without ':' and '..'; got {text!r}."
        )
    if is_below(JOB_MOUNT, place) or is_below(place, JOB_MOUNT):
        raise invalid(
            f"--volume-claim cannot be mounted at {place}, which would hide {JOB_MOUNT}, where the job file lies, or lie "
            "in it: choose another path, such as /data."
        )
    return name, place


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is ``folder`` or lies in it, '..' resolved."""
    return f"{os.path.normpath(path)}/".startswith(f"{folder.rstrip('/')}/")
