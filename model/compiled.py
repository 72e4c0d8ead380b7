"""The network through ``torch.compile``, for its one fixed shape; opt-in, because compiling takes a minute or more.

Unusual: whether compilation can work is checked at the start, so that a missing compiler is one clear sentence and not
a trace at the first tile.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from panoptile.model.batch_runner import Forward


def compile_problem(device_type: str) -> str | None:
    """Why ``torch.compile`` cannot work on this machine for ``cpu`` or ``cuda``, as one sentence; None if it can."""
    if device_type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Compiling the network for a GPU needs the package triton: install it, or leave out --compile."
        names = [os.environ.get("CC", ""), "gcc", "clang"]
        if not any(shutil.which(name) for name in names if name):
            return "Compiling the network for a GPU needs a C compiler: install gcc, or leave out --compile."
        return None
    name = os.environ.get("CXX", "g++")  # what torch calls
    if shutil.which(name) is None:
        return (
            f"Compiling the network for a CPU needs a C++ compiler, and there is no {name} here: "
            "install g++, name another by the variable CXX, or leave out --compile."
        )
    return None


def compile_forward(forward: Forward, device: torch.device) -> Forward:
    """``forward`` compiled when it is first called, anew for every shape. ``ValueError`` if there is no compiler."""
    import torch

    problem = compile_problem(device.type)
    if problem:
        raise ValueError(problem)
    # dynamic=False: shapes never change in a run, and code for any shape is slower.
    compiled: Forward = torch.compile(forward, dynamic=False)
    return compiled
