"""The manifest says exactly what was said, and every other text is refused."""

import json
import random

import pytest

from pipeline.checkpoint import (
    Best,
    FileEntry,
    Manifest,
    Position,
    Report,
    TensorEntry,
    checkpoint_name,
    parse_name,
)
from pipeline.checkpoint.manifest import _seal, sort_names
from pipeline.errors import CorruptCheckpoint, EncodeError

MANIFEST = Manifest(
    position=Position(1, 3, 17),
    step=412,
    seconds=3.5,
    trial=12,
    parent=7,
    history=(
        Report(epoch=1, time_ms=1700000000000, seconds=0.0, metrics={"val_loss": float("inf"), "accuracy": -0.0}),
        Report(epoch=2, time_ms=1700000001000, seconds=12.25, metrics={"val_loss": 0.1, "ünï": 1e-300}),
    ),
    best=Best(epoch=2, value=0.1, checkpoint="s0-e00002-b000000-t000007"),
    environment={"torch": "2.13.0", "threads": 2, "digests": {"code": None, "data": ["ab", True]}},
    files={"state.json": FileEntry(size_bytes=10, blake3="0" * 64)},
    tensors={"model.w": TensorEntry(dtype="float32", shape=(2, 3)), "s": TensorEntry(dtype="bool", shape=())},
)


def test_a_manifest_comes_back_as_it_was():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json().encode()).to_json() == MANIFEST.to_json()


def test_a_manifest_is_strict_json_even_with_nan():
    nan = Manifest(
        position=Position(),
        step=0,
        trial=0,
        history=(Report(epoch=1, time_ms=0, seconds=1.5, metrics={"a": float("nan"), "b": 1}),),
        best=Best(epoch=1, value=float("-inf"), checkpoint=None),
    )
    text = nan.to_json()
    json.loads(text, parse_constant=pytest.fail)
    back = Manifest.from_json(text)
    assert str(back.history[0].metrics) == "{'a': nan, 'b': 1.0}"
    assert back.best == nan.best


def test_an_environment_that_is_not_json_is_refused():
    with pytest.raises(EncodeError):
        Manifest(position=Position(), step=0, trial=0, environment={"a": object()}).to_json()
    with pytest.raises(EncodeError):
        Manifest(position=Position(), step=0, trial=0, environment={"a": float("nan")}).to_json()


def test_every_changed_byte_of_a_manifest_is_detected():
    text, rng = MANIFEST.to_json().encode(), random.Random(0)
    for _ in range(500):
        at = rng.randrange(len(text))
        kind = rng.choice(["flip", "cut", "drop", "insert"])
        changed = {
            "flip": text[:at] + bytes([text[at] ^ (1 << rng.randrange(8))]) + text[at + 1 :],
            "cut": text[:at],
            "drop": text[:at] + text[at + 1 :],
            "insert": text[:at] + bytes([rng.choice(b' \n0a"{}[]')]) + text[at:],
        }[kind]
        with pytest.raises(CorruptCheckpoint):
            Manifest.from_json(changed)


_WRONG = [
    *((("step",), value) for value in (-1, 1.5, "1", None, True, 2**63)),
    *((("seconds",), value) for value in (None, -1.0, 1, "nan", "1.0")),
    *((("trial",), value) for value in (None, -1)),
    *((("position",), value) for value in (None, [], {"stage": 0}, {"stage": 0, "epoch": 0, "batch": -1})),
    *((("position", "more"), value) for value in (1,)),
    *((("schema",), value) for value in (0, 2, "1", None)),
    *((("history",), value) for value in (None, {}, [1], [{"epoch": 1}])),
    *((("history", 0, "seconds"), value) for value in (None, -0.5, "inf")),
    *((("history", 0, "metrics"), value) for value in (None, [], {"a": 1}, {"a": "1.0"}, {"a": None})),
    *((("best",), value) for value in (1, {}, [])),
    *((("best", "checkpoint"), value) for value in (1, "../x", "/etc/passwd")),
    *((("environment",), value) for value in (None, [])),
    *((("files",), value) for value in (None, [], {"x": None}, {"x": {"size_bytes": -1, "blake3": "0" * 64}})),
    *((("files", "state.json", "blake3"), value) for value in (None, "0" * 63, "G" * 64)),
    *((("tensors",), value) for value in ([], {"x": {"dtype": "float32", "shape": [-1]}})),
    *((("tensors", "model.w", "shape"), value) for value in (None, 3, [2**63], [1.0])),
    *((("tensors", "model.w", "dtype"), value) for value in (None, 3)),
    *((("unknown",), value) for value in (1,)),
]


@pytest.mark.parametrize(("path", "value"), _WRONG, ids=str)
def test_a_sealed_manifest_with_a_wrong_value_is_refused(path, value):
    data = json.loads(MANIFEST.to_json())
    del data["blake3"]
    assert Manifest.from_json(_seal(data)) == MANIFEST  # the harness itself breaks nothing
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CorruptCheckpoint):
        Manifest.from_json(_seal(data))


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "null", "{}", "{", "[" * 100_000, '{"a": NaN}', '{"a":1,"a":1}', "\x00"]
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(CorruptCheckpoint):
        Manifest.from_json(text)


def test_a_name_says_position_and_trial():
    assert checkpoint_name(Position(0, 3, 17), 12) == "s0-e00003-b000017-t000012"
    for position, trial in [(Position(0, 3, 17), 12), (Position(12, 100_000, 1_000_000), 1_000_000)]:
        assert parse_name(checkpoint_name(position, trial)) == (position, trial)


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", "../x", "/etc/x", "s0-e00003-b000017-t000012/..", "s0-e00003-b000017-t000012\n"),
        *("s00-e00003-b000017-t000012", "s0-e0003-b000017-t000012", "s0-e000003-b000017-t000012"),
        *(
            "s0-e00003-b000017-t0000012",
            "S0-e00003-b000017-t000012",
            "s0-e\u0660\u0660\u0660\u0660\u0663-b000017-t000012",
            "s-1-e00003",
        ),
    ],
)
def test_every_other_string_is_no_name(name):
    assert parse_name(name) is None


def test_names_sort_by_position_and_then_by_trial_beyond_their_digits_too():
    ordered = [
        checkpoint_name(Position(*place), trial)
        for *place, trial in [
            (0, 2, 0, 9),
            (0, 99_999, 5, 1),
            (0, 100_000, 0, 0),
            (0, 100_000, 0, 3),
            (1, 0, 0, 0),
        ]
    ]
    assert sort_names(["other", *reversed(ordered)]) == ordered
