"""The allow-list unpickler: what it reads, and that hostile files have no effect."""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panoptile.model.unpickle import load_plain_pickle


def _dump(path: Path, value: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_come_back_equal(tmp_path: Path, protocol: int) -> None:
    """Dicts, lists, strings, numbers, scalars and arrays of any numeric type, order and byte order."""
    value: dict[str, Any] = OrderedDict(
        model={
            "c": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "half": np.ones((2, 1), np.float16),
            "big-endian": np.arange(3, dtype=">i4"),
            "empty": np.zeros((0, 4)),
            "flags": np.array([True, False]),
            "nought-d": np.array(7),
            "scalar": np.float64(0.5),
        },
        __author__="someone",
        shape=(1, [2.5, None, True, b"\x00\xff"]),
    )
    got = load_plain_pickle(_dump(tmp_path / "plain.pkl", value, protocol))
    assert type(got) is dict
    assert (got["__author__"], got["shape"]) == (value["__author__"], value["shape"])
    for name, expected in value["model"].items():
        array = got["model"][name]
        assert np.array_equal(array, expected), name
        assert array.shape == expected.shape, name
        assert array.dtype == expected.dtype.newbyteorder("="), name
        assert np.isscalar(array) or array.flags.writeable, name


class _Calls:
    """Pickles as a call of ``function`` with ``arguments``, and optionally a state to set on the result."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _attacks(target: Path) -> dict[str, Any]:
    command = f"mkdir {target}"
    return {
        "posix.system": _Calls(os.system, command),
        ".eval": _Calls(builtins.eval, f"__import__('os').system({command!r})"),
        ".getattr": _Calls(getattr, "abc", "upper"),
        "numpy.load": _Calls(np.load, str(target)),
        "array of type 'O8'": np.array([None, 1], dtype=object),
        "array of type 'V": np.zeros(2, dtype=[("a", "f4")]),
        "array of type 'M8'": np.zeros(2, dtype="datetime64[s]"),
        "numpy.ma": np.ma.array([1.0]),
        "torch._utils._rebuild_tensor_v2": torch.zeros(2),
        "fractions.Fraction": Fraction(1, 2),
        "_codecs.encode": None,
    }


@pytest.mark.parametrize("name", list(_attacks(Path("unused"))))
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_anything_else_is_refused_by_name_without_effect(tmp_path: Path, name: str, protocol: int) -> None:
    """Functions, classes, tensors and arrays that are not numbers: one sentence names each, and nothing happens."""
    target = tmp_path / "owned"
    attack = _attacks(target)[name]
    if name == "_codecs.encode":
        path = tmp_path / "codec.pkl"
        path.write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
        name = "encodes text with 'rot13'"
    else:
        path = _dump(tmp_path / "hostile.pkl", {"model": {"a": attack}}, protocol)
    with pytest.raises(ValueError, match="cannot be read safely") as error:
        load_plain_pickle(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"cnumpy\ndtype\n(dV__call__\nI1\nsb.",  # a state for the function itself
        b"cnumpy\ndtype\nN}V__defaults__\nNs\x86b.",  # the same by its attributes
        b"cnumpy\nndarray\n.",  # a class as the result
        b"cnumpy.core.multiarray\n_reconstruct\n(tR.",  # an array that never gets its state
        b"\x80\x02cnumpy\ndtype\n)\x81.",  # made by __new__
        b"cnumpy.core.multiarray\nscalar\n(I1\nI2\ntR.",  # no type
        b"cos\nsystem\n.",
        b"Pstorage\n.",  # a reference to outside
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x82\x01.",  # an extension code
    ],
)
def test_hand_made_streams_are_refused(tmp_path: Path, stream: bytes) -> None:
    """Opcodes that no honest writer produces end in the same error."""
    path = tmp_path / "stream.pkl"
    path.write_bytes(stream)
    with pytest.raises(ValueError, match=r"cannot be read safely|is not a whole pickle"):
        load_plain_pickle(path)


def test_an_array_with_too_few_bytes_is_refused(tmp_path: Path) -> None:
    """A shape that its data cannot fill never becomes an array."""
    honest = pickle.dumps({"a": np.zeros((3, 5), np.uint8)}, protocol=2)
    damaged = honest.replace(b"K\x03K\x05\x86", b"K\x63K\x05\x86")
    assert damaged != honest
    (tmp_path / "short.pkl").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"shape \(99, 5\) with 15 bytes"):
        load_plain_pickle(tmp_path / "short.pkl")


_WHOLE = pickle.dumps({"model": {"a": np.arange(5.0), "b": [1, "x", b"y"]}}, protocol=2)


@given(at=st.integers(0, len(_WHOLE) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes_end_in_a_value_or_in_one_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: bool
) -> None:
    """Whatever a single byte is changed to, or wherever the file ends, only ``ValueError`` comes out."""
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(_WHOLE[:at] if cut else _WHOLE[:at] + bytes([byte]) + _WHOLE[at + 1 :])
    with contextlib.suppress(ValueError):
        load_plain_pickle(path)
