"""A unit's commit: the one object that makes a fragment count, written once by put-if-absent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from panoptile.pipeline.attempt import FragmentRef
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.layout import commit_key
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Commit:
    """What a unit's commit says."""

    unit: str
    fragment: str
    """Key of the fragment."""
    sha256: str
    size: int
    """Bytes."""
    failed_tiles: tuple[int, ...] = ()
    """Items that could not be done, ascending: they are missing from the fragment."""


def commit_unit(store: Store, unit: Unit, fragment: FragmentRef, failed: Sequence[int]) -> bool:
    """Commit a fragment that is in the store; False where another attempt was first, which is as good."""
    reach("commit.before")
    content = {
        "unit": unit.id,
        "fragment": fragment.key,
        "sha256": fragment.sha256,
        "size": fragment.size,
        "token": uuid.uuid4().hex,
        "failed_tiles": sorted(failed),
    }
    first = store.put_if_absent(commit_key(unit), json.dumps(content, sort_keys=True).encode())
    reach("commit.after")
    return first


def parse_commit(data: bytes) -> Commit:
    """The commit in ``data``. Raises ``ValueError`` for anything else."""
    try:
        fields = json.loads(data)
        return Commit(
            str(fields["unit"]),
            str(fields["fragment"]),
            str(fields["sha256"]),
            int(fields["size"]),
            tuple(int(i) for i in fields["failed_tiles"]),
        )
    except (KeyError, TypeError) as e:
        raise ValueError(f"This is no commit: {e!r}") from e


def read_commit(store: Store, unit: Unit) -> Commit | None:
    """The commit of a unit; None where there is none, or where it or its fragment is not whole."""
    try:
        commit = parse_commit(store.read_bytes(commit_key(unit)))
        return commit if store.size(commit.fragment) == commit.size else None
    except (FileNotFoundError, ValueError):
        return None


def withdraw_damaged(store: Store, damaged: Sequence[Unit]) -> None:
    """Withdraw the commits of units whose fragments are not what was committed: they will be redone.

    Raises ``ValueError`` where there are any: nothing may be made of the others now.
    """
    for unit in damaged:
        store.delete(commit_key(unit))
    if damaged:
        raise ValueError(
            f"{len(damaged)} fragments, the first of {damaged[0].id}, are not what was committed"
        )
