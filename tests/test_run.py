"""`Run`: what a loop may do with it, and that a stop between any two batches changes nothing but the time."""

import contextlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Checkpoint, Experiment, ThawError, UsageError
from pipeline.checkpoint import Position, Schedule
from pipeline.course import DivergedError
from pipeline.errors import EncodeError, MismatchError
from pipeline.local import LocalSegment
from pipeline.run import Run
from pipeline.segment import Snapshot, Stopped
from pipeline.stages.train import train as training_stage
from tests.checkpoint.comparing import assert_same

EPOCHS, BATCHES = 3, 5


@dataclass(frozen=True)
class Config:
    """Nothing is varied."""


def experiment(train: Callable[[Config, Run], None], **options: Any) -> Experiment:
    usual = {"monitor": "loss", "direction": "minimize", "max_epochs": EPOCHS}
    return Experiment(config=Config, train=train, **{**usual, **options})


class StoppingSegment(LocalSegment):
    """Checkpoints in a folder; asks to stop once a run has trained up to a step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.committed: list[tuple[int, int]] = []
        self.trained_enough: Callable[[], bool] = lambda: False

    def commit(self, snapshot: Snapshot) -> None:
        super().commit(snapshot)
        self.committed.append((snapshot.manifest.position.epoch, snapshot.manifest.position.batch))

    def asked_to_stop(self) -> str | None:
        return "preempted" if self.trained_enough() else None


def run_once(
    folder: Path,
    train: Callable[[Config, Run], None],
    *,
    after: int | None = None,
    data: Mapping[str, Any] | None = None,
    checkpoint_every_s: float = 60.0,
    schedule: Schedule | None = None,
    **options: Any,
) -> tuple[str, Run, StoppingSegment]:
    """One process's part of a training: it ends complete, or is stopped after so many batches."""
    # What a new process would find: other random states than those where training stood.
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    segment = StoppingSegment(folder)
    declared = experiment(train, **options)
    run = Run(
        segment=segment,
        experiment=declared,
        seed=3,
        stage=0,
        max_epochs=declared.max_epochs,
        data=data or {},
        origin={},
        resumed=segment.resume(),
        checkpoint_every_s=checkpoint_every_s,
        schedule=schedule,
    )
    if after is not None:
        start = run.step
        segment.trained_enough = lambda: run.step - start >= after
    try:
        train(Config(), run)
    except Stopped as stop:
        return stop.ended, run, segment
    run.finish()
    return "complete", run, segment


def run_in_parts(folder: Path, train: Callable[[Config, Run], None], after: int, **options: Any) -> Run:
    """Stopped after every `after` batches, until it is complete."""
    for _ in range(10 * EPOCHS * BATCHES):
        ended, run, _ = run_once(folder, train, after=after, **options)
        if ended == "complete":
            return run
    raise AssertionError("it never came to an end")


def last_state(folder: Path) -> dict[str, Any]:
    segment = LocalSegment(folder)
    found = segment.resume()
    assert found is not None
    return found[1]


def metrics(run: Run) -> list[dict[str, float]]:
    return [dict(report.metrics) for report in run.history]


def assert_same_end(
    folder: Path, train: Callable[[Config, Run], None], after: int, **options: Any
) -> list[dict[str, float]]:
    """Trains whole and in parts; both must end with the same bits. Returns the metrics."""
    _, whole, _ = run_once(folder / "whole", train, **options)
    parts = run_in_parts(folder / "parts", train, after, **options)
    assert_same(metrics(parts), metrics(whole))
    assert parts.step == whole.step
    assert_same(last_state(folder / "parts"), last_state(folder / "whole"))
    return metrics(whole)


