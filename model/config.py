"""The configuration of a Mask2Former: the documented field names and defaults, read from and written to JSON.

Unusual: ``decoder_layers`` counts the prediction on the raw queries too, so 10 means 9 layers (as in the public
checkpoints). The backbone's part stays a dict, because each backbone has its own fields. The constructor is
written by hand, because the documented one also takes aliases and counts (``hidden_size``, ``num_labels``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_SWIN_DEFAULTS: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 96,
    "depths": [2, 2, 18, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "drop_path_rate": 0.3,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_STRIDES = (4, 8, 16, 32)

# Written by other programs, without effect on what the network computes.
_IRRELEVANT = frozenset(
    """architectures transformers_version torch_dtype dtype model_type problem_type backbone use_timm_backbone
    use_pretrained_backbone backbone_kwargs enforce_input_proj is_encoder_decoder chunk_size_feed_forward
    _name_or_path""".split()  # noqa: SIM905 (a list literal would be one name a line)
)
_ALIASES = {"hidden_size": "hidden_dim", "num_hidden_layers": "decoder_layers"}
CONFIG_NAME = "config.json"


class BackboneConfig(dict[str, Any]):
    """A backbone's fields, as a dict and as attributes; each backbone has its own."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"This backbone's configuration has no {name}; it has {', '.join(self)}.")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


