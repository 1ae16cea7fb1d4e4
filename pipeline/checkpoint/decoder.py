"""The decoding half of the codec: one method a tag. Every value is checked before it is used."""

import warnings
from base64 import b64decode
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.dtypes import DTYPES, MAX_DEPTH, MAX_ENTRIES, VIEWED, Path, show
from pipeline.checkpoint.numpy_codec import array_from_bytes, scalar_from_json
from pipeline.errors import CorruptCheckpoint


class Decoder:
    """Reads one state; `tensors` are those that nothing has referred to yet."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.entries = 0

    def decode(self, data: Any, path: Path) -> Any:
        self.entries += 1
        if len(path) > MAX_DEPTH + 1 or self.entries > MAX_ENTRIES:
            raise CorruptCheckpoint(f"state.json: {show(path[:6])}: nested too deep or too long")
        kind = type(data)
        if data is None or kind in (bool, str, int, float):
            return data
        if kind is list:
            return self.items(data, path)
        _expect(kind is dict, path, "a JSON value")
        if not any(type(key) is str and key.startswith("!") for key in data):
            return {key: self.decode(item, (*path, key)) for key, item in data.items()}
        _expect(len(data) == 1, path, "a tag alone in its object")
        ((tag, body),) = data.items()
        _expect(tag in _TAGS, path, "a known tag")
        return _TAGS[tag](self, body, path)

    def items(self, data: Any, path: Path, length: int | None = None) -> list[Any]:
        _expect(type(data) is list and length in (None, len(data)), path, f"a list of {length or 'items'}")
        return [self.decode(item, (*path, str(index))) for index, item in enumerate(data)]

    def pairs(self, data: Any, path: Path) -> dict[Any, Any]:
        _expect(type(data) is list, path, "a list of pairs")
        result: dict[Any, Any] = {}
        for pair in data:
            _expect(type(pair) is list and len(pair) == 2, path, "a pair")
            part = (*path, str(pair[0])[:80])
            result[self.decode(pair[0], part)] = self.decode(pair[1], part)
        _expect(len(result) == len(data), path, "keys given once")
        return result

    def set(self, data: Any, path: Path) -> frozenset[Any]:
        result = frozenset(self.items(data, path))
        _expect(len(result) == len(data), path, "items given once")
        return result

    def deque(self, data: Any, path: Path) -> deque[Any]:
        _expect(type(data) is list and len(data) == 2, path, "a length and items")
        maxlen, items = data[0], self.items(data[1], path)
        _expect(maxlen is None or (type(maxlen) is int and maxlen >= len(items)), path, "a length that fits")
        return deque(items, maxlen)

    def tensor(self, data: Any, path: Path) -> Tensor:
        _expect(type(data) is str and data in self.tensors, path, "the name of a tensor, given once")
        return self.tensors.pop(data)

    def tensor_as(self, data: Any, path: Path) -> Tensor:
        _expect(type(data) is list and len(data) == 2 and data[0] in DTYPES, path, "a dtype and a tensor")
        dtype, stored = DTYPES[data[0]], self.tensor(data[1], path)
        _expect(dtype in VIEWED and stored.dtype is VIEWED[dtype], path, f"a tensor that holds {dtype}")
        return torch.view_as_complex(stored) if dtype.is_complex else stored.view(dtype)

    def sparse_coo(self, data: Any, path: Path) -> Tensor:
        _expect(type(data) is list and len(data) == 4 and type(data[1]) is bool, path, "a sparse tensor")
        size, indices, values = self.size(data[0], path), *self.items(data[2:], path)
        return torch.sparse_coo_tensor(indices, values, size, is_coalesced=data[1], check_invariants=True)

    def compressed(self, data: Any, path: Path, layout: torch.layout) -> Tensor:
        _expect(type(data) is list and len(data) == 4, path, "a sparse tensor")
        size, outer, inner, values = self.size(data[0], path), *self.items(data[1:], path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls this layout a beta, once a process
            return torch.sparse_compressed_tensor(outer, inner, values, size, layout=layout, check_invariants=True)

    def size(self, data: Any, path: Path) -> torch.Size:
        whole = type(data) is list and all(type(size) is int for size in data)
        _expect(whole, path, "a list of whole numbers")
        return torch.Size(data)

    def array(self, data: Any, path: Path) -> np.ndarray[Any, Any]:
        tensor = self.decode(data, path)
        _expect(isinstance(tensor, Tensor), path, "a tensor")
        return np.asarray(tensor.cpu().numpy())

    def leaf(self, data: Any, path: Path, read: Callable[[Any], Any]) -> Any:
        try:
            return read(data)
        except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
            raise CorruptCheckpoint(f"state.json: {show(path)}: {error}") from error

    def complex(self, data: Any, path: Path) -> complex:
        real, imaginary = self.items(data, path, length=2)
        _expect(type(real) is float and type(imaginary) is float, path, "two numbers")
        return complex(real, imaginary)

    def scalar(self, data: Any, path: Path) -> np.generic:
        kind, value = self.items(data, path, length=2)
        return self.leaf((kind, value), path, lambda pair: scalar_from_json(*pair))  # type: ignore[no-any-return]


def _read_int(data: Any) -> int:
    value = int(data, 16)
    if hex(value) != data:
        raise ValueError(f"{data[:40]!r} is not a whole number in hexadecimal")
    return value


def _read_float(data: Any) -> float:
    if data not in ("inf", "-inf", "nan"):
        raise ValueError("expected inf, -inf or nan")
    return float(data)


def _read_bytes(data: Any) -> bytes:
    return b64decode(data, validate=True)


_TAGS: dict[str, Callable[[Decoder, Any, Path], Any]] = {
    "!int": lambda d, data, path: d.leaf(data, path, _read_int),
    "!float": lambda d, data, path: d.leaf(data, path, _read_float),
    "!bytes": lambda d, data, path: d.leaf(data, path, _read_bytes),
    "!dtype": lambda d, data, path: d.leaf(data, path, DTYPES.__getitem__),
    "!device": lambda d, data, path: d.leaf(data, path, torch.device),
    "!complex": Decoder.complex,
    "!tuple": lambda d, data, path: tuple(d.items(data, path)),
    "!size": Decoder.size,
    "!dict": Decoder.pairs,
    "!ordered": lambda d, data, path: OrderedDict(d.pairs(data, path)),
    "!counter": lambda d, data, path: Counter(d.pairs(data, path)),
    "!set": lambda d, data, path: set(d.set(data, path)),
    "!frozenset": Decoder.set,
    "!deque": Decoder.deque,
    "!tensor": Decoder.tensor,
    "!tensor_as": Decoder.tensor_as,
    "!sparse_coo": Decoder.sparse_coo,
    "!sparse_csr": lambda d, data, path: d.compressed(data, path, torch.sparse_csr),
    "!sparse_csc": lambda d, data, path: d.compressed(data, path, torch.sparse_csc),
    "!array": Decoder.array,
    "!array_bytes": lambda d, data, path: d.leaf(data, path, array_from_bytes),
    "!scalar": Decoder.scalar,
}


def _expect(fine: bool, path: Path, what: str) -> None:
    if not fine:
        raise CorruptCheckpoint(f"state.json: {show(path)}: expected {what}")
