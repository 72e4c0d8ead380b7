"""Read the weights of a checkpoint folder and fit them to the network's keys, strictly.

Unusual: two key layouts are accepted, told apart by their keys and never by a version: what public checkpoints and
``save_pretrained`` hold, and the in-memory names that newer transformers give to a Swin backbone. Nothing is unpickled
except through ``torch.load(weights_only=True)``. Reading the *shapes* of safetensors needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

_BACKBONE = "model.pixel_level_module.encoder."
_SWIN_RENAMES = (
    (re.compile(r"^swin\."), ""),
    (re.compile(r"\.attention\.q_proj\."), ".attention.self.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.self.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.self.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.attention\.relative_position_bias\."), ".attention.self."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
)
# Buffers that we rebuild and a norm that no output passes through.
_HARMLESS = re.compile(
    r"^criterion\.empty_weight$"
    r"|\.relative_position_index$"
    r"|^model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.(weight|bias)$"
)


class WeightFiles(NamedTuple):
    """Where the weights of a folder are."""

    format: str
    """safetensors or bin."""
    paths: tuple[Path, ...]


def canonical_key(key: str) -> str:
    """The key as our network names it; keys of the public layout are returned as they are."""
    if not key.startswith(_BACKBONE):
        return key
    rest = key[len(_BACKBONE) :]
    if rest.startswith("swin.layernorm."):
        return key
    for pattern, replacement in _SWIN_RENAMES:
        rest = pattern.sub(replacement, rest)
    return _BACKBONE + rest


def key_layout(keys: Iterable[str]) -> str:
    """``hub`` (public checkpoints, ``save_pretrained``) or ``in-memory`` (newer transformers' own names)."""
    return "in-memory" if any(k.startswith(_BACKBONE + "swin.encoder.") for k in keys) else "hub"


def find_weights(folder: str | Path) -> WeightFiles:
    """The weight files of a checkpoint folder, safetensors first; ``ValueError`` says what was looked for."""
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"The checkpoint {root} is not a folder with config.json and model.safetensors.")
    for stem, suffix, kind in (("model", "safetensors", "safetensors"), ("pytorch_model", "bin", "bin")):
        single, index = root / f"{stem}.{suffix}", root / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return WeightFiles(kind, (single,))
        if index.is_file():
            return WeightFiles(kind, _shards(index))
    raise ValueError(
        f"The checkpoint folder {root} holds no model.safetensors (nor its index, nor pytorch_model.bin)."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"The index of weights {index} cannot be read: {e!r}.") from e
    # A shard's name comes from a file of unknown origin: it must not lead out of the folder.
    bad = [
        n for n in names if not isinstance(n, str) or Path(n).name != n or not (index.parent / n).is_file()
    ]
    if bad:
        raise ValueError(
            f"The index of weights {index} names files that are not beside it: {', '.join(map(str, bad))}."
        )
    return tuple(index.parent / n for n in names)


def read_shapes(folder: str | Path) -> dict[str, Shape]:
    """Shape of each stored tensor under its stored key; of safetensors only the header is read."""
    found = find_weights(folder)
    if found.format == "safetensors":
        return {k: tuple(v["shape"]) for path in found.paths for k, v in safetensors_header(path).items()}
    return {k: tuple(v.shape) for k, v in _load_tensors(found).items()}


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file (8 bytes of length, then JSON), with sizes checked against the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, 100_000_000):
                raise ValueError(f"the header claims {length} bytes of {size}")
            header = json.loads(f.read(length))
        tensors = {k: v for k, v in header.items() if k != "__metadata__"}
        end = max((v["data_offsets"][1] for v in tensors.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(
                f"it should have {8 + length + end} bytes but has {size}; the copy may be incomplete"
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise ValueError(f"The weights {path} are not a whole safetensors file: {e}.") from e
    return tensors


def read_weights(folder: str | Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for every key of ``expected`` (a state dict, meta tensors will do), in its dtypes, on the CPU.

    Raises ``ValueError`` that names missing, unexpected and mis-shaped keys.
    """
    found = find_weights(folder)
    stored = _load_tensors(found)
    check_keys(
        {k: tuple(v.shape) for k, v in stored.items()},
        {k: tuple(v.shape) for k, v in expected.items()},
        str(folder),
    )
    # Copied, not mapped: a checkpoint that is replaced during a long run must not change or kill the replica.
    tensors = {canonical_key(k): v for k, v in stored.items()}
    return {k: tensors[k].to(dtype=v.dtype, copy=True) for k, v in expected.items()}


def check_keys(stored: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raise ``ValueError`` with the missing, unexpected and mis-shaped keys, if there are any."""
    shapes = {canonical_key(k): s for k, s in stored.items() if not _HARMLESS.search(k)}
    missing = [k for k in expected if k not in shapes]
    extra = [k for k in shapes if k not in expected]
    misshaped = [
        f"{k} {_show(shapes[k])} instead of {_show(s)}"
        for k, s in expected.items()
        if k in shapes and shapes[k] != s
    ]
    parts = [("missing keys", missing), ("unexpected keys", extra), ("keys of another shape", misshaped)]
    faults = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in parts if keys)
    if faults:
        raise ValueError(f"The checkpoint {where} does not fit its config.json: {faults}.")


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _load_tensors(found: WeightFiles) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in found.paths:
        tensors |= _load_safetensors(path) if found.format == "safetensors" else _load_bin(path)
    return tensors


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    safetensors_header(path)
    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def _load_bin(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
        first_line = (str(e).splitlines() or [repr(e)])[0]
        raise ValueError(
            f"The weights {path} cannot be read safely (only tensors are accepted): {first_line}"
        ) from e
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise ValueError(f"The weights {path} must be a dict of tensors.")
    return loaded


def _show(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _some(keys: list[str], limit: int = 6) -> str:
    more = f", … and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
