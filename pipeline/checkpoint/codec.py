"""Nests of Python, NumPy and torch values <-> strict JSON and a flat dictionary of dense tensors.

Without pickle: what is read back is one of the types listed here, whatever the file says. What JSON has is
plain JSON. Everything else is an object with one key that starts with `!`:

    {"!tuple": [0.9, 0.999]}                     {"!tensor": "optimizer.state.fc1.weight.exp_avg"}
    {"!dict": [[3, "int keys"]]}                 {"!float": "inf"}

A dictionary of the user's with a key that starts with `!` is written as `!dict`, so none looks like a tag.
Tensors come back detached and contiguous; containers come back with their own type.
"""

import json
import math
from base64 import b64encode
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.decoder import Decoder
from pipeline.checkpoint.dtypes import MAX_DEPTH, STORED, VIEWED, Path, show
from pipeline.checkpoint.numpy_codec import scalar_to_json, shares_with_torch
from pipeline.checkpoint.strict_json import JSON
from pipeline.errors import CorruptCheckpoint, EncodeError

_EXACT_INT = 2**53  # beyond it other JSON readers (a browser) would show a neighbour
_RESERVED_NAME = "__metadata__"  # safetensors keeps it for itself
_SAVED = "keep tensors, arrays, numbers, text and plain containers of them in a state_dict"
_COMPRESSED = {torch.sparse_csr: "sparse_csr", torch.sparse_csc: "sparse_csc"}
_SEQUENCES: dict[Any, str] = {tuple: "tuple", torch.Size: "size"}
_MAPPINGS: dict[Any, str] = {OrderedDict: "ordered", Counter: "counter"}
_SETS: dict[Any, str] = {set: "set", frozenset: "frozenset"}


