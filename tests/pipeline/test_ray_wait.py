"""Waiting for Ray while signals come."""

from __future__ import annotations

import signal
import time
from types import FrameType
from unittest import mock

import pytest


class Told(BaseException):
    """What a signal handler raises."""


def test_what_a_signal_raises_comes_out_of_rays_own_code() -> None:
    """Ray's compiled code wraps it; a SystemError of Ray's own stays one."""
    import ray

    from panoptile.pipeline.ray_wait import wait_for

    wrapped = SystemError("returned a result with an exception set")
    wrapped.__cause__ = Told()
    with mock.patch.object(ray, "wait", side_effect=wrapped), pytest.raises(Told):
        wait_for([object()], count=1, timeout=1)
    with mock.patch.object(ray, "wait", side_effect=SystemError("x")), pytest.raises(SystemError):
        wait_for([object()], count=1, timeout=1)


def asleep() -> None:
    time.sleep(600)


@pytest.mark.usefixtures("small_ray")
def test_a_signal_ends_the_wait() -> None:
    """A real signal in a real wait, at several moments of it: what the handler raises is what comes."""
    import ray

    from panoptile.pipeline.ray_wait import wait_for

    def tell(number: int, frame: FrameType | None) -> None:
        raise Told

    never = ray.remote(num_cpus=0)(asleep).remote()
    before = signal.signal(signal.SIGALRM, tell)
    try:
        for turn in range(8):
            signal.setitimer(signal.ITIMER_REAL, 0.05 + turn * 0.05)
            with pytest.raises(Told):
                wait_for([never], count=1, timeout=1)
    finally:
        signal.signal(signal.SIGALRM, before)
        ray.cancel(never, force=True)
