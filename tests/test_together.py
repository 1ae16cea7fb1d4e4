"""Several processes in one trial, at the level of `Run`: what they draw, agree on and keep, FSDP among it."""

import pytest
import torch

from pipeline import Checkpoint
from pipeline.checkpoint import FolderStore, load, parse_name
from pipeline.local import LocalSegment
from tests.checkpoint.comparing import assert_same
from tests.shared_training import EPOCHS, accumulating, curve, holding_back, placed, placing, sharded, train_together


def state(folder):
    found = LocalSegment(folder).resume()
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "whole"
    assert train_together(folder, sharded, 2) == ["complete", "complete"]
    return folder


def test_three_processes_go_on_to_the_same_bits_after_a_stop_between_two_steps(tmp_path):
    assert train_together(tmp_path / "whole", accumulating, 3) == ["complete"] * 3
    assert train_together(tmp_path / "stopped", accumulating, 3, stops=(2, (1, 3))) == ["preempted"] * 3
    assert Checkpoint.open(tmp_path / "stopped").position.batch == 3
    assert train_together(tmp_path / "stopped", accumulating, 3) == ["complete"] * 3
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    assert_same(state(tmp_path / "stopped"), state(tmp_path / "whole"))


def test_a_sharded_training_that_is_stopped_on_one_rank_goes_on_to_the_same_bits(undisturbed, tmp_path):
    folder = tmp_path / "stopped"
    assert train_together(folder, sharded, 2, stops=(1, (1, 2))) == ["preempted", "preempted"]
    assert Checkpoint.open(folder).position.batch == 2
    assert train_together(folder, sharded, 2) == ["complete", "complete"]
    assert curve(folder) == curve(undisturbed)
    assert_same(state(folder), state(undisturbed))


def test_while_fsdp_holds_gradients_back_no_checkpoint_is_taken(tmp_path):
    assert train_together(tmp_path / "whole", holding_back, 2, every_batch=True) == ["complete", "complete"]
    positions = {parse_name(name)[0].batch for name in FolderStore(tmp_path / "whole").names()}
    assert positions == {0, 2}
    assert train_together(tmp_path / "stopped", holding_back, 2, stops=(1, (1, 1))) == ["preempted", "preempted"]
    assert Checkpoint.open(tmp_path / "stopped").position.batch == 2
    assert train_together(tmp_path / "stopped", holding_back, 2) == ["complete", "complete"]
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
    assert_same(state(tmp_path / "stopped"), state(tmp_path / "whole"))


def test_what_is_parted_in_whatever_way_is_saved_whole(tmp_path):
    assert train_together(tmp_path, placing, 3) == ["complete"] * 3
    store = FolderStore(tmp_path)
    names = store.names()
    assert len(names) == EPOCHS
    for rows, name in enumerate(names, start=1):
        assert_same(load(store, name)[1]["numbers"], placed(rows))


def test_a_sharded_training_goes_on_in_one_process_and_in_two_again(undisturbed, tmp_path):
    folder = tmp_path / "resharded"
    train_together(folder, sharded, 2, stops=(0, (1, 2)))
    half = Checkpoint.open(folder)
    assert half.manifest.environment["processes"] == 2
    # What they brought together is a checkpoint like any other: whole, under the names of a model that is not sharded.
    model = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
    half.load_into(model=model)
    half.export_weights(tmp_path / "weights.safetensors")
    assert train_together(folder, sharded, 1, stops=(0, (2, 1))) == ["preempted"]
    assert Checkpoint.open(folder).manifest.environment["processes"] == 1
    assert train_together(folder, sharded, 2) == ["complete", "complete"]
    assert len(curve(folder)) == EPOCHS
    # Sums change their order, and nothing else.
    torch.testing.assert_close(curve(folder), curve(undisturbed))
    torch.testing.assert_close(dict(state(folder)["model"]), dict(state(undisturbed)["model"]))
