"""Comparing to the bit, types included."""

import struct
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor


def bits(tensor: Tensor) -> bytes:
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    return dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def assert_same(left: Any, right: Any, path: str = "value") -> None:
    """Fails, with the path, at the first difference in type, order, shape, dtype or bit."""
    assert type(left) is type(right), f"{path}: {type(left)} and {type(right)}"
    if isinstance(left, Tensor):
        assert (left.layout, left.dtype, left.shape) == (right.layout, right.dtype, right.shape), path
        if left.layout is torch.strided:
            assert bits(left) == bits(right), f"{path}: {left} and {right}"
            return
        if left.layout is torch.sparse_coo:
            assert left.is_coalesced() == right.is_coalesced(), path
            parts = [lambda t: t._indices(), lambda t: t._values()]
        elif left.layout is torch.sparse_csr:
            parts = [lambda t: t.crow_indices(), lambda t: t.col_indices(), lambda t: t.values()]
        else:
            parts = [lambda t: t.ccol_indices(), lambda t: t.row_indices(), lambda t: t.values()]
        for part in parts:
            assert_same(part(left), part(right), f"{path} (part)")
    elif isinstance(left, np.ndarray | np.generic):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert left.tobytes() == right.tobytes(), f"{path}: {left!r} and {right!r}"
    elif isinstance(left, float):
        assert struct.pack("d", left) == struct.pack("d", right), f"{path}: {left} and {right}"
    elif isinstance(left, complex):
        assert_same([left.real, left.imag], [right.real, right.imag], path)
    elif isinstance(left, dict):
        assert_same(list(left), list(right), f"{path} (keys)")
        for (key, mine), theirs in zip(left.items(), right.values(), strict=True):  # a key with nan in it finds nothing
            assert_same(mine, theirs, f"{path}.{key}")
    elif isinstance(left, list | tuple | deque):
        assert len(left) == len(right), path
        assert getattr(left, "maxlen", None) == getattr(right, "maxlen", None), path
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}.{index}")
    elif isinstance(left, set | frozenset):
        assert sorted(map(repr, left)) == sorted(map(repr, right)), path
    else:
        assert left == right, f"{path}: {left!r} and {right!r}"
