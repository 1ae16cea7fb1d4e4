"""Whatever is encoded comes back equal, types included; everything else is refused with its path."""

import json
import random
import warnings
from collections import Counter, OrderedDict, deque, namedtuple
from enum import IntEnum

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from pipeline.checkpoint import strict_json
from pipeline.checkpoint.codec import decode, encode
from pipeline.checkpoint.dtypes import MAX_DEPTH
from pipeline.errors import CorruptCheckpoint, EncodeError
from tests.checkpoint.comparing import assert_same


def through_text(value):
    tree, tensors = encode(value)
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), name
        assert tensor.layout is torch.strided, name
    return decode(strict_json.loads(strict_json.dumps(tree), "test"), tensors)


def _compressed(layout, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the layout is a beta, says torch
        size = (2, 3) if layout is torch.sparse_csr else (3, 2)
        pointers, indices = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
        values = torch.tensor([value, -0.0])
        return torch.sparse_compressed_tensor(pointers, indices, values, size, layout=layout, check_invariants=True)


_WHOLE = torch.arange(4.0)
_UNCOALESCED = torch.sparse_coo_tensor([[0, 0, 2]], [1.0, 2.0, 3.0], (4,), check_invariants=True)

VALUES = {
    "int keys": {3: "a", -1: "b", True: "c", None: "d", 2.5: "e"},
    "tuple keys": {(1, "x", frozenset({2})): 1, b"k": 2},
    "a key that looks like a tag": {"!tuple": [1], "plain": {"!tensor": "model.weight"}},
    "an int beyond 64 bits": [2**200, -(2**64), 2**53, 2**53 + 1, -(2**53) - 1],
    "floats": [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, 0.1, 1e308],
    "text": ["", "naïve ☃ \U0001f600", "\ud800", "\x00", "__metadata__", "a.b"],
    "bytes": [b"", bytes(range(256))],
    "complex": [1 + 2j, complex(float("nan"), -0.0)],
    "counter": Counter({10: 2, "x": -1}),
    "ordered": OrderedDict([("b", 1), ("a", OrderedDict())]),
    "deque": [deque([1, (2,)], maxlen=5), deque(), deque(maxlen=0)],
    "sets": [set(), {1, "1", (1,), None}, frozenset({b"", 2.5})],
    "torch": [
        torch.float32,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.device("cuda:1"),
        torch.Size([2, 0]),
    ],
    "sparse coo": [_UNCOALESCED, _UNCOALESCED.coalesce(), _UNCOALESCED.to(torch.complex128)],
    "sparse csr and csc": [_compressed(torch.sparse_csr, 1.0), _compressed(torch.sparse_csc, 1j)],
    "shared storage": {"whole": _WHOLE, "again": _WHOLE, "view": _WHOLE[1:], "stride 0": _WHOLE[:1].expand(3)},
    "strides": [torch.arange(6.0).reshape(2, 3).T, torch.arange(6.0)[::2]],
    "conjugate": [torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j]).conj().imag],
    "names that collide": {
        1: torch.ones(1),
        "1": torch.zeros(1),
        "a": {"b": torch.ones(2)},
        "a.b": torch.ones(3),
    },
    "odd names": {
        "__metadata__": torch.ones(1),
        "": torch.ones(2),
        "ü/..": torch.ones(3),
        "\ud800": torch.ones(4),
    },
    "arrays": [
        np.arange(6).reshape(2, 3)[:, ::-1],
        np.array(1.5, dtype=">f8"),
        np.array(["ab", "c"]),
        np.array([b"a\0"], dtype="S4"),
        np.array(["2024-01-01"], dtype="M8[D]"),
        np.zeros((0, 3), dtype=np.longdouble),
        np.array(True),
        np.asfortranarray(np.ones((2, 3), np.complex64)),
    ],
    "numpy scalars": [
        *(np.dtype(code).type(1) for code in "?bhilBHILefdgFDG"),
        *(np.float16(0.1), np.float32(0.1), np.float64("nan"), np.float32("-inf"), np.float64(-0.0)),
        *(np.uint64(2**64 - 1), np.int64(-(2**63)), np.complex64(complex(1, float("nan")))),
        *(np.str_("a\0"), np.bytes_(b"a\0"), np.datetime64("2024-01-01T00:00", "s"), np.timedelta64(5, "ms")),
        *(np.datetime64("NaT"), np.void(b"abc")),
    ],
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_comes_back_as_it_was(value):
    assert_same(through_text(value), value)


