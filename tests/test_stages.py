"""Several stages in one training: each resumes in itself, and sees what the one before ended with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Checkpoint, Experiment, Run, Stage, UsageError
from pipeline.checkpoint import Position
from pipeline.local import LocalSegment
from pipeline.segment import Snapshot
from pipeline.stages.train import train

BATCHES = 4
EPOCHS = {"pretrain": 2, "finetune": 3}
STEPS = sum(EPOCHS.values()) * BATCHES


@dataclass(frozen=True)
class Config:
    """Nothing is varied."""


class Watched(LocalSegment):
    """Asks to stop when a number of batches was trained; can be cut off right after a commit."""

    def __init__(self, folder: Path, stop_after: int | None = None, cut_at: Position | None = None) -> None:
        super().__init__(folder)
        self.left = stop_after
        self.cut_at = cut_at

    def commit(self, snapshot: Snapshot) -> None:
        super().commit(snapshot)
        if snapshot.manifest.position == self.cut_at:
            raise Killed

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        pass

    def asked_to_stop(self) -> str | None:
        if self.left is None:
            return None
        self.left -= 1
        return "preempted" if self.left <= 0 else None


class Killed(BaseException):
    """What a SIGKILL leaves behind: nothing runs after it."""


def batches() -> DataLoader[Any]:
    x = torch.linspace(-1, 1, BATCHES * 4).unsqueeze(1)
    return DataLoader(TensorDataset(x, 2 * x), batch_size=4, shuffle=True)


def loop(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in run.epochs():
        for x, y in run.batches(batches()):
            loss = (nn.functional.dropout(model(x), 0.1) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.mean(loss=loss.item())
        run.report()


def pretrain(config: Config, run: Run) -> None:
    backbone = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9)
    run.track(backbone=backbone, optimizer=optimizer)
    loop(run, backbone, optimizer)


def finetune(config: Config, run: Run) -> None:
    backbone, head = nn.Linear(1, 1), nn.Linear(1, 1)
    run.previous.load_into(backbone=backbone)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    run.track(backbone=backbone, head=head, optimizer=optimizer)
    loop(run, nn.Sequential(backbone, head), optimizer)


def experiment(**stages: Callable[[Config, Run], None]) -> Experiment:
    wanted = {"pretrain": pretrain, "finetune": finetune} | stages
    return Experiment(
        config=Config,
        train=tuple(Stage(name, one, max_epochs=EPOCHS[name]) for name, one in wanted.items()),
        monitor="loss",
        direction="minimize",
    )


def train_once(segment: Watched, declared: Experiment | None = None) -> str:
    return train(
        declared or experiment(),
        Config(),
        segment=segment,
        seed=3,
        max_epochs=sum(EPOCHS.values()),
        threads=1,
        data={},
        origin={},
        checkpoint_every_s=3600,
    )


def assert_same_end(one: Path, other: Path) -> None:
    a, b = Checkpoint.open(one), Checkpoint.open(other)
    assert a.position == b.position == Position(1, EPOCHS["finetune"], 0)
    assert a.history.equals(b.history)
    assert list(a.history.index) == [1, 2, 3, 4, 5]
    left, right = a.tensors(), b.tensors()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train_once(Watched(folder)) == "complete"
    return folder


@pytest.mark.parametrize("after", range(1, STEPS))
def test_a_stop_in_any_stage_resumes_in_that_stage_exactly(undisturbed: Path, tmp_path: Path, after: int) -> None:
    assert train_once(Watched(tmp_path, stop_after=after)) in ("preempted", "complete")
    assert train_once(Watched(tmp_path)) == "complete"
    assert_same_end(undisturbed, tmp_path)


@pytest.mark.parametrize(
    "position",
    [Position(0, 1, 0), Position(0, 2, 0), Position(1, 0, 0), Position(1, 1, 0), Position(1, 3, 0)],
    ids=str,
)
def test_a_kill_right_after_any_checkpoint_loses_nothing(undisturbed: Path, tmp_path: Path, position: Position) -> None:
    with pytest.raises(Killed):
        train_once(Watched(tmp_path, cut_at=position))
    assert train_once(Watched(tmp_path)) == "complete"
    assert_same_end(undisturbed, tmp_path)


def test_a_stage_that_returned_early_is_not_entered_again(tmp_path: Path) -> None:
    entered: list[int] = []

    def early(config: Config, run: Run) -> None:
        model = nn.Linear(1, 1)
        run.track(backbone=model)
        for epoch in run.epochs():
            entered.append(epoch)
            run.report(loss=1.0)
            break

    with pytest.raises(Killed):
        train_once(Watched(tmp_path, cut_at=Position(1, 0, 0)), experiment(pretrain=early))
    assert train_once(Watched(tmp_path), experiment(pretrain=early)) == "complete"
    assert entered == [0]
    assert list(Checkpoint.open(tmp_path).history.index) == [1, 2, 3, 4]


def test_the_best_weights_are_those_of_the_last_stage(undisturbed: Path) -> None:
    assert Checkpoint.open(undisturbed, "best").position.stage == 1


def test_what_the_stage_before_ended_with_stays_readable(undisturbed: Path) -> None:
    seen: list[torch.Tensor] = []

    def look(config: Config, run: Run) -> None:
        seen.append(run.previous.tensors("backbone.weight")["backbone.weight"])
        assert run.previous.position == Position(1, 0, 0)
        assert "backbone.weight" in run.previous.tensors()
        finetune(config, run)

    train_once(Watched(undisturbed), experiment(finetune=look))
    ended = Checkpoint.open(undisturbed, Position(0, EPOCHS["pretrain"], 0)).tensors("backbone.weight")
    assert torch.equal(seen[0], ended["backbone.weight"])


def test_the_first_stage_has_none_before_it(tmp_path: Path) -> None:
    def ask(config: Config, run: Run) -> None:
        run.previous  # noqa: B018

    with pytest.raises(UsageError, match="first stage"):
        train_once(Watched(tmp_path), experiment(pretrain=ask))


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ((), {}, "expected one Stage or more"),
        ((pretrain,), {}, "expected one Stage or more"),
        ((Stage("a", pretrain, max_epochs=1), Stage("a", finetune, max_epochs=1)), {}, "same name"),
        ((Stage("a", pretrain, max_epochs=1),), {"max_epochs": 3}, "each Stage says its own"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Experiment(config=Config, train=stages, monitor="loss", direction="minimize", **options)


def test_a_stage_without_epochs_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Stage("a", pretrain, max_epochs=0)
