"""Every draw after a restore is the draw that would have come."""

import random

import numpy as np
import pytest
import torch

from pipeline.checkpoint import (
    capture_generators,
    capture_random,
    generators,
    restore_generators,
    restore_random,
    seed_all,
)
from pipeline.errors import CorruptCheckpoint
from tests.checkpoint.comparing import assert_same
from tests.checkpoint.training import through_files


def _draws():
    return [
        random.random(),
        random.gauss(),
        np.random.rand(),
        np.random.standard_normal(),
        torch.rand(3),
        torch.randn(3),
    ]


def test_the_draws_after_a_restore_are_those_that_would_have_come(tmp_path):
    _draws()  # leaves half a pair of gaussians in python and NumPy
    state = through_files(tmp_path, {"rng": capture_random()})
    expected = _draws()
    seed_all(5)
    restore_random(state["rng"])
    assert_same(_draws(), expected)
    restore_random(state["rng"])
    assert_same(_draws(), expected)


def test_a_seed_fixes_every_generator():
    seed_all(2**64 - 1)
    first = _draws()
    seed_all(2**64 - 1)
    assert_same(_draws(), first)
    seed_all(0)
    assert _draws()[0] != first[0]


def test_tracked_generators_go_back_to_where_they_were():
    objects = {"a": torch.Generator(), "b": np.random.default_rng(1), "model": torch.nn.Linear(1, 1)}
    assert set(generators(objects)) == {"a", "b"}
    state = capture_generators(objects)
    expected = [torch.rand(2, generator=objects["a"]), objects["b"].random()]
    restore_generators(objects, state)
    assert_same([torch.rand(2, generator=objects["a"]), objects["b"].random()], expected)


@pytest.mark.parametrize("state", [{}, {"python": 1}, None, [], {**capture_random(), "torch": torch.zeros(2)}])
def test_what_is_no_random_state_is_refused(state):
    with pytest.raises(CorruptCheckpoint, match="rng"):
        restore_random(state)


def test_a_generator_without_a_state_is_refused():
    with pytest.raises(CorruptCheckpoint, match="a: no state"):
        restore_generators({"a": torch.Generator()}, {})
    with pytest.raises(CorruptCheckpoint, match="a: not a state"):
        restore_generators({"a": np.random.default_rng()}, {"a": {"bit_generator": "MT19937"}})