@dataclass(init=False)
class Mask2FormerConfig:
    """All that is needed to build the network; the rest of the package treats it as immutable.

    The constructor takes the fields below by keyword, ``hidden_size`` and ``num_hidden_layers`` as other names of two
    of them, and ``num_labels`` or ``label2id`` in place of ``id2label``. Keys that we do not know are ignored and
    logged, a null means the default. Raises ``ValueError`` for what cannot be built.
    """

    backbone_config: dict[str, Any] = field(default_factory=lambda: BackboneConfig(_SWIN_DEFAULTS))
    """``model_type`` (swin, resnet, efficientnet_lite0) and that backbone's own fields."""
    feature_size: int = 256
    """Channels of the pixel decoder; a multiple of 32 (group norm) and of ``num_attention_heads``."""
    mask_feature_size: int = 256
    """Channels of the mask embeddings."""
    hidden_dim: int = 256
    """Channels of the queries."""
    encoder_feedforward_dim: int = 1024
    activation_function: str = "relu"
    """Of the transformer decoder's feed-forward layers: relu or gelu."""
    encoder_layers: int = 6
    """Deformable layers of the pixel decoder."""
    decoder_layers: int = 10
    """Predictions of the transformer decoder: one on the raw queries, then one per layer (10 = 9 layers)."""
    num_attention_heads: int = 8
    dropout: float = 0.0
    dim_feedforward: int = 2048
    pre_norm: bool = False
    enforce_input_projection: bool = False
    common_stride: int = 4
    """Stride of the mask features: 4 (one FPN level) or 8 (none)."""
    ignore_value: int = 255
    """Kept for compatibility; the reference network does not use it either."""
    num_queries: int = 100
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    use_auxiliary_loss: bool = True
    feature_strides: tuple[int, ...] = _STRIDES
    output_auxiliary_logits: bool | None = None
    """Whether outputs hold the logits of all layers, where the call does not say; null means no."""
    output_hidden_states: bool = False
    """The same for the hidden states."""
    output_attentions: bool = False
    """The same for the weights of the decoder's self attention."""
    return_dict: bool = True
    """Whether the network returns an output with names, where the call does not say; else a tuple."""
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    """Class names by label id 0…K-1; the no-object class K is not among them."""
    panoptile: dict[str, Any] | None = None
    """Our own block: ``task``, ``thing_label_ids``, ``gsd_m`` (metres per pixel of the training images)."""

    def __init__(self, **values: Any) -> None:
        known = {f.name: f for f in fields(self)}
        given = {_ALIASES.get(k, k): v for k, v in values.items()}
        names = _label_names(
            given.pop("num_labels", None), given.pop("label2id", None), given.get("id2label")
        )
        if names is not None:
            given["id2label"] = names
        unknown = sorted(set(given) - set(known) - _IRRELEVANT)
        if unknown:
            log.info("Ignored %d unknown keys of the configuration: %s.", len(unknown), ", ".join(unknown))
        for name, f in known.items():
            default = f.default if f.default_factory is MISSING else f.default_factory()
            value = given.get(name, default)
            setattr(self, name, default if value is None else value)
        self._settle()

    def _settle(self) -> None:
        """Bring what was given into its final form, and check it."""
        self.backbone_config = _as_backbone(self.backbone_config)
        if self.backbone_config.get("model_type", "swin") == "swin":
            self.backbone_config = BackboneConfig(_SWIN_DEFAULTS | self.backbone_config)
        self.feature_strides = tuple(self.feature_strides)
        self.id2label = {int(k): str(v) for k, v in self.id2label.items()}
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(
                f"id2label must name 0…{len(self.id2label) - 1}, got {sorted(self.id2label)[:10]}."
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        heads = self.num_attention_heads
        for name, value in (("feature_size", self.feature_size), ("hidden_dim", self.hidden_dim)):
            if value % heads or value % 4:
                raise ValueError(
                    f"{name} must be a multiple of 4 and of num_attention_heads={heads}, got {value}."
                )
        if self.feature_size % 32:
            raise ValueError(f"feature_size must be a multiple of 32 (group norm), got {self.feature_size}.")
        if self.feature_strides != _STRIDES or self.common_stride not in (4, 8):
            raise ValueError(
                f"Supported are feature_strides {_STRIDES} with common_stride 4 or 8, "
                f"got {self.feature_strides} with {self.common_stride}."
            )
        if self.activation_function not in ("relu", "gelu"):
            raise ValueError(f"activation_function must be relu or gelu, got {self.activation_function!r}.")
        if self.decoder_layers < 1 or self.num_queries < 1:
            raise ValueError(
                f"At least 1 query and 1 decoder layer: {self.num_queries=} {self.decoder_layers=}."
            )

    @property
    def num_labels(self) -> int:
        """K, the classes without no-object."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != len(self.id2label):
            self.id2label = {i: f"LABEL_{i}" for i in range(count)}

    @property
    def label2id(self) -> dict[str, int]:
        """Label id by class name; of equal names the last one."""
        return {name: i for i, name in self.id2label.items()}

    @property
    def hidden_size(self) -> int:
        """Another name of ``hidden_dim``."""
        return self.hidden_dim

    @property
    def num_hidden_layers(self) -> int:
        """Another name of ``decoder_layers``."""
        return self.decoder_layers

    @property
    def backbone_type(self) -> str:
        return str(self.backbone_config.get("model_type", "swin"))

    @property
    def num_channels(self) -> int:
        """Channels of the input images."""
        return int(self.backbone_config.get("num_channels", 3))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Mask2FormerConfig:
        """Build from a parsed ``config.json``; keys that we do not know are ignored and logged.

        Raises ``ValueError`` if it is the configuration of another kind of network.
        """
        kind = values.get("model_type", "mask2former")
        if kind != "mask2former":
            raise ValueError(f"Expected the configuration of a mask2former, got model_type {kind!r}.")
        return cls(**values)

    @classmethod
    def from_json_file(cls, path: str | Path, **changes: Any) -> Mask2FormerConfig:
        """Read ``config.json``; ``changes`` override its fields. ``ValueError`` names a file that cannot be used."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ValueError(f"Cannot read the model configuration {path}: {e}.") from e
        try:
            return cls.from_dict(_changed(values, changes))
        except (AttributeError, TypeError, ValueError) as e:
            raise ValueError(f"The model configuration {path} cannot be used: {e}") from e

    @classmethod
    def from_pretrained(cls, source: str | Path, **changes: Any) -> Mask2FormerConfig:
        """Read the configuration of a folder or of a model on the hub; ``changes`` override its fields.

        The keywords ``cache_dir``, ``force_download``, ``local_files_only``, ``token``, ``revision`` and ``subfolder``
        are for the hub, see :func:`panoptile.model.hub.resolve_folder`.
        """
        from panoptile.model.hub import resolve_folder, split_hub_options

        options, changes = split_hub_options(changes)
        folder = resolve_folder(source, files=(CONFIG_NAME,), **options)
        return cls.from_json_file(folder / CONFIG_NAME, **changes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``; the folder is made if it is missing."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / CONFIG_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``, as the public checkpoints have it."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["feature_strides"] = list(self.feature_strides)
        values["id2label"] = {str(k): v for k, v in self.id2label.items()}
        values["label2id"] = self.label2id
        values["architectures"] = ["Mask2FormerForUniversalSegmentation"]
        values["model_type"] = "mask2former"
        if self.panoptile is None:
            del values["panoptile"]
        return dict(sorted(values.items()))


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a file with a caller's changes; new labels replace the old ones under all their names."""
    labels = {"num_labels", "id2label", "label2id"}
    replaced = labels if labels & set(changes) else set()
    return {k: v for k, v in values.items() if k not in replaced} | dict(changes)


def _label_names(
    count: int | None, label2id: Mapping[str, int] | None, id2label: Mapping[Any, str] | None
) -> dict[int, str] | None:
    """Class names by label id from whichever is given; numbers alone give placeholders."""
    if id2label is None and label2id is not None:
        id2label = {i: name for name, i in label2id.items()}
    if id2label is None:
        return None if count is None else {i: f"LABEL_{i}" for i in range(int(count))}
    if count is not None and len(id2label) != count:
        raise ValueError(f"num_labels is {count}, but id2label or label2id names {len(id2label)} classes.")
    return {int(i): str(name) for i, name in id2label.items()}


def _as_backbone(values: Any) -> BackboneConfig:
    """A backbone's configuration; objects with ``to_dict`` (such as transformers') are accepted."""
    return BackboneConfig(values.to_dict() if hasattr(values, "to_dict") else values)