def encode(value: object) -> tuple[JSON, dict[str, Tensor]]:
    """`value` as strict JSON that refers to tensors by name, and those tensors.

    Tensors are dense, contiguous and on the CPU, not copied where they are so already. Their names are the
    dotted paths, odd characters percent-encoded, and `~2`, `~3` appended where two paths read the same.
    Raises EncodeError, which names the path, for a value that has no place in a checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(value, (), tensors), tensors


def decode(data: JSON, tensors: dict[str, Tensor]) -> Any:
    """The value that `encode` was given. Raises CorruptCheckpoint for what `encode` does not write."""
    decoder = Decoder(tensors)
    try:
        value = decoder.decode(data, ())
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError, RuntimeError) as error:
        # torch and NumPy refuse impossible shapes and dtypes with one of these, RecursionError among them.
        raise CorruptCheckpoint(f"state.json: not a checkpoint's state: {error}") from error
    if decoder.tensors:
        raise CorruptCheckpoint(f"state.json: nothing refers to the tensor {min(decoder.tensors)!r}")
    return value


# Encoding. `tensors` is None inside a dictionary's keys and a set's items, where a tensor has no meaning.


def _encode(value: Any, path: Path, tensors: dict[str, Tensor] | None) -> JSON:
    if len(path) > MAX_DEPTH:
        raise EncodeError(f"{show(path[:6])}...: nested deeper than {MAX_DEPTH} levels, or in itself")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return value if abs(value) <= _EXACT_INT else {"!int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"!float": str(value)}
    if kind is dict:
        if all(type(key) is str and not key.startswith("!") for key in value):
            return {key: _encode(item, (*path, key), tensors) for key, item in value.items()}
        return {"!dict": _encode_pairs(value, path, tensors)}
    if kind is list:
        return _encode_items(value, path, tensors)
    if kind in _SEQUENCES:
        return {f"!{_SEQUENCES[kind]}": _encode_items(value, path, tensors)}
    if kind in _MAPPINGS:
        return {f"!{_MAPPINGS[kind]}": _encode_pairs(value, path, tensors)}
    if kind in _SETS:
        # In one order, so that equal states are equal files.
        return {f"!{_SETS[kind]}": sorted(_encode_items(value, path, None), key=json.dumps)}
    if kind is deque:
        return {"!deque": [value.maxlen, _encode_items(value, path, tensors)]}
    if kind is bytes:
        return {"!bytes": b64encode(value).decode()}
    if kind is complex:
        return {"!complex": [_encode(value.real, path, None), _encode(value.imag, path, None)]}
    if kind is torch.dtype:
        return {"!dtype": str(value).removeprefix("torch.")}
    if kind is torch.device:
        return {"!device": str(value)}
    if kind is Tensor or kind is torch.nn.Parameter:
        return _encode_tensor(value.detach(), path, tensors)
    if kind is np.ndarray:
        return _encode_array(value, path, tensors)
    if isinstance(value, np.generic):
        encoded = scalar_to_json(value)
        if encoded is not None:
            return encoded
    raise EncodeError(f"{show(path)}: a {kind.__module__}.{kind.__qualname__} cannot be saved; {_SAVED}")


def _encode_items(items: Iterable[Any], path: Path, tensors: dict[str, Tensor] | None) -> list[JSON]:
    return [_encode(item, (*path, str(index)), tensors) for index, item in enumerate(items)]


def _encode_pairs(value: dict[Any, Any], path: Path, tensors: dict[str, Tensor] | None) -> JSON:
    pairs: list[JSON] = []
    for key, item in value.items():
        part = (*path, key if type(key) is str else repr(key))
        pairs.append([_encode(key, part, None), _encode(item, part, tensors)])
    return pairs


def _encode_tensor(tensor: Tensor, path: Path, tensors: dict[str, Tensor] | None) -> JSON:
    if tensors is None:
        raise EncodeError(f"{show(path)}: a tensor cannot be a dictionary's key or a set's item")
    if tensor.layout is torch.sparse_coo:
        parts: tuple[Tensor, ...] = (tensor._indices(), tensor._values())
        data: list[JSON] = [list(tensor.shape), tensor.is_coalesced()]
        return {"!sparse_coo": data + _encode_items(parts, path, tensors)}
    if tensor.layout in _COMPRESSED:
        by_row = tensor.layout is torch.sparse_csr
        outer = tensor.crow_indices() if by_row else tensor.ccol_indices()
        inner = tensor.col_indices() if by_row else tensor.row_indices()
        parts = (outer, inner, tensor.values())
        return {f"!{_COMPRESSED[tensor.layout]}": [list(tensor.shape), *_encode_items(parts, path, tensors)]}
    plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested
    if not plain or tensor.is_meta or not (tensor.dtype in STORED or tensor.dtype in VIEWED):
        kind = f"{tensor.dtype} tensor ({tensor.layout}, {tensor.device.type})"
        raise EncodeError(f"{show(path)}: a {kind} cannot be saved")
    dense = tensor.resolve_conj().resolve_neg()
    if dense.is_complex():
        dense = torch.view_as_real(dense)
    elif dense.dtype in VIEWED:
        dense = dense.contiguous().view(torch.uint8)
    name = _name(path, tensors)
    tensors[name] = dense.cpu().contiguous()
    return {"!tensor": name} if tensor.dtype in STORED else {"!tensor_as": [str(tensor.dtype)[6:], name]}


def _encode_array(array: np.ndarray[Any, Any], path: Path, tensors: dict[str, Tensor] | None) -> JSON:
    if shares_with_torch(array.dtype):
        copy = np.array(array, order="C", copy=True)  # torch cannot view negative strides or read-only memory
        return {"!array": _encode_tensor(torch.from_numpy(copy), path, tensors)}
    if array.dtype.hasobject or np.dtype(array.dtype.str) != array.dtype:
        raise EncodeError(f"{show(path)}: an array of dtype {array.dtype} cannot be saved; {_SAVED}")
    shape: list[JSON] = list(array.shape)
    return {"!array_bytes": [array.dtype.str, shape, b64encode(array.tobytes()).decode()]}


def tensor_name(path: Path) -> str:
    """The name under which a tensor at this path is stored, unless another path reads the same."""
    return ".".join(quote(part, safe="", errors="surrogatepass") for part in path) or "value"


def _name(path: Path, tensors: dict[str, Tensor]) -> str:
    base = tensor_name(path)
    name, count = base, 1
    while name in tensors or name == _RESERVED_NAME:
        count += 1
        name = f"{base}~{count}"
    return name
