"""In which floating point type a replica computes, and what stays fp32 whatever that is.

Unusual: with bf16 the weights and activations are bf16 themselves, not cast by autocast at every use. fp32 remain, as
islands: the positions that deformable attention samples at, the position embeddings until they are added, the
normalisation of pixels, the mask logits (of the attention masks too), and all that comes after the logits. Norms and
soft-maxes have bf16 results but are computed in fp32 by torch's kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "auto"]


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """``auto``: bf16 on a GPU that has it, else fp32. bf16 on a CPU is done where it is asked for, with a note.

    Raises ``ValueError`` for another word.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"The precision is fp32, bf16 or auto, got {precision!r}.")
    native = is_bf16_native(device)
    if precision == "auto":
        chosen = torch.bfloat16 if native and device.type == "cuda" else torch.float32
        log.info("The network computes in %s on %s.", _name(chosen), device.type)
        return chosen
    if precision == "bf16" and not native:
        log.warning(
            "bf16 was asked for, but this %s has no bf16 arithmetic: it is emulated, many times slower than fp32.",
            "GPU" if device.type == "cuda" else "CPU",
        )
    return torch.bfloat16 if precision == "bf16" else torch.float32


def is_bf16_native(device: torch.device) -> bool:
    """Whether the device multiplies bf16 numbers itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # torch tells this of x86 CPUs alone, and in functions without documentation: without them, say no.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32 if it is of half precision, else as it is (fp64 stays)."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Inside, operations keep the types of their inputs, also where a caller runs the network under autocast."""
    is_on = torch.is_autocast_enabled(device.type) if device.type in ("cpu", "cuda") else False
    with torch.autocast(device.type, enabled=False) if is_on else nullcontext():
        yield


def _name(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"
