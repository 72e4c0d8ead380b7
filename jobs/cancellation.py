"""Stopping a run from anywhere that reaches OUT: a request in the store, seen by the run's own beat."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from panoptile.jobs.lease import highest_epoch
from panoptile.jobs.state import read_json
from panoptile.pipeline.store import open_store

if TYPE_CHECKING:
    from panoptile.pipeline.store import Store

CANCEL = "_state/cancel.json"
SUBMISSION = "_state/submission.json"
"""Which cluster works on OUT, and under which id: how ``cancel OUT`` and ``logs OUT`` find it."""


def request_cancel(out: str) -> None:
    """Ask the run that holds the lease now to stop. Raises ``OSError`` of the store."""
    store = open_store(out)
    store.put_bytes(CANCEL, json.dumps({"epoch": highest_epoch(store)}).encode())


def record_stop(out: str, job_id: str) -> None:
    """Note in OUT that the cluster was told to stop a job, so that nobody waits for it to begin. Raises ``OSError``."""
    store = open_store(out)
    record = read_json(store, SUBMISSION) or {}
    if record.get("job_id") == job_id:
        store.put_bytes(SUBMISSION, json.dumps({**record, "stopped": True}).encode())


def is_cancelled(store: Store, epoch: int) -> bool:
    """Whether the run of this epoch was asked to stop; a request for an earlier run means nothing to this one."""
    try:
        return int(json.loads(store.read_bytes(CANCEL))["epoch"]) == epoch
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