_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex32, torch.complex64),
    *(torch.complex128, torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8),
    *(torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3,), (2, 3)], ids=str)
def test_a_tensor_of_every_dtype_and_shape_comes_back(dtype, shape):
    raw = torch.arange(torch.Size(shape).numel() * dtype.itemsize, dtype=torch.uint8)
    if dtype is torch.bool:
        raw %= 2
    tensor = raw.view(dtype).reshape(shape)
    assert_same(through_text({"t": tensor}), {"t": tensor})


def test_a_tensor_has_the_name_of_its_path():
    tree, tensors = encode({"model": {"fc1.weight": torch.ones(1)}, "optimizer": {"state": [torch.ones(2)]}})
    assert list(tensors) == ["model.fc1.weight", "optimizer.state.0"]
    assert tree["model"] == {"fc1.weight": {"!tensor": "model.fc1.weight"}}


def test_a_parameter_comes_back_as_a_plain_tensor():
    assert_same(through_text(torch.nn.Parameter(torch.ones(2))), torch.ones(2))


class Colour(IntEnum):
    RED = 1


_CYCLE: list = []
_CYCLE.append(_CYCLE)

REFUSED = {
    "lambda": ({"optimizer": {"state": [{"hook": lambda: 0}]}}, "optimizer.state.0.hook"),
    "object": ({"a": (1, object())}, "a.1"),
    "enum": ({"c": Colour.RED}, "c"),
    "named tuple": ([namedtuple("Point", "x")(1)], "0"),
    "object array": ({"a": np.array([object()])}, "a"),
    "record": ({"a": np.zeros(2, dtype=[("x", "f4")])}, "a"),
    "a cycle": (_CYCLE, "0.0.0"),
    "a tensor as a key": ({"d": {torch.ones(1): 1}}, "d"),
    "a tensor in a set": ({"d": {torch.ones(1)}}, "d.0"),
    "meta": ({"m": torch.ones(1, device="meta")}, "m"),
    "a tensor's subclass": ({"m": torch.ones(1).as_subclass(type("Mine", (torch.Tensor,), {}))}, "m"),
    "a module": ({"m": torch.nn.Linear(1, 1)}, "m"),
}


@pytest.mark.parametrize(("value", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_saved_is_refused_with_its_path(value, path):
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert str(caught.value).startswith(path)


def test_the_deepest_value_that_is_written_is_read():
    value = 1 + 2j
    for _ in range(MAX_DEPTH):
        value = (value,)
    assert_same(through_text(value), value)
    with pytest.raises(EncodeError):
        encode((value,))


_TENSORS = st.builds(
    lambda dtype, shape: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
    st.lists(st.integers(0, 3), max_size=3),
)
_ARRAYS = st.builds(np.arange, st.integers(0, 5), dtype=st.sampled_from(["f4", ">i2", "u8", "c16", "g"]))
_ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_subnormal=True).map(lambda x: float("nan") if x != x else x),
    st.text(),
    st.binary(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.device("cpu"), torch.Size([1, 2])]),
    st.sampled_from([np.float32(0.1), np.int8(-3), np.bool_(True), np.uint64(2**63), np.str_("x")]),
)
_KEYS = st.recursive(_ATOMS, lambda keys: st.lists(keys, max_size=3).map(tuple), max_leaves=4)
_VALUES = st.recursive(
    st.one_of(_ATOMS, _TENSORS, _ARRAYS, st.complex_numbers(allow_nan=False)),
    lambda values: st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.dictionaries(st.text() | st.sampled_from(["!tuple", "!", "!tensor", "a.b", "~2"]), values, max_size=4),
        st.dictionaries(_KEYS, values, max_size=4),
        st.dictionaries(_KEYS, values, max_size=3).map(OrderedDict),
        st.dictionaries(_KEYS, st.integers(), max_size=3).map(Counter),
        st.builds(deque, st.lists(values, max_size=3), st.none() | st.integers(3, 9)),
        st.sets(_KEYS, max_size=4),
        st.frozensets(_KEYS, max_size=4),
    ),
    max_leaves=20,
)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(_VALUES)
def test_any_nest_of_supported_types_comes_back_equal(value):
    assert_same(through_text(value), value)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(_VALUES)