class Points(TensorDataset):
    """Points of a line with noise from every source of chance."""

    def __init__(self) -> None:
        x = torch.linspace(-1, 1, 4 * BATCHES).unsqueeze(1)
        super().__init__(x, 2 * x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(1) + 0.1 * random.random() + 0.1 * float(np.random.rand()), y


def points(**options: Any) -> DataLoader:
    return DataLoader(Points(), **{"batch_size": 4, "shuffle": True, **options})


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def training(accumulate: int = 1, **loader_options: Any) -> Callable[[Config, Run], None]:
    """A loop with everything in it that a checkpoint must keep."""

    def train(config: Config, run: Run) -> None:
        loader, model = points(**loader_options), net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
        noise = np.random.default_rng(run.seed)
        run.track(model=model, optimizer=optimizer, scheduler=scheduler, noise=noise)
        for _ in run.epochs():
            first = torch.rand(()).item() + random.random() + noise.random()
            for x, y in run.batches(loader):
                loss = mse_loss(model(x + 0.1 * torch.randn_like(x)), y) + 0.01 * noise.random()
                loss.backward()
                if (run.batch + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                run.mean(train_loss=loss.item())
            scheduler.step()
            run.report(loss=loss.item(), first=first, last=torch.rand(()).item())

    return train


@pytest.mark.parametrize("after", [1, 2, 3, 5, 7])
def test_stopped_after_any_number_of_batches_it_ends_with_the_same_bits(tmp_path: Path, after: int) -> None:
    assert_same_end(tmp_path, training(), after)


# Epochs without a step of the optimizer: that is what happens when gradients are accumulated over more than one.
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
        {"generator": "own"},
        {"accumulate": 3},
        {"accumulate": 7},
    ],
    ids=str,
)
def test_stopped_inside_epochs_it_ends_with_the_same_bits_whatever_the_loader(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def train(config: Config, run: Run) -> None:
        own = {"generator": torch.Generator().manual_seed(8)} if "generator" in options else {}
        training(**{**options, **own})(config, run)

    assert_same_end(tmp_path, train, after=4)


def test_a_stop_is_obeyed_between_two_batches_and_its_checkpoint_says_where(tmp_path: Path) -> None:
    ended, run, segment = run_once(tmp_path, training(), after=BATCHES + 2)
    assert ended == "preempted"
    assert segment.committed == [(1, 0), (1, 2)]
    assert (run.epoch, run.batch, run.step) == (1, 2, BATCHES + 2)
    assert Checkpoint.open(tmp_path).position == Position(0, 1, 2)


def test_after_the_last_batch_a_stop_waits_for_the_report(tmp_path: Path) -> None:
    ended, run, segment = run_once(tmp_path, training(), after=BATCHES)
    assert ended == "preempted"
    assert segment.committed == [(1, 0)]
    assert len(run.history) == 1


def test_after_the_last_epoch_a_stop_comes_too_late(tmp_path: Path) -> None:
    ended, _, segment = run_once(tmp_path, training(), after=EPOCHS * BATCHES)
    assert ended == "complete"
    assert segment.committed[-1] == (EPOCHS, 0)


def test_checkpoints_inside_an_epoch_come_when_they_are_due_and_never_after_its_last_batch(tmp_path: Path) -> None:
    _, _, segment = run_once(tmp_path, training(), checkpoint_every_s=0.0)
    inside = [(epoch, batch) for epoch in range(EPOCHS) for batch in range(1, BATCHES)]
    assert segment.committed == sorted([*inside, *((epoch + 1, 0) for epoch in range(EPOCHS))])
    _, _, segment = run_once(tmp_path / "other", training(), checkpoint_every_s=1e9)
    assert segment.committed == [(epoch + 1, 0) for epoch in range(EPOCHS)]


def test_the_first_remaining_batch_is_not_the_first_of_the_epoch(tmp_path: Path) -> None:
    handed: list[tuple[int, int, int]] = []

    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            for _ in run.batches(points()):
                handed.append((run.epoch, run.batch, run.step))  # noqa: PERF401  they change in between
            run.report(loss=0.0)

    run_in_parts(tmp_path, train, after=3)
    assert handed == [(e, b, e * BATCHES + b) for e in range(EPOCHS) for b in range(BATCHES)]


def test_an_exception_handler_of_the_user_does_not_catch_a_stop(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            try:
                for _ in run.batches(points()):
                    pass
            except Exception:  # noqa: BLE001  as users write it
                raise AssertionError("caught") from None
            run.report(loss=0.0)

    ended, _, _ = run_once(tmp_path, train, after=2)
    assert ended == "preempted"


def test_before_its_batches_an_epoch_has_the_random_state_it_had_and_then_that_of_the_position(tmp_path: Path) -> None:
    said: list[Any] = []

    def train(config: Config, run: Run) -> None:
        model, own = nn.Linear(1, 1), torch.Generator().manual_seed(4)
        run.track(model=model, own=own)
        for epoch in run.epochs():
            draws = (torch.rand(()).item(), random.random(), np.random.rand(), torch.rand((), generator=own).item())
            with torch.no_grad():
                model.weight.fill_(-1.0)  # a change that the position's state must undo
            for _ in run.batches(points()):
                said.append((epoch, run.batch, draws, model.weight.item(), torch.rand(()).item(), random.random()))
                with torch.no_grad():
                    model.weight += torch.rand((), generator=own)
            run.report(loss=0.0)

    run_once(tmp_path / "whole", train)
    whole, said = said, []
    run_in_parts(tmp_path / "parts", train, after=2)
    assert said == whole


def test_averages_survive_a_stop_inside_the_epoch(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            run.mean(before=1.0)
            for _ in run.batches(points()):
                run.mean(number=run.step, before=3.0)
            run.report(loss=0.0)

    found = assert_same_end(tmp_path, train, after=3)
    expected = [e * BATCHES + (BATCHES - 1) / 2 for e in range(EPOCHS)]
    assert [epoch["number"] for epoch in found] == expected
    assert found[0]["before"] == (1 + 3 * BATCHES) / (1 + BATCHES)


def test_code_after_the_loop_runs_only_when_training_is_done(tmp_path: Path) -> None:
    after: list[int] = []

    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            for _ in run.batches(points()):
                pass
            run.report(loss=0.0)
        after.append(run.epoch)

    run_in_parts(tmp_path, train, after=BATCHES)
    assert after == [EPOCHS]


def test_what_the_body_does_after_its_report_is_in_the_checkpoint(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        model = nn.Linear(1, 1)
        run.track(model=model)
        for epoch in run.epochs():
            run.report(loss=1.0)
            with torch.no_grad():
                model.weight.fill_(float(epoch))

    run_once(tmp_path, train)
    for epoch in range(EPOCHS):
        tensors = Checkpoint.open(tmp_path, Position(0, epoch + 1, 0)).tensors("model.weight")
        assert tensors["model.weight"].item() == epoch


@pytest.mark.parametrize("leave", ["return", "break"])
def test_an_epoch_that_was_reported_counts_although_the_loop_was_left(tmp_path: Path, leave: str) -> None:
    def train(config: Config, run: Run) -> None:
        model = nn.Linear(1, 1)
        run.track(model=model)
        for epoch in run.epochs():
            for _ in run.batches(points()):
                pass
            run.report(loss=float(epoch))
            if epoch == 1:
                if leave == "return":
                    return
                break

    ended, run, segment = run_once(tmp_path, train)
    assert ended == "complete"
    assert segment.committed == [(1, 0), (2, 0)]
    assert [report.epoch for report in run.history] == [1, 2]


def test_an_epoch_whose_batches_were_left_early_goes_on_to_its_report(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            for x, _ in run.batches(points()):
                run.mean(x=x.mean().item())
                if run.batch == 2:
                    break
            run.report(loss=torch.rand(()).item())

    assert_same_end(tmp_path, train, after=2)


def test_a_complete_training_started_again_trains_nothing(tmp_path: Path) -> None:
    run_once(tmp_path, training())
    ended, run, segment = run_once(tmp_path, training())
    assert ended == "complete"
    assert segment.committed == []
    assert len(run.history) == EPOCHS


def test_a_longer_training_continues_a_finished_one(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        run.track(model=model, optimizer=optimizer)
        for _ in run.epochs():
            for x, y in run.batches(points()):
                loss = mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.mean(loss=loss.item())
            run.report()

    run_once(tmp_path / "parts", train, max_epochs=3)
    _, longer, _ = run_once(tmp_path / "parts", train, max_epochs=5)
    _, whole, _ = run_once(tmp_path / "whole", train, max_epochs=5)
    assert_same(metrics(longer), metrics(whole))
    assert_same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))


def test_more_epochs_may_begin_inside_an_epoch_and_the_schedule_is_what_was_said(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = CosineAnnealingLR(optimizer, T_max=run.max_epochs)
        run.track(model=model, optimizer=optimizer, scheduler=scheduler)
        for _ in run.epochs():
            for _ in run.batches(points()):
                optimizer.step()
                rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
            run.report(loss=0.0)

    def trained(folder: str, **options: Any) -> list[float]:
        rates.clear()
        run_once(tmp_path / folder, train, **options)
        return list(rates)

    rates: list[float] = []
    whole = trained("whole", max_epochs=6)
    inside = BATCHES + 2
    first = trained("stretch", max_epochs=3, after=inside)
    assert trained("constant", max_epochs=3, after=inside) == first
    assert trained("stretch", max_epochs=6, after=2, schedule="stretch") == whole[inside : inside + 2]
    assert trained("stretch", max_epochs=6) == whole[inside + 2 :]
    assert trained("constant", max_epochs=6, after=2, schedule="constant") == first[-1:] * 2
    assert trained("constant", max_epochs=6) == first[-1:] * (len(whole) - inside - 2)


def losing(*losses: float) -> Callable[[Config, Run], None]:
    """A training that has these losses, one an epoch, and says when its loop has ended."""

    def train(config: Config, run: Run) -> None:
        model = net()
        run.track(model=model)
        for epoch in run.epochs():
            for _ in run.batches(points()):
                pass
            run.report(loss=losses[epoch])
        ended.append(run.epoch)

    ended: list[int] = []
    train.ended = ended  # type: ignore[attr-defined]
    return train


def test_without_progress_a_training_is_complete_early_wherever_it_was_interrupted(tmp_path: Path) -> None:
    train = losing(0.5, 0.4, 0.4, 0.6, 0.1)
    found = assert_same_end(tmp_path, train, 3, patience=2, max_epochs=5)
    assert [one["loss"] for one in found] == [0.5, 0.4, 0.4, 0.6]
    assert set(train.ended) == {4}  # type: ignore[attr-defined]
    assert last_state(tmp_path / "whole")["loop"]["stops_early"]


def test_a_rung_does_not_pause_what_has_ended_early(tmp_path: Path) -> None:
    segment = StoppingSegment(tmp_path)
    segment.after_epoch = lambda report: "paused" if report.epoch == 2 else None  # type: ignore[method-assign]
    asked = {"segment": segment, "seed": 3, "stage": 0, "max_epochs": 5, "data": {}, "origin": {}, "resumed": None}
    train = losing(0.5, 0.6, 0.7, 0.8, 0.9)
    run = Run(experiment=experiment(train, patience=1, max_epochs=5), **asked)  # type: ignore[arg-type]
    train(Config(), run)
    run.finish()
    assert len(run.history) == 2


def test_one_that_had_ended_early_and_is_given_more_has_its_patience_anew(tmp_path: Path) -> None:
    train = losing(0.5, 0.6, 0.7, 0.8, 0.3, 0.9, 0.9, 0.9, 0.9)
    _, run, _ = run_once(tmp_path, train, patience=2, max_epochs=5)
    assert len(run.history) == 3
    _, run, _ = run_once(tmp_path, train, patience=2, max_epochs=8)
    assert len(run.history) == 7
    _, run, _ = run_once(tmp_path, train, patience=2, max_epochs=8)
    assert len(run.history) == 7


def test_an_epoch_that_breaks_a_constraint_is_best_only_among_such(tmp_path: Path) -> None:
    losses, over = (0.9, 0.1, 0.5, 0.2), (1.0, -1.0, 0.0, 2.0)

    def train(config: Config, run: Run) -> None:
        run.track(model=net())
        for epoch in run.epochs():
            run.report(loss=losses[epoch], accuracy=0.5, over=over[epoch])
            best = run._course.best
            bests.append(best.epoch if best is not None else 0)

    bests: list[int] = []
    several = {"monitor": ("loss", "accuracy"), "direction": ("minimize", "maximize"), "constraints": ("over",)}
    _, run, _ = run_once(tmp_path, train, max_epochs=4, **several)
    assert bests == [0, 1, 2, 2]
    assert run.finish().epoch == 2


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"loss": 1.0, "over": 0.0}, r"lacks the monitored metric; add accuracy=\.\.\."),
        ({"loss": 1.0, "accuracy": 1.0}, r"lacks the constraint; add over=\.\.\."),
        ({"loss": 1.0, "accuracy": math.inf, "over": 0.0}, "accuracy is inf after epoch 1"),
        ({"loss": 1.0, "accuracy": 1.0, "over": math.nan}, "over, a constraint, is nan after epoch 1"),
    ],
)
def test_every_objective_and_constraint_is_reported_as_a_number(
    tmp_path: Path, report: dict[str, float], words: str
) -> None:
    def train(config: Config, run: Run) -> None:
        run.track(model=net())
        for _ in run.epochs():
            run.report(**report)

    several = {"monitor": ("loss", "accuracy"), "direction": ("minimize", "maximize"), "constraints": ("over",)}
    with pytest.raises(ThawError, match=words):
        run_once(tmp_path, train, **several)


def reporting(*reports: Callable[[Run], object]) -> Callable[[Config, Run], None]:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            for report in reports:
                report(run)

    return train


def test_an_epoch_without_a_report_is_an_error_that_names_the_line_to_add(tmp_path: Path) -> None:
    train = reporting()
    line = train.__code__.co_firstlineno + 1
    with pytest.raises(UsageError) as caught:
        run_once(tmp_path, train)
    text = str(caught.value)
    assert "epoch 0 ended without a report; add `run.report(loss=...)`" in text
    assert f"{__file__}, line {line}" in text


def test_a_second_report_in_an_epoch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.report was called twice in epoch 0; give all metrics in one call"):
        run_once(tmp_path, reporting(lambda run: run.report(loss=1.0), lambda run: run.report(loss=1.0)))


def test_a_report_without_the_monitored_metric_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run.report\(accuracy=...\) lacks the monitored metric; add loss=..."):
        run_once(tmp_path, reporting(lambda run: run.report(accuracy=1.0)))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0.5", "str"),
        (None, "NoneType"),
        (torch.ones(2), "Tensor"),
        (torch.ones((), dtype=torch.complex64), "Tensor"),
        (np.ones(2), "ndarray"),
        (np.array("0.5"), "ndarray"),
        ({}, "dict"),
        (1j, "complex"),
    ],
    ids=str,
)
def test_a_metric_that_is_no_number_is_named_with_its_type(tmp_path: Path, value: object, found: str) -> None:
    with pytest.raises(UsageError, match=rf"run.report\(loss=...\): expected a number, found {found}"):
        run_once(tmp_path, reporting(lambda run: run.report(loss=value)))


