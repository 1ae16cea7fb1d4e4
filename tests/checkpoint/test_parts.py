"""What each of several processes sees in their checkpoint, and those that were not there when it was taken."""

import pytest
import torch

from pipeline.checkpoint import as_seen_by, capture_random, fingerprint, merged, seed_all
from tests.checkpoint.comparing import assert_same

STATE = {
    "model": {"w": 1},
    "noise": "rank 0's generator",
    "rng": "rank 0's",
    "grad": {"model": {"w": 0.5}},
    "loop": {"means": {"loss": [1.0, 2.0]}, "epoch_start": {"rng": "rank 0's start"}, "done": False},
    "ranks": {
        "1": {
            "rng": "rank 1's",
            "generators": {"noise": "rank 1's generator"},
            "epoch_start": {"rng": "rank 1's start"},
            "means": {"loss": [3.0, 2.0]},
            "grad": {"model": {"w": 0.25}},
        }
    },
}


def test_each_rank_has_its_own_again_and_the_rest_of_rank_0():
    own = {name: value for name, value in STATE.items() if name != "ranks"}
    assert as_seen_by(0, 2, STATE, 0) == own
    assert as_seen_by(1, 2, STATE, 0) == {
        "model": {"w": 1},
        "noise": "rank 1's generator",
        "rng": "rank 1's",
        "grad": {"model": {"w": 0.25}},
        "loop": {"means": {"loss": [3.0, 2.0]}, "epoch_start": {"rng": "rank 1's start"}, "done": False},
    }


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_where_others_go_on_each_has_the_sums_that_all_had_on_average(rank, world_size):
    assert as_seen_by(rank, world_size, STATE, 0)["loop"]["means"] == {"loss": [2.0, 2.0]}


def test_a_rank_that_was_not_there_draws_from_its_seed_and_has_what_rank_0_has():
    before = capture_random()
    seen = as_seen_by(2, 3, STATE, 7)
    assert_same(capture_random(), before)
    seed_all(7)
    assert_same(seen["rng"], capture_random())
    assert_same(seen["loop"]["epoch_start"]["rng"], seen["rng"])
    assert seen["noise"] == "rank 0's generator"
    assert seen["grad"] == STATE["grad"]


def test_a_checkpoint_of_a_process_that_was_alone_is_seen_as_it_is():
    alone = {name: value for name, value in STATE.items() if name != "ranks"}
    assert as_seen_by(0, 1, alone, 0) == alone


def test_sums_of_several_processes_are_added_in_their_order():
    sums = [{"loss": [1.0, 2.0]}, {"loss": [0.5, 1.0], "other": [4.0, 1.0]}, {}]
    assert merged(sums) == {"loss": [1.5, 3.0], "other": [4.0, 1.0]}


def test_gradients_that_differ_have_other_fingerprints():
    kinds = {
        "plain": torch.tensor([1.0, 2.0]),
        "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j]),
        "sparse": torch.sparse_coo_tensor([[1]], [3.0], (4,), check_invariants=True),
        "pairs": torch.tensor([1.0, 1.0]),
        "empty": torch.zeros(0),
    }
    found = fingerprint({"model": kinds})
    assert found == fingerprint({"model": {name: value.clone() for name, value in kinds.items()}})
    for name in ("plain", "half", "complex", "sparse", "pairs"):
        assert fingerprint({"model": {name: kinds[name] * 3}}) != {f"model.{name}": found[f"model.{name}"]}