def test_equal_values_are_equal_text(value):
    again = through_text(value)
    assert strict_json.dumps(encode(value)[0]) == strict_json.dumps(encode(again)[0])


MALFORMED = [
    {"!unknown": 1},
    {"!tuple": [1], "more": 2},
    {"!tuple": 1},
    {"!tensor": "absent"},
    {"!tensor": ["t"]},
    [{"!tensor": "t"}, {"!tensor": "t"}],
    {"!dict": [[1]]},
    {"!dict": [[1, 2], [1, 3]]},
    {"!dict": [[[], 2]]},
    {"!set": [1, 1]},
    {"!set": [[]]},
    {"!int": "12"},
    {"!int": 12},
    {"!int": "0x_1"},
    {"!float": "1.0"},
    {"!float": ["inf"]},
    {"!bytes": "?"},
    {"!bytes": 3},
    {"!dtype": "save"},
    {"!dtype": []},
    {"!device": "no such device"},
    {"!complex": [1.0]},
    {"!complex": [1, 2]},
    {"!size": [-1.5]},
    {"!size": [2**70]},
    {"!deque": [1, [1, 2]]},
    {"!deque": [2**100, []]},
    {"!deque": [-1, []]},
    {"!array": 1},
    {"!array_bytes": ["|O8", [1], ""]},
    {"!array_bytes": ["<f8", [2**40, 2**40], ""]},
    {"!array_bytes": ["<f8", [-1], ""]},
    {"!array_bytes": ["<f8", [1], "AAAA"]},
    {"!array_bytes": ["f8,f8", [1], "AAAA"]},
    {"!array_bytes": ["<U999999999", [1], "AAAA"]},
    {"!scalar": ["<i1", 300]},
    {"!scalar": ["<i8", 2**80]},
    {"!scalar": ["|O8", 1]},
    {"!scalar": ["<M8[s]", 1.5]},
    {"!scalar": ["<f4", ""]},
    {"!sparse_coo": [[2**62, 2**62], False, {"!tensor": "t"}, 1]},
    {"!sparse_coo": [[1], False, 1, 1]},
    {"!sparse_csr": [[1], 1, 1, 1]},
    {"!sparse_csr": [[2, 2], {"!tensor": "t"}, {"!array": {"!tensor": "t"}}, 1]},
    {"!tensor_as": ["float32", "t"]},
    {"!tensor_as": ["complex64", "t"]},
    {"!tensor_as": [[], "t"]},
    {"plain": "the tensor is not referred to"},
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: json.dumps(data)[:60])
def test_what_was_not_written_by_us_is_refused_as_corrupt(data):
    with pytest.raises(CorruptCheckpoint):
        decode(data, {"t": torch.ones(3, dtype=torch.int64)})


def test_a_deep_tree_is_refused_as_corrupt():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(CorruptCheckpoint):
        decode(deep, {})
    with pytest.raises(CorruptCheckpoint):
        strict_json.loads("[" * 200_000, "test")


def _replace_somewhere(tree, rng):
    """`tree` with one node replaced by a node from elsewhere or by something odd."""
    nodes = []

    def walk(node):
        for key in list(node if isinstance(node, dict) else range(len(node))):
            nodes.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    parent, key = rng.choice(nodes)
    odd = [
        None,
        -1,
        2**70,
        0.5,
        "",
        "inf",
        [],
        {},
        [[]],
        {"!tuple": []},
        {"!tensor": "t"},
        {"!dict": [[[], 1]]},
    ]
    parent[key] = rng.choice([*odd, *(node[key] for node, key in rng.sample(nodes, 1))])
    return tree


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_tree_changed_anywhere_is_read_or_refused_as_corrupt_and_nothing_else():
    rng = random.Random(0)
    tree, tensors = encode(VALUES)
    text = json.dumps(tree)
    refused = 0
    for _ in range(1000):
        changed = _replace_somewhere(json.loads(text), rng)
        try:
            decode(changed, tensors)
        except CorruptCheckpoint:
            refused += 1
    assert refused > 300
