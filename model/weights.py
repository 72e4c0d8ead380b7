"""Read the weights of a checkpoint and fit them to the network's keys, strictly.

Unusual: four key layouts are accepted, told apart by their keys and never by a version: what public checkpoints and
``save_pretrained`` hold, the in-memory names that newer transformers give to a Swin backbone, timm's names of a ResNet,
and Detectron2's. Nothing is unpickled except through ``torch.load(weights_only=True)`` and our own reader of plain
pickles. Reading the *shapes* of safetensors needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from panoptile.model import detectron2, timm_resnet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")

Shape = tuple[int, ...]

NO_CHECKPOINT = (
    "The checkpoint {path} is not a folder with config.json and model.safetensors, nor a file of weights."
)

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
    r"|^pixel_(mean|std)$"
    r"|\.relative_position_index$"
    r"|^model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.(weight|bias)$"
)


# Counts the batches of a training. Frozen norms have none, and nothing is computed from it.
_COUNTER = ".num_batches_tracked"

Layout = Literal["hub", "in-memory", "timm", "detectron2"]
Format = Literal["safetensors", "torch", "pickle"]
_FORMATS: dict[str, Format] = {
    ".safetensors": "safetensors", ".bin": "torch", ".pth": "torch", ".pt": "torch", ".pkl": "pickle"
}  # fmt: skip


class WeightFiles(NamedTuple):
    """Where the weights of a checkpoint are."""

    format: Format
    paths: tuple[Path, ...]


def key_layout(keys: Iterable[str]) -> Layout:
    """``hub`` (public checkpoints, ``save_pretrained``), ``in-memory`` (newer transformers' own), timm's, Detectron2's."""
    names = tuple(keys)
    if detectron2.is_detectron2(names):
        return "detectron2"
    if timm_resnet.has_timm_backbone(names):
        return "timm"
    return "in-memory" if any(k.startswith(_BACKBONE + "swin.encoder.") for k in names) else "hub"


def canonical_shapes(stored: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes under the keys that our network uses."""
    return _canonical(stored, lambda shape, parts: [(shape[0] // parts, *shape[1:])] * parts)


def canonical_tensors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the keys that our network uses; stacked ones are cut up, without a copy."""
    return _canonical(stored, lambda tensor, parts: tensor.chunk(parts))


def _canonical(stored: Mapping[str, T], cut: Callable[[T, int], Sequence[T]]) -> dict[str, T]:
    if any(k.startswith("pixel_level_module.") for k in stored):
        # A network without its class head, as transformers saves it.
        stored = {"model." + k: v for k, v in stored.items()}
    layout = key_layout(stored)
    found: dict[str, T] = {}
    for key, value in stored.items():
        if _HARMLESS.search(key):
            continue
        keys = _canonical_keys(key, layout)
        found |= zip(keys, [value] if len(keys) == 1 else cut(value, len(keys)), strict=True)
    return found


def _canonical_keys(key: str, layout: Layout) -> tuple[str, ...]:
    if layout == "detectron2":
        return detectron2.hub_keys(key)
    if layout == "timm":
        return (timm_resnet.hub_key(key),)
    return (_swin_key(key),) if layout == "in-memory" else (key,)


def _swin_key(key: str) -> str:
    if not key.startswith(_BACKBONE):
        return key
    rest = key[len(_BACKBONE) :]
    if rest.startswith("swin.layernorm."):
        return key
    for pattern, replacement in _SWIN_RENAMES:
        rest = pattern.sub(replacement, rest)
    return _BACKBONE + rest


def find_weights(path: str | Path) -> WeightFiles:
    """The weights of a checkpoint folder, safetensors first, or a file by its suffix.

    Raises ``ValueError`` that says what was looked for.
    """
    root = Path(path)
    if root.is_file():
        if root.suffix not in _FORMATS:
            raise ValueError(f"The weights {root} must end in one of {', '.join(_FORMATS)}.")
        return WeightFiles(_FORMATS[root.suffix], (root,))
    if not root.is_dir():
        raise ValueError(NO_CHECKPOINT.format(path=root))
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = root / name, root / f"{name}.index.json"
        if single.is_file():
            return WeightFiles(_FORMATS[single.suffix], (single,))
        if index.is_file():
            return WeightFiles(_FORMATS[single.suffix], _shards(index))
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


def read_shapes(path: str | Path) -> dict[str, Shape]:
    """Shape of each stored tensor under its stored key; of safetensors only the header is read."""
    found = find_weights(path)
    if found.format == "safetensors":
        return {k: tuple(v["shape"]) for file in found.paths for k, v in safetensors_header(file).items()}
    if found.format == "pickle":
        return {k: v.shape for file in found.paths for k, v in _load_arrays(file).items()}
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


def read_weights(path: str | Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for every key of ``expected`` (a state dict, meta tensors will do), in its dtypes, on the CPU.

    Raises ``ValueError`` that names missing, unexpected and mis-shaped keys.
    """
    import torch

    stored = _load_tensors(find_weights(path))
    check_keys(
        {k: tuple(v.shape) for k, v in stored.items()},
        {k: tuple(v.shape) for k, v in expected.items()},
        str(path),
    )
    tensors = canonical_tensors(stored)
    tensors |= {k: torch.zeros(v.shape) for k, v in expected.items() if k not in tensors}
    # Copied, not mapped: a checkpoint that is replaced during a long run must not change or kill the replica.
    return {
        k: tensors[k].to(dtype=v.dtype, copy=True, memory_format=torch.contiguous_format)
        for k, v in expected.items()
    }


def check_keys(stored: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raise ``ValueError`` with the missing, unexpected and mis-shaped keys, if there are any."""
    shapes = canonical_shapes(stored)
    missing = [k for k in expected if k not in shapes and not k.endswith(_COUNTER)]
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
    load = {"safetensors": _load_safetensors, "torch": _load_torch, "pickle": _load_pickle}[found.format]
    tensors: dict[str, Tensor] = {}
    for path in found.paths:
        tensors |= load(path)
    return tensors


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    safetensors_header(path)
    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def _load_torch(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
        first_line = (str(e).splitlines() or [repr(e)])[0]
        raise ValueError(
            f"The weights {path} cannot be read safely (only tensors are accepted): {first_line}"
        ) from e
    return _state_of(loaded, torch.Tensor, path)


def _load_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    return {k: torch.from_numpy(v) for k, v in _load_arrays(path).items()}


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    import numpy as np

    from panoptile.model.unpickle import load_plain_pickle

    return _state_of(load_plain_pickle(path), np.ndarray, path)


def _state_of(loaded: object, kind: type[T], path: Path) -> dict[str, T]:
    """The state dict in what a file holds; training programs put it under ``model``, beside their own state."""
    inner = loaded["model"] if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict) else loaded
    if not isinstance(inner, dict) or not inner:
        raise ValueError(f"The weights {path} must be a dict of {kind.__name__}s, or hold one as 'model'.")
    wrong = [k for k, v in inner.items() if not isinstance(k, str) or not isinstance(v, kind)]
    if wrong:
        raise ValueError(
            f"The weights {path} must be {kind.__name__}s, but {wrong[0]!r} is a {type(inner[wrong[0]]).__name__}."
        )
    return inner


def _show(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _some(keys: list[str], limit: int = 6) -> str:
    more = f", … and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
