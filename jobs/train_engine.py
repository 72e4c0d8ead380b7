"""Several processes in one training, by accelerate; a single process needs none of it."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from panoptile.jobs.exits import invalid
from panoptile.model.training import OneProcess

if TYPE_CHECKING:
    from accelerate import Accelerator

_LAUNCHED = "PANOPTILE_TRAIN_LAUNCHED"
_EXTRA = "Training in several processes needs the package accelerate: pip install 'panoptile[train]'."


class AccelerateEngine:
    """Gradients averaged and figures summed over the processes that accelerate launched."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.processes: int = accelerator.num_processes
        self.device: torch.device = accelerator.device

    def wrap(self, network: nn.Module) -> nn.Module:
        return cast(nn.Module, self._accelerator.prepare_model(network))

    def without_exchange(self, network: nn.Module) -> AbstractContextManager[None]:
        return cast("AbstractContextManager[None]", self._accelerator.no_sync(network))

    def sum(self, values: Tensor) -> Tensor:
        return cast(Tensor, self._accelerator.reduce(values, reduction="sum"))

    def gather(self, values: list[Any]) -> list[Any]:
        from accelerate.utils import gather_object

        return cast("list[Any]", gather_object(values))

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


class Alone(OneProcess):
    """The engine of a training in one process."""

    def gather(self, values: list[Any]) -> list[Any]:
        return values

    def wait(self) -> None:
        """There is nobody to wait for."""


TrainEngine = AccelerateEngine | Alone


def launched_processes() -> int:
    """How many processes a launcher started, this one among them; 0 without a launcher."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return count if count > 1 else 0


def launched_rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def launched_engine(device: str) -> TrainEngine:
    """The engine of this process: accelerate's where a launcher started it, else none."""
    if not launched_processes():
        return Alone(device_of(device))
    try:
        from accelerate import Accelerator
    except ImportError as e:
        raise invalid(_EXTRA) from e
    return AccelerateEngine(Accelerator(cpu=device == "cpu"))


def device_of(device: str) -> torch.device:
    """``auto``: a GPU if there is one."""
    from panoptile.model.segmenter import choose_device

    try:
        return choose_device(device)
    except ValueError as e:
        raise invalid(str(e)) from e


def relaunch(processes: int) -> None:
    """Replace this process by torch's launcher, which starts the same command in ``processes`` processes here."""
    if importlib.util.find_spec("accelerate") is None:
        raise invalid(_EXTRA)
    if os.environ.get(_LAUNCHED):
        raise RuntimeError("The launcher started this process without telling it that it is one of several.")
    os.environ[_LAUNCHED] = "1"
    # Not accelerate's own launcher: on CPUs it needs MPI, and otherwise calls this one.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *launcher, "--module", "panoptile", *sys.argv[1:]])
