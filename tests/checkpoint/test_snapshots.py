"""Snapshots beside training: whole and exact, or known to be none."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.checkpoint import FolderStore, Manifest, Position, Snapshots, Taken, Torn, capture, load, restore
from pipeline.checkpoint.files import FROZEN
from pipeline.checkpoint.retention import referred
from pipeline.segment import Snapshot, put
from tests.checkpoint.comparing import assert_same

WIDTH = 300  # a weight of it is large enough to be copied late
STEPS = 3


class Gate:
    """Holds the copies beside training back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pipeline.checkpoint import snapshots

        self.opened = threading.Event()
        self.copied = 0
        real = snapshots._copy_all

        def held(pairs: list[Any]) -> None:
            self.opened.wait()
            self.copied += len(pairs)
            real(pairs)

        monkeypatch.setattr(snapshots, "_copy_all", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def build(optimizer: str = "AdamW", **arguments: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, 2))
    return {"model": model, "optimizer": getattr(torch.optim, optimizer)(model.parameters(), **arguments)}


def step(objects: dict[str, Any], before_step: Callable[[], object] = lambda: None) -> None:
    model, optimizer = objects["model"], objects["optimizer"]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(8, WIDTH)).square().mean()
        loss.backward()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        before_step()
        optimizer.step(closure)
    else:
        closure()
        before_step()
        optimizer.step()


@pytest.fixture
def watched() -> Iterator[Callable[[dict[str, Any]], Snapshots]]:
    made: list[Snapshots] = []

    def watch(objects: dict[str, Any]) -> Snapshots:
        made.append(Snapshots(objects))
        return made[-1]

    yield watch
    for one in made:
        one.close()


def after_the_first(watched: Callable[[dict[str, Any]], Snapshots], objects: dict[str, Any]) -> Snapshots:
    """Snapshots that have seen one of theirs stand until the next step."""
    snapshots = watched(objects)
    step(objects)
    snapshots.take().release()
    step(objects)
    return snapshots


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {}),
    ("AdamW", {"fused": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("LBFGS", {"max_iter": 2}),
]


@pytest.mark.parametrize(("name", "arguments"), OPTIMIZERS, ids=["adamw", "fused", "sgd", "lbfgs"])
def test_a_snapshot_whose_copy_goes_on_beside_training_is_of_the_moment_it_was_taken(watched, gate, name, arguments):
    objects = build(name, **arguments)
    snapshots = after_the_first(watched, objects)
    expected = capture(objects)
    taken = snapshots.take()
    assert gate.copied == 0
    step(objects, before_step=gate.opened.set)  # forward and backward have passed, and the batch norm has moved
    taken.wait()
    assert gate.copied > 0
    assert_same(taken.state, expected)
    assert not torch.equal(objects["model"][0].weight, expected["model"]["0.weight"])


def test_a_step_waits_for_the_copy(watched, gate):
    objects = build()
    snapshots = after_the_first(watched, objects)
    expected = capture(objects)
    taken = snapshots.take()
    entered = threading.Event()
    training = threading.Thread(target=lambda: step(objects, before_step=entered.set))
    training.start()
    entered.wait()
    assert torch.equal(objects["model"][0].weight, expected["model"]["0.weight"])
    gate.opened.set()
    training.join()
    taken.wait()
    assert_same(taken.state, expected)


def test_a_change_in_place_before_the_step_makes_the_snapshot_none_and_the_next_ones_are_copied_at_once(
    watched, gate, caplog
):
    objects = build()
    snapshots = after_the_first(watched, objects)
    taken = snapshots.take()
    with torch.no_grad():
        objects["model"][0].weight.clamp_(-0.01, 0.01)
    step(objects, before_step=gate.opened.set)
    assert taken.torn
    with pytest.raises(Torn, match="changed in place before the next optimizer step"):
        taken.wait()
    taken.release()
    assert "training waits for every copy from now on" in caplog.text
    for _ in range(2):
        gate.copied = 0
        expected = capture(objects)
        taken = snapshots.take()
        with torch.no_grad():
            objects["model"][0].weight.clamp_(-0.001, 0.001)
        taken.wait()
        taken.release()
        assert gate.copied == 0
        assert_same(taken.state, expected)
        step(objects)


def test_a_training_that_always_changes_weights_between_epoch_and_step_is_seen_to_do_so(watched, gate):
    """By the bits: `.data` leaves no trace in the tensor's version."""
    objects = build()
    snapshots = watched(objects)
    step(objects)
    for _ in range(3):
        expected = capture(objects)
        taken = snapshots.take()
        objects["model"][0].weight.data.mul_(0.5)
        taken.wait()
        assert_same(taken.state, expected)
        taken.release()
        step(objects)
    assert gate.copied == 0


def test_what_was_seen_inside_an_epoch_says_nothing_of_its_end(watched, gate):
    objects = build()
    snapshots = watched(objects)
    step(objects)
    snapshots.take(inside=True).release()
    step(objects)
    expected = capture(objects)
    taken = snapshots.take()
    objects["model"][0].weight.data.mul_(0.5)  # as this loop does where an epoch begins
    step(objects)
    taken.wait()
    assert_same(taken.state, expected)
    assert gate.copied == 0
    taken.release()


def test_a_snapshot_that_must_stand_is_copied_at_once(watched, gate):
    objects = build()
    snapshots = after_the_first(watched, objects)
    expected = capture(objects)
    taken = snapshots.take(at_once=True)
    with torch.no_grad():
        objects["model"][0].weight.zero_()
    taken.wait()
    assert_same(taken.state, expected)


def test_sparse_state_is_copied_too(watched):
    torch.manual_seed(1)
    model = nn.Embedding(400, 50, sparse=True)
    objects = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)}
    snapshots = watched(objects)
    for _ in range(3):
        model(torch.tensor([1, 5])).sum().backward()
        objects["optimizer"].step()
        expected = capture(objects)
        taken = snapshots.take()
        taken.settle()
        taken.wait()
        assert_same(taken.state, expected)
        taken.release()


