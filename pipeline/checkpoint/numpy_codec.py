"""NumPy scalars, and the arrays that torch has no dtype for, as JSON. Exact to the bit."""

import re
from base64 import b64decode, b64encode
from typing import Any

import numpy as np

from pipeline.checkpoint.strict_json import JSON

# Bool, integers, floats, complex, times, text and raw bytes, with a byte order; no records, no objects.
_DTYPE = re.compile(r"[<>|=][biufcmMSUV]\d{1,9}(\[\d{0,6}[A-Za-zμ]{1,2}\])?")
_TORCH = {*map(np.dtype, ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))}


def shares_with_torch(dtype: np.dtype[Any]) -> bool:
    """Whether torch has this dtype, in this byte order."""
    return dtype in _TORCH


def scalar_to_json(value: np.generic) -> JSON:
    """A NumPy scalar with its dtype, as a number where that is exact; None if it holds Python objects."""
    dtype = value.dtype
    if isinstance(value, np.str_):
        return {"!scalar": ["str", str.__str__(value)]}  # str() drops trailing zeros
    if isinstance(value, np.bytes_):
        return {"!scalar": ["bytes", b64encode(bytes(value)).decode()]}
    readable = dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8 and bool(np.isfinite(value)))
    if readable:
        number = value.item()
        return {"!scalar": [dtype.str, number if dtype.kind != "u" or number < 2**53 else str(number)]}
    if dtype.hasobject or dtype.itemsize == 0 or np.dtype(dtype.str) != dtype:
        return None
    return {"!scalar": [dtype.str, b64encode(value.tobytes()).decode()]}


def scalar_from_json(kind: Any, value: Any) -> np.generic:
    """The inverse of `scalar_to_json`'s body. Raises ValueError or TypeError for anything else."""
    if kind == "str" and type(value) is str:
        return np.str_(value)
    if kind == "bytes":
        return np.bytes_(b64decode(value, validate=True))
    dtype = _dtype(kind)
    if type(value) is str and dtype.kind == "u" and value.isdecimal():
        value = int(value)
    if type(value) in (bool, int, float):
        result = dtype.type(value)
    else:
        result = np.frombuffer(b64decode(value, validate=True), dtype).reshape(1)[0]
    if not isinstance(result, np.generic):
        raise TypeError(f"{kind!r} is no scalar's dtype")
    return result


def array_from_bytes(body: Any) -> np.ndarray[Any, Any]:
    """The array of [dtype, shape, base64]. Raises ValueError or TypeError if they don't agree."""
    kind, shape, data = body
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape is a list of whole numbers")
    dtype, raw = _dtype(kind), b64decode(data, validate=True)
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for an array of {shape} {kind}")
    # A copy: what frombuffer gives is read-only.
    return np.ndarray(shape, dtype, buffer=bytearray(raw) or bytearray(1)).copy()


def _dtype(kind: Any) -> np.dtype[Any]:
    if type(kind) is not str or _DTYPE.fullmatch(kind) is None:
        raise ValueError(f"{str(kind)[:40]!r} is no dtype")
    return np.dtype(kind)
