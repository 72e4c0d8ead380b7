"""What the network returns: named tensors that also behave as a dict and as a tuple, as users of it expect.

Unusual: a value may be *pending*. Mask features and the masks of earlier layers cost a good share of a forward pass
and are rarely read, so they are computed when somebody first looks at them.

Letters: B batch, Q queries, K classes, C channels, H W pixels of the input.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, ClassVar

import torch
from torch import Tensor


class Pending:
    """A value to be computed later, under the gradient mode and autocast of the moment when it was promised."""

    def __init__(self, compute: Callable[[], Any], device: torch.device) -> None:
        self._compute = compute
        self._kind = "cpu" if device.type == "meta" else device.type  # no autocast is known for shapes alone
        self._inference = torch.is_inference_mode_enabled()
        self._gradients = torch.is_grad_enabled()
        self._autocast = torch.is_autocast_enabled(self._kind), torch.get_autocast_dtype(self._kind)

    def __call__(self) -> Any:
        enabled, dtype = self._autocast
        # Outside inference mode its tensors could not take part in anything that records gradients.
        with (
            torch.inference_mode(self._inference),
            torch.set_grad_enabled(self._gradients),
            torch.autocast(self._kind, dtype=dtype, enabled=enabled),
        ):
            return self._compute()


class ModelOutput(dict[str, Any]):
    """Fields by attribute, by name or by position; those that are None do not count for the latter two.

    A subclass names its fields, in order, by annotations.
    """

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(cls.__annotations__)

    def __init__(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        given = dict(values or {}) | named
        unknown = sorted(set(given) - set(self._fields))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(unknown)}.")
        super().__init__({k: given[k] for k in self._fields if given.get(k) is not None})

    def __getattr__(self, name: str) -> Any:
        if name not in self._fields:
            raise AttributeError(f"{type(self).__name__} has no field {name}.")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._fields:
            raise KeyError(f"{type(self).__name__} has no field {key}.")
        values = {k: value if k == key else dict.get(self, k) for k in self._fields}
        self.clear()
        self.update({k: v for k, v in values.items() if v is not None})

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        value = super().__getitem__(key)
        if isinstance(value, Pending):
            value = value()
            super().__setitem__(key, value)
        return value

    def to_tuple(self) -> tuple[Any, ...]:
        """All values that are not None, in the order of the fields."""
        return tuple(self.values())

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 (this is that method)

    def _settled(self) -> dict[str, Any]:
        for key in self:
            self[key]
        return self

    # dict would hand out pending values, as C code reads a dict's own table; with __iter__ replaced it asks here.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return dict.values(self._settled())

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return dict.items(self._settled())

    def __reduce__(self) -> Any:
        return type(self), (dict(self.items()),)


class Mask2FormerModelOutput(ModelOutput):
    """States of the network without its class head."""

    encoder_last_hidden_state: Tensor
    """(B, C4, ⌈H/32⌉, ⌈W/32⌉), the backbone's last map."""
    pixel_decoder_last_hidden_state: Tensor
    """(B, mask_feature_size, ⌈H/4⌉, ⌈W/4⌉) mask features."""
    transformer_decoder_last_hidden_state: Tensor
    """(B, Q, hidden_dim) of the last layer."""
    encoder_hidden_states: tuple[Tensor, ...] | None
    """The backbone's four maps; this and the next three on request of ``output_hidden_states``."""
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None
    """Levels at strides 32, 16, 8."""
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None
    """(Q, B, hidden_dim) after each layer, the raw queries first."""
    transformer_decoder_intermediate_states: tuple[Tensor, ...] | None
    """The same, layer-normed."""
    masks_queries_logits: tuple[Tensor, ...]
    """(B, Q, ⌈H/4⌉, ⌈W/4⌉) of each layer, the raw queries first."""
    attentions: tuple[Tensor, ...] | None
    """(B, heads, Q, Q) weights of each layer's self attention, on request of ``output_attentions``."""


class Mask2FormerForUniversalSegmentationOutput(ModelOutput):
    """Logits and, where asked for, the loss and the states behind them."""

    loss: Tensor | None
    """Scalar, if labels were given."""
    class_queries_logits: Tensor
    """(B, Q, K + 1); the last class is "no object"."""
    masks_queries_logits: Tensor
    """(B, Q, ⌈H/4⌉, ⌈W/4⌉)."""
    auxiliary_logits: list[dict[str, Tensor]] | None
    """The two logits above of each earlier layer, the raw queries first."""
    encoder_last_hidden_state: Tensor
    """(B, C4, ⌈H/32⌉, ⌈W/32⌉), the backbone's last map."""
    pixel_decoder_last_hidden_state: Tensor
    """(B, mask_feature_size, ⌈H/4⌉, ⌈W/4⌉) mask features."""
    transformer_decoder_last_hidden_state: Tensor
    """(B, Q, hidden_dim) of the last layer."""
    encoder_hidden_states: tuple[Tensor, ...] | None
    """The backbone's four maps; this and the next two on request of ``output_hidden_states``."""
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None
    """Levels at strides 32, 16, 8."""
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None
    """(Q, B, hidden_dim) after each layer, the raw queries first."""
    attentions: tuple[Tensor, ...] | None
    """(B, heads, Q, Q) weights of each layer's self attention, on request of ``output_attentions``."""


class SemanticSegmentation(ModelOutput):
    """One image's classes, from :mod:`panoptile.model.postprocess`."""

    segmentation: Tensor
    """(H, W) int64 label id of each pixel."""
    segmentation_scores: Tensor | None
    """(K, H, W) score of each class."""


def _register(kind: type[ModelOutput]) -> None:
    """Let torch look inside: data-parallel training and export flatten what a network returns."""

    def flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
        return list(output.values()), list(output.keys())

    def unflatten(values: Any, keys: list[str]) -> ModelOutput:
        return kind(dict(zip(keys, values, strict=True)))

    torch.utils._pytree.register_pytree_node(
        kind, flatten, unflatten, serialized_type_name=f"{kind.__module__}.{kind.__name__}"
    )


_register(Mask2FormerModelOutput)
_register(Mask2FormerForUniversalSegmentationOutput)
