"""Ray's Jobs client, but no request waits for ever, and a cluster that fails ends a command with exit 6.

Ray's own sets no time-out, and leaves it to its caller to tell a lost connection from a fault of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests
from ray.job_submission import JobSubmissionClient

from panoptile.jobs.exits import Exit, JobError

if TYPE_CHECKING:
    Client = Any  # Ray's is not typed
else:
    Client = JobSubmissionClient

REQUEST_SECONDS = 60.0
"""Of connecting, and between two pieces of an answer."""
TAKEN = "already exists"
"""What Ray says of a job id that it knows."""


class ClusterClient(Client):  # type: ignore[misc]
    """Raises :class:`JobError` (exit 6) for what the cluster is to blame for; ``RuntimeError`` for an unknown or known
    job id, as Ray's own does."""

    def _do_request(self, method: str, endpoint: str, **given: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **given)
        except requests.RequestException as e:
            raise JobError(
                Exit.UNREACHABLE,
                f"The cluster at {self.get_address()} does not answer ({_reason(e)}): check the address, and that the "
                "cluster is up. A job that was handed over is where panoptile status OUT says.",
            ) from e

    def _raise_error(self, r: Any) -> None:
        if r.status_code == 404 or TAKEN in r.text:
            super()._raise_error(r)
        rows = [row.strip(" .") for row in r.text.splitlines() if row.strip(" .")]
        raise JobError(
            Exit.UNREACHABLE,
            f"The cluster at {self.get_address()} answers with an error (HTTP {r.status_code}): "
            f"{rows[-1] if rows else 'without a word'}.",
        )


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return f"silent for {REQUEST_SECONDS:.0f} s"
    inner = getattr(error.args[0], "reason", error) if error.args else error
    return str(inner).splitlines()[0].rpartition(": ")[2]
