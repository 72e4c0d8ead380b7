"""A private Ray that does not come up: once more, then one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import ray

from panoptile.pipeline.ray_connection import ADDRESS_VARIABLE, connect_ray

SLOW = Exception("The current node timed out during startup. This could happen because …\nmore")


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has no Ray yet, whatever other tests have started."""
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    with mock.patch.object(ray, "is_initialized", return_value=False), mock.patch.object(ray, "shutdown"):
        yield


def test_a_slow_start_is_tried_again() -> None:
    """Ray's own time was too short: the second start serves."""
    with (
        mock.patch.object(ray, "init", side_effect=[SLOW, None]) as init,
        mock.patch.object(ray, "cluster_resources", return_value={"CPU": 2.0}),
        mock.patch.object(ray, "nodes", return_value=[{"Alive": True}]),
    ):
        found = connect_ray(2)
    assert init.call_count == 2
    assert (found.cpus, found.nodes, found.private, found.opened) == (2, 1, True, True)


def test_a_ray_that_never_starts_is_told_in_a_sentence() -> None:
    """Both starts fail: what happened, and what to do."""
    with (
        mock.patch.object(ray, "init", side_effect=SLOW) as init,
        pytest.raises(ConnectionError) as refused,
    ):
        connect_ray(2)
    assert init.call_count == 2
    words = str(refused.value)
    assert words.startswith(
        "Ray could not be started on this machine: The current node timed out during startup"
    )
    assert "--local" in words
    assert "\n" not in words


def test_a_signal_while_ray_starts_is_no_failed_start() -> None:
    """Ctrl-C ends the command, it does not start Ray once more."""
    with (
        mock.patch.object(ray, "init", side_effect=KeyboardInterrupt) as init,
        pytest.raises(KeyboardInterrupt),
    ):
        connect_ray(2)
    assert init.call_count == 1