def test_an_optimizer_whose_steps_are_not_seen_is_copied_at_once(watched, gate):
    objects = build()
    snapshots = after_the_first(watched, objects)
    snapshots.take().release()
    gate.opened.set()
    step(objects)
    snapshots.take().release()
    # Since then nothing has called the hook, as when a CUDA graph is replayed.
    snapshots.settle()
    gate.copied = 0
    taken = snapshots.take()
    taken.wait()
    assert gate.copied == 0
    taken.release()


def test_the_average_of_a_model_is_copied_at_once(watched, gate):
    objects = build()
    objects["average"] = torch.optim.swa_utils.AveragedModel(objects["model"])
    snapshots = after_the_first(watched, objects)
    expected = capture(objects)
    taken = snapshots.take()
    objects["average"].update_parameters(objects["model"])
    step(objects, before_step=gate.opened.set)
    taken.wait()
    assert_same(taken.state, expected)


def test_memory_is_used_again(watched):
    objects = build()
    snapshots = watched(objects)
    addresses = set()
    for _ in range(5):
        step(objects)
        taken = snapshots.take()
        addresses.add(taken.state["model"]["0.weight"].data_ptr())
        step(objects)
        taken.wait()
        taken.release()
    assert len(addresses) == 1


def test_a_snapshot_that_is_still_needed_is_not_overwritten(watched):
    objects = build()
    snapshots = watched(objects)
    step(objects)
    first, expected = snapshots.take(), capture(objects)
    step(objects)
    snapshots.take().release()
    step(objects)
    snapshots.take().release()
    assert_same(first.state, expected)
    first.release()


