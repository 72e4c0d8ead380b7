"""A Ray cluster that is there already: its Jobs API, with a token or, if the user insists, without.

A Ray cluster that answers without a token runs anybody's code. Such a cluster is refused unless the user says
otherwise (``--insecure-cluster``).
"""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from panoptile.jobs.exits import Exit, JobError, invalid

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

CONNECT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Where a cluster's dashboard listens, and what opens it."""

    url: str
    """``http://host:8265``."""
    token_file: str | None = None
    """File with the cluster's token; None: what Ray's own variables or ``~/.ray/auth_token`` hold."""
    insecure: bool = False
    """Accept a cluster that asks for no token."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise invalid(
                f"--cluster wants the dashboard's address, such as http://ray-head:8265, got {self.url!r}."
            )
        if parts.username or parts.password:
            raise invalid("--cluster must hold no password; give the token with --auth-token-file.")
        if self.token_file is not None and not _token(self.token_file):
            raise invalid(f"--auth-token-file {self.token_file} cannot be read or is empty.")


def connect(address: ClusterAddress) -> JobSubmissionClient:
    """A client of the cluster's Jobs API. Raises :class:`JobError`: exit 6 where it cannot be reached or refuses."""
    asks = asks_for_token(address.url)
    if not asks and not address.insecure:
        raise JobError(
            Exit.UNREACHABLE,
            f"The cluster at {address.url} answers without a token, so anybody who reaches it can run code there: "
            "switch on its token (RAY_AUTH_MODE=token), or accept it with --insecure-cluster.",
        )
    os.environ["RAY_AUTH_MODE"] = "token" if asks else "disabled"
    if address.token_file is not None:
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(address.token_file).expanduser().absolute())
    from ray.exceptions import AuthenticationError

    from panoptile.jobs.cluster_client import ClusterClient

    try:
        client = ClusterClient(address.url)
        client.get_version()
    except AuthenticationError as e:
        does = "refuses the token" if _has_token() else "asks for a token"
        raise JobError(
            Exit.UNREACHABLE,
            f"The cluster at {address.url} {does}: give the file that holds it with --auth-token-file.",
        ) from e
    except (ConnectionError, RuntimeError) as e:
        raise _unreachable(address.url, e) from e
    for name in (
        "ray",
        "ray.dashboard",
        "ray.dashboard.modules.dashboard_sdk",
        "ray._private.runtime_env.packaging",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)  # notes on uploads are not what the user asked for
    return client


def asks_for_token(url: str) -> bool:
    """Whether the cluster refuses a request without a token. Raises :class:`JobError` (exit 6) where none answers."""
    request = urllib.request.Request(f"{url.rstrip('/')}/api/version")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as answer:
            answer.read(1 << 16)
            return False
    except urllib.error.HTTPError as e:
        if e.code in (401, 403):
            return True
        raise _unreachable(url, e) from e
    except (urllib.error.URLError, OSError, ValueError) as e:
        raise _unreachable(url, e) from e


def find_job(client: JobSubmissionClient, job_id: str) -> JobDetails | None:
    """What the cluster knows of a job; None where it does not know it."""
    try:
        return client.get_job_info(job_id)
    except RuntimeError as e:
        if "404" in str(e) or "does not exist" in str(e):
            return None
        raise


def _has_token() -> bool:
    """Whether Ray finds any token where it looks."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    return bool(_token(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"))


def _token(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _unreachable(url: str, error: Exception) -> JobError:
    reason = getattr(error, "reason", None) or str(error).splitlines()[0]
    return JobError(
        Exit.UNREACHABLE,
        f"No Ray dashboard answers at {url} ({reason}): check the address, and that the cluster is up.",
    )
