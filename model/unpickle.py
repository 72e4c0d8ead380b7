"""Read a pickle that may hold plain values and numpy arrays, such as Detectron2's ``.pkl`` weights, and nothing else.

Unusual: no class or function that a pickle names is ever looked up. The few names that numpy's own pickles use are
answered with stand-ins that only take notes; arrays are built from the notes afterwards, with their sizes checked. So
a hostile file reaches no code but this page's.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_ARRAY_KINDS = "biufc"
"""Kinds of numpy's types that are plain numbers: bool, integers, floats, complex."""


class PickleRefused(ValueError):
    """The pickle asks for something other than plain values and arrays of numbers; the message names it."""


def load_plain_pickle(path: str | Path) -> Any:
    """The content of a pickle of dicts, lists, tuples, strings, bytes, numbers and numpy arrays of numbers.

    Raises ``ValueError`` that names what was refused, or says that the file is broken; nothing is executed.
    """
    try:
        with Path(path).open("rb") as f:
            # latin1 brings the byte strings of Python 2's pickles through unchanged.
            return _settled(_PlainUnpickler(f, encoding="latin1").load())
    except PickleRefused as e:
        raise ValueError(f"The pickle {path} cannot be read safely: {e}") from e
    # A broken or hostile stream makes the unpickler raise any of these; none of them comes from code of the file.
    except (
        pickle.UnpicklingError, OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, MemoryError,
        OverflowError, RecursionError,
    ) as e:  # fmt: skip
        raise ValueError(
            f"The file {path} is not a whole pickle of plain values and arrays: {type(e).__name__}: {e}."
        ) from e


class _PlainUnpickler(pickle.Unpickler):
    """Answers the allowed names with stand-ins and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _ALLOWED.get((_current_module(module), name))
        if stand_in is None:
            raise PickleRefused(
                f"it asks for {module}.{name}; accepted are dicts, lists, strings, numbers and numpy arrays."
            )
        return _Call(stand_in)

    def persistent_load(self, pid: Any) -> Any:
        raise PickleRefused("it refers to storage outside of itself, as the weights of torch.save do.")


def _current_module(module: str) -> str:
    """numpy 2 calls ``numpy._core`` what was ``numpy.core``."""
    return module.replace("numpy._core.", "numpy.core.")


class _Note:
    """Base of the stand-ins: what pickle may do to an instance is to give it a state, once."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        if hasattr(self, "state"):
            raise PickleRefused("it changes a value that is already complete.")
        self.state = state


class _Call:
    """What the unpickler gets for an allowed name: calling it takes a note. It has no state that could be changed."""

    __slots__ = ("_stand_in",)
    _stand_in: type[_Note]

    def __init__(self, stand_in: type[_Note]) -> None:
        object.__setattr__(self, "_stand_in", stand_in)

    def __call__(self, *arguments: Any) -> Any:
        return self._stand_in(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise PickleRefused(f"it changes the attribute {name} of a function.")

    def __setstate__(self, state: Any) -> None:
        raise PickleRefused("it changes a function.")


class _Type(_Note):
    """``numpy.dtype(code, align, copy)`` and its state (version, byte order, …)."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def settle(self) -> np.dtype[Any]:
        state = getattr(self, "state", (3, "="))
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        text = _text(self.code)
        if len(text) > 3 or text[:1] not in _ARRAY_KINDS or not text[1:].isdigit():
            raise PickleRefused(f"it holds an array of type {text!r}; accepted are numbers only.")
        if _text(order) not in ("<", ">", "=", "|"):
            raise PickleRefused(f"it holds an array in the byte order {order!r}.")
        return np.dtype(text).newbyteorder(_text(order))  # type: ignore[arg-type]


class _Array(_Note):
    """``_reconstruct(ndarray, (0,), b"b")``, whose state is (version, shape, type, is_fortran, data)."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        pass

    def settle(self) -> NDArray[Any]:
        _, shape, kind, is_fortran, data = self.state
        return _array(data, kind, shape, "F" if is_fortran else "C")


class _Buffer(_Note):
    """``_frombuffer(data, type, shape, order)``, which pickles of protocol 5 use."""

    __slots__ = ("arguments",)

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def settle(self) -> NDArray[Any]:
        data, kind, shape, order = self.arguments
        return _array(data, kind, shape, order)


class _Scalar(_Note):
    """``scalar(type, data)``."""

    __slots__ = ("data", "kind")

    def __init__(self, kind: Any, data: Any) -> None:
        self.kind, self.data = kind, data

    def settle(self) -> Any:
        return _array(self.data, self.kind, (), "C")[()]


class _Bytes(_Note):
    """``_codecs.encode(text, "latin1")`` or ``bytes()``: how old protocols spell bytes. No codec is looked up."""

    __slots__ = ("text",)

    def __init__(self, text: Any = "", codec: Any = "latin1") -> None:
        if not isinstance(text, str) or codec != "latin1":
            raise PickleRefused(f"it encodes text with {codec!r}.")
        self.text = text

    def settle(self) -> bytes:
        return self.text.encode("latin1")


class _Dict(_Note):
    """``collections.OrderedDict()``, filled item by item; it becomes a plain dict."""

    __slots__ = ("items",)

    def __init__(self, items: Any = ()) -> None:
        self.items: dict[Any, Any] = {}
        for key, value in items:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def settle(self) -> dict[Any, Any]:
        return {_settled(k): _settled(v) for k, v in self.items.items()}


class _Class(_Note):
    """``numpy.ndarray``: only ever handed to ``_reconstruct``."""

    __slots__ = ()
    settle: ClassVar[None] = None


_ALLOWED: dict[tuple[str, str], type[_Note]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Class,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("collections", "OrderedDict"): _Dict,
}


def _array(data: Any, kind: Any, shape: Any, order: Any) -> NDArray[Any]:
    """A writable array of its own from bytes whose number fits the shape."""
    if not isinstance(kind, _Type):
        raise PickleRefused(f"it holds an array of type {kind!r}; accepted are numbers only.")
    dtype, raw, order = kind.settle(), _raw(data), _text(order)
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or order not in "CF":
        raise PickleRefused(f"it holds an array of shape {shape!r} and order {order!r}.")
    if len(raw) != dtype.itemsize * math.prod(shape):
        raise PickleRefused(f"it holds an array of {dtype} and shape {shape} with {len(raw)} bytes.")
    array = np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(dtype.newbyteorder("="), order="C")


def _raw(data: Any) -> bytes | bytearray:
    if isinstance(data, _Bytes):
        return data.settle()
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise PickleRefused(f"it holds an array of {type(data).__name__}; accepted are numbers only.")
    return data


def _text(value: Any) -> str:
    """Text that the pickle holds as a string or as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise PickleRefused(f"it holds {value!r} where a name is expected.")
    return value


def _settled(value: Any) -> Any:
    """The value with every stand-in replaced by what it stands for."""
    if isinstance(value, dict):
        return {_settled(k): _settled(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_settled(v) for v in value)
    if isinstance(value, _Type):
        return value.settle().str
    if isinstance(value, _Call | _Class):
        raise PickleRefused("it holds a function or a class as a value.")
    if isinstance(value, _Array | _Buffer | _Scalar | _Bytes | _Dict):
        return value.settle()
    return value
