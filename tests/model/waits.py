"""Watches for operations that would make the host wait for a GPU, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "bincount", "unique", "masked_select", "_to_copy", "item")
"""Operations for which a GPU must be asked and waited for (``_to_copy``: where it changes the device)."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        if name == "_to_copy":
            if kwargs.get("device") is not None:
                self.seen.append(name)
        elif name in WAITING or (name == "index" and any(_is_mask(i) for i in args[1])):
            self.seen.append(name)
        return func(*args, **kwargs)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