def test_shapes_may_change_from_one_snapshot_to_the_next(watched):
    class Grows:
        def __init__(self) -> None:
            self.values = torch.zeros(1)

        def state_dict(self) -> dict[str, Any]:
            return {"values": self.values, "sparse": torch.eye(3).to_sparse()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.values = state["values"]

    grows = Grows()
    snapshots = watched({"grows": grows, **build()})
    for size in (1, 3, 2, 0):
        grows.values = torch.full((size,), float(size))
        expected = capture({"grows": grows})
        taken = snapshots.take()
        assert_same(taken.state["grows"], expected["grows"])
        taken.release()


def test_the_hooks_are_gone_when_it_is_closed(watched):
    objects = build()
    snapshots = watched(objects)
    assert objects["optimizer"]._optimizer_step_pre_hooks
    snapshots.close()
    assert not objects["optimizer"]._optimizer_step_pre_hooks


# Frozen parameters, which a store keeps once.


def frozen_build() -> dict[str, Any]:
    torch.manual_seed(1)
    backbone = nn.Linear(600, 600).requires_grad_(False)
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(600, 1)})
    return {"model": model, "optimizer": torch.optim.SGD(model["head"].parameters(), lr=0.1, momentum=0.9)}


def frozen_step(objects: dict[str, Any]) -> None:
    model, optimizer = objects["model"], objects["optimizer"]
    optimizer.zero_grad()
    model["head"](model["backbone"](torch.randn(4, 600))).square().mean().backward()
    optimizer.step()


def commit(store: FolderStore, taken: Taken, epoch: int, parent: Manifest | None) -> Manifest:
    taken.settle()
    taken.wait()
    manifest = Manifest(position=Position(0, epoch, 0), step=epoch, trial=0)
    written = put(store, Snapshot(manifest=manifest, state=taken.state, taken=taken), parent)
    taken.release()
    return written


@pytest.fixture
def frozen(watched, tmp_path) -> tuple[FolderStore, dict[str, Any], list[Manifest]]:
    """Three checkpoints of a model with a frozen part."""
    store, objects = FolderStore(tmp_path / "store"), frozen_build()
    snapshots = watched(objects)
    manifests: list[Manifest] = []
    for epoch in (1, 2, 3):
        frozen_step(objects)
        manifests.append(commit(store, snapshots.take(), epoch, manifests[-1] if manifests else None))
    return store, objects, manifests


def test_frozen_tensors_are_stored_once_and_read_from_there(frozen):
    store, objects, manifests = frozen
    assert [manifest.files[FROZEN].at for manifest in manifests] == [None, manifests[0].name, manifests[0].name]
    assert [(store.folder / manifest.name / FROZEN).exists() for manifest in manifests] == [True, False, False]
    assert manifests[1].size_bytes < manifests[0].size_bytes / 10
    fresh = frozen_build()
    with torch.no_grad():
        fresh["model"]["backbone"].weight.zero_()
    restore(fresh, load(store, manifests[2].name)[1])
    assert_same(capture(fresh)["model"], capture(objects)["model"])


def test_what_others_refer_to_outlives_its_checkpoint_and_goes_with_the_last_of_them(frozen):
    store, _, manifests = frozen
    first, second, third = (manifest.name for manifest in manifests)
    store.keep_only([third], 0, referred([manifests[2]]))
    assert store.names() == [third]
    assert [path.name for path in (store.folder / first).iterdir()] == [FROZEN]
    assert not (store.folder / second).exists()
    load(store, third)
    store.keep_only([], 0)
    assert list(store.folder.iterdir()) == []


def test_a_frozen_part_that_was_changed_is_stored_anew(frozen, watched):
    store, objects, manifests = frozen
    with torch.no_grad():
        objects["model"]["backbone"].weight.add_(1)
    changed = commit(store, watched(objects).take(), 4, manifests[-1])
    assert changed.files[FROZEN].at is None
    assert_same(load(store, changed.name)[1]["model"], capture(objects)["model"])