@pytest.mark.parametrize(
    "value",
    [1, 1.0, True, np.float32(1), np.int64(1), np.array(1.0), torch.tensor(1), torch.ones(1, requires_grad=True)],
    ids=repr,
)
def test_a_metric_may_be_any_one_number(tmp_path: Path, value: object) -> None:
    _, run, _ = run_once(tmp_path, reporting(lambda run: run.report(loss=value)))
    assert metrics(run) == [{"loss": 1.0}] * EPOCHS


def test_an_average_that_is_no_number_is_named_with_its_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run.mean\(train_loss=...\): expected a number, found Tensor"):
        run_once(tmp_path, reporting(lambda run: run.mean(train_loss=torch.ones(3))))


def test_batches_twice_in_an_epoch_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            list(run.batches(points()))
            list(run.batches(points()))

    with pytest.raises(UsageError, match="called twice in one epoch; iterate over validation data with its loader"):
        run_once(tmp_path, train)


def test_a_training_without_any_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without one run\.report"):
        run_once(tmp_path, lambda config, run: None)


def test_an_object_that_is_no_longer_tracked_is_named(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        if run.epoch == 0:
            run.track(model=nn.Linear(1, 1), teacher=nn.Linear(1, 1))
        else:
            run.track(model=nn.Linear(1, 1))
        for _ in run.epochs():
            for _ in run.batches(points()):
                pass
            run.report(loss=1.0)

    run_once(tmp_path, train, after=BATCHES)
    with pytest.raises(MismatchError, match=r"the checkpoint holds teacher, which run\.track was not given"):
        run_once(tmp_path, train)


def test_one_name_for_two_objects_is_an_error(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        run.track(model=nn.Linear(1, 1))
        run.track(model=nn.Linear(1, 1))

    with pytest.raises(UsageError, match=r"run.track\(model=...\): this name is tracked already"):
        run_once(tmp_path, train)


def test_a_stop_inside_an_epoch_that_no_longer_asks_for_batches_is_an_error(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            if run.batch == 0:
                for _ in run.batches(points()):
                    pass
            run.report(loss=1.0)

    run_once(tmp_path, train, after=2)
    with pytest.raises(UsageError, match=r"inside epoch 0, which ran without run\.batches; the loop was changed"):
        run_once(tmp_path, train)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_monitored_value_that_is_not_finite_ends_the_training_as_diverged(tmp_path: Path, value: float) -> None:
    values = iter([0.5, value])
    with pytest.raises(DivergedError, match=f"loss is {value} after epoch 2"):
        run_once(tmp_path, reporting(lambda run: run.report(loss=next(values))))
    assert Checkpoint.open(tmp_path).position == Position(0, 1, 0)


def test_another_metric_may_be_anything(tmp_path: Path) -> None:
    _, run, _ = run_once(tmp_path, reporting(lambda run: run.report(loss=1.0, ratio=float("nan"))))
    assert np.isnan(metrics(run)[0]["ratio"])


@pytest.mark.parametrize(("direction", "best"), [("minimize", 2), ("maximize", 3)])
def test_the_best_epoch_is_the_first_with_the_best_value_across_stops(
    tmp_path: Path, direction: str, best: int
) -> None:
    values = [2.0, 1.0, 3.0, 1.0, 3.0]

    def train(config: Config, run: Run) -> None:
        for epoch in run.epochs():
            for _ in run.batches(points()):
                pass
            run.report(loss=values[epoch])

    run = run_in_parts(tmp_path, train, after=BATCHES, direction=direction, max_epochs=5)
    assert [report.metrics["loss"] for report in run.history] == values
    found = run.finish()
    assert (found.epoch, found.value) == (best, values[best - 1])
    checkpoint = Checkpoint.open(tmp_path, "best")
    assert checkpoint.position == Position(0, best, 0)
    assert list(checkpoint.history["loss"]) == values[:best]
    times = [report.time_ms for report in run.history]
    assert times == sorted(times)


def test_the_seconds_of_an_epoch_are_those_of_all_its_pieces_each_counted_once(tmp_path: Path) -> None:
    stretches: dict[int, float] = {}  # each from the first line of the loop's body to its last, or to the stop

    def train(config: Config, run: Run) -> None:
        for epoch in run.epochs():
            before = stretches.get(epoch, 0.0)
            began_s = time.monotonic()
            for _ in run.batches(points()):
                stretches[epoch] = before + time.monotonic() - began_s
            run.report(loss=0.0)

    began_s = time.monotonic()
    run = run_in_parts(tmp_path, train, after=2)
    took_s = time.monotonic() - began_s
    seconds = [report.seconds for report in run.history]
    assert all(found >= stretches[epoch] for epoch, found in enumerate(seconds))
    assert sum(seconds) <= took_s
    assert Checkpoint.open(tmp_path).manifest.history == run.history


def test_run_local_needs_nothing_but_a_folder_and_continues_there(tmp_path: Path) -> None:
    declared = experiment(training())
    run = Run.local(tmp_path, declared, max_epochs=2)
    declared.train(Config(), run)
    assert run.epoch == 2
    again = Run.local(tmp_path, declared, max_epochs=3)
    declared.train(Config(), again)
    assert [report.epoch for report in again.history] == [1, 2, 3]
    assert [report.metrics for report in again.history[:2]] == [report.metrics for report in run.history]


def test_run_local_prepares_the_data_with_the_defaults(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Data:
        rows: int = 3

    declared = experiment(training(), data=Data, prepare=lambda data: {"train": list(range(data.rows))})
    assert Run.local(tmp_path, declared).data == {"train": [0, 1, 2]}
    assert Run.local(tmp_path, declared, data={"train": []}).data == {"train": []}


def test_the_seed_decides_every_draw_of_a_training(tmp_path: Path) -> None:
    def curve(seed: int, folder: str) -> list[dict[str, float]]:
        declared = experiment(training())
        run = Run.local(tmp_path / folder, declared, seed=seed)
        declared.train(Config(), run)
        return metrics(run)

    assert curve(1, "a") == curve(1, "b")
    assert curve(2, "c") != curve(1, "d")


class Hooked:
    """Its state holds a function, which no checkpoint can keep."""

    def state_dict(self) -> dict[str, Any]:
        return {"groups": [{"hook": lambda: None}]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise AssertionError(state)


def test_what_no_checkpoint_can_hold_is_an_error_at_track_that_names_its_path(tmp_path: Path) -> None:
    run = Run.local(tmp_path, experiment(lambda config, run: None))
    with pytest.raises(EncodeError, match=r"meter\.groups\.0\.hook"):
        run.track(meter=Hooked())


def test_a_report_before_the_batches_is_an_error(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            run.report(loss=1.0)
            list(run.batches([1, 2]))

    with pytest.raises(UsageError, match=r"run\.batches comes before run\.report"):
        run_once(tmp_path, train)


def test_a_loop_left_early_is_not_entered_again_after_a_kill(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        for _ in run.epochs():
            run.report(loss=1.0)
            break

    declared, segment = experiment(train), LocalSegment(tmp_path)
    options = {"seed": 3, "max_epochs": EPOCHS, "threads": 1, "data": {}, "origin": {}, "checkpoint_every_s": 60.0}
    assert training_stage(declared, Config(), segment=segment, **options) == "complete"
    # The kill came between the last checkpoint and the study's knowing.
    assert training_stage(declared, Config(), segment=LocalSegment(tmp_path), **options) == "complete"
    assert Checkpoint.open(tmp_path).position == Position(0, 1, 0)


def test_a_stop_that_the_loop_has_caught_is_still_a_stop(tmp_path: Path) -> None:
    class Asking(LocalSegment):
        def asked_to_stop(self) -> str | None:
            return "preempted"

    def train(config: Config, run: Run) -> None:
        try:
            for _ in run.epochs():
                run.report(loss=1.0)
        except BaseException:  # noqa: BLE001
            pass

    options = {"seed": 3, "max_epochs": EPOCHS, "threads": 1, "data": {}, "origin": {}, "checkpoint_every_s": 60.0}
    assert training_stage(experiment(train), Config(), segment=Asking(tmp_path), **options) == "preempted"


def test_an_epoch_without_batches_keeps_what_the_loader_had_come_to(tmp_path: Path) -> None:
    def train(config: Config, run: Run) -> None:
        own = torch.Generator().manual_seed(1)
        loader = DataLoader(TensorDataset(torch.arange(20.0)), batch_size=4, shuffle=True, generator=own)
        model = nn.Linear(1, 1)
        run.track(model=model)
        for epoch in run.epochs():
            total = torch.zeros(())
            if epoch != 1:
                for number, (x,) in enumerate(run.batches(loader)):
                    total += number * x.sum()
            run.report(loss=float(total))

    whole = Run.local(tmp_path / "whole", experiment(train))
    train(Config(), whole)
    half = Run.local(tmp_path / "parts", experiment(train), max_epochs=2)
    train(Config(), half)
    rest = Run.local(tmp_path / "parts", experiment(train))
    train(Config(), rest)
    assert [one.metrics for one in whole.history] == [one.metrics for one in rest.history]


class Behind(LocalSegment):
    """Keeps the newest snapshot as it is, still being copied where it may be."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.newest: Snapshot | None = None

    def commit(self, snapshot: Snapshot) -> None:
        if self.newest is not None:
            self.newest.taken.release()
        self.newest = snapshot

    def moved(self, position: Position, means: Mapping[str, Sequence[float]]) -> None:
        pass

    def asked_to_stop(self) -> str | None:
        return None


@pytest.mark.parametrize("leaves", ["at_the_end", "by_break", "by_a_stop"])
def test_weights_that_change_after_the_loop_do_not_change_what_it_ended_with(tmp_path: Path, leaves: str) -> None:
    model = torch.nn.Linear(300, 300)
    ended: list[torch.Tensor] = []

    def train(config: Config, run: Run) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run.track(model=model, optimizer=optimizer)
        try:
            for epoch in run.epochs():
                if leaves == "by_break" and epoch == EPOCHS - 1:
                    break
                model(torch.rand(4, 300)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                run.report(loss=1.0 / (1 + epoch))
                ended.append(model.weight.detach().clone())
        finally:
            with torch.no_grad():
                model.weight.zero_()

    segment = Behind(tmp_path)
    if leaves == "by_a_stop":
        segment.after_epoch = lambda report: "paused" if report.epoch == EPOCHS - 1 else None  # type: ignore[method-assign]
    run = Run(
        segment=segment,
        experiment=experiment(train),
        seed=3,
        stage=0,
        max_epochs=EPOCHS,
        data={},
        origin={},
        resumed=None,
    )
    with contextlib.suppress(Stopped):
        train(Config(), run)
    run.close()
    assert segment.newest is not None
    segment.newest.taken.wait()
    assert torch.equal(segment.newest.state["model"]["weight"], ended[-1])


def test_run_local_shows_a_bar_to_who_is_looking_and_nothing_to_others(tmp_path: Path, capsys, monkeypatch) -> None:
    declared = experiment(training())
    declared.train(Config(), Run.local(tmp_path, declared, max_epochs=1))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("pipeline.local.is_watched", lambda: True)
    declared.train(Config(), Run.local(tmp_path, declared, max_epochs=3))
    last = capsys.readouterr().err.split("\r")[-1]
    assert "3/3" in last
    assert "loss " in last
