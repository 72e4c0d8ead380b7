"""Load and save a network as a checkpoint folder: ``config.json`` and ``model.safetensors``.

Unusual: a network is built without memory and its weights assigned, so that loading costs no initialisation; only with
``ignore_mismatched_sizes`` is one made, for the weights that do not fit. The network without a class head reads the
folders of the whole one and the other way round, as their keys differ by a prefix only.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from panoptile.model.config import CONFIG_NAME, Mask2FormerConfig
from panoptile.model.hub import WEIGHTS_PICKLED, WEIGHTS_SAFE, resolve_folder, split_hub_options
from panoptile.model.inferred_config import read_config

log = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"


class PretrainedNetwork(nn.Module):
    """A network that knows its configuration and how to be loaded and saved."""

    key_prefix: ClassVar[str] = ""
    """What a checkpoint puts before the keys of this network's state."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type of the weights."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: Mask2FormerConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> Self:
        """Load a checkpoint folder, a file of weights, or a model of the hub by its id, on the CPU and in eval mode.

        Weights become fp32 unless ``dtype`` says otherwise. ``config`` replaces the folder's; the other keywords
        override fields of the configuration (such as ``id2label``), but for those of
        :func:`panoptile.model.hub.resolve_folder`. Weights of another shape than the network's keep their fresh
        values with ``ignore_mismatched_sizes``, else ``ValueError`` names them and all others that do not fit.
        """
        options, changes = split_hub_options(changes)
        path = Path(source)
        if not path.is_file():
            path = resolve_folder(
                source, files=(CONFIG_NAME, *WEIGHTS_SAFE), fallback=WEIGHTS_PICKLED, **options
            )
        if config is None:
            config = read_config(path, **changes)
        elif changes:
            raise TypeError(f"Pass either a configuration or changes of it, got both: {', '.join(changes)}.")
        with torch.device("cpu" if ignore_mismatched_sizes else "meta"):
            network = cls(config)
        network._load(path, ignore_mismatched_sizes=ignore_mismatched_sizes)
        return network.to(dtype).eval() if dtype is not None else network.eval()

    def _load(self, path: Path, *, ignore_mismatched_sizes: bool) -> None:
        from panoptile.model.weights import canonical_shapes, read_shapes, read_weights

        expected = {self.key_prefix + k: v for k, v in self.state_dict().items()}
        skipped: dict[str, Tensor] = {}
        if ignore_mismatched_sizes or self.key_prefix:
            for key, shape in canonical_shapes(read_shapes(path)).items():
                ours = expected.get(key)
                is_head = ours is None and not key.startswith(self.key_prefix)
                is_foreign = ours is not None and ignore_mismatched_sizes and shape != tuple(ours.shape)
                if is_head or is_foreign:
                    skipped[key] = torch.empty(shape, device="meta")
        tensors = read_weights(path, expected | skipped)
        state = {k.removeprefix(self.key_prefix): v for k, v in tensors.items() if k not in skipped}
        if any(p.is_meta for p in self.parameters()):
            self.load_state_dict(state, assign=True)
        else:
            log.info(
                "Kept fresh values of %s, whose shapes differ in %s.", ", ".join(skipped) or "none", path
            )
            self.load_state_dict(state, strict=False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, which transformers loads too (Swin and ResNet)."""
        from safetensors.torch import save_file

        target = Path(folder)
        self.config.save_pretrained(target)
        state = {self.key_prefix + k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(state | self._extra_weights(), target / WEIGHTS_NAME, metadata={"format": "pt"})

    def _extra_weights(self) -> dict[str, Tensor]:
        """What public checkpoints hold beside the network's own state."""
        return {}
