"""What a schedule does when training goes on beyond its planned end: each of torch's, under each of the three names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from pipeline import Experiment, Run, UsageError
from pipeline.checkpoint import FolderStore, check_schedule, load
from tests.checkpoint.comparing import assert_same

PLANNED, LONGER = 6, 12
Build = Callable[[Optimizer, int], LRScheduler]

# Those that come to an end, and those that go on by themselves; most are built for the length of the run.
ENDING: dict[str, Build] = {
    "cosine": lambda o, n: CosineAnnealingLR(o, T_max=n),
    "cosine that ends a step early": lambda o, n: CosineAnnealingLR(o, T_max=n - 1),
    "one cycle": lambda o, n: OneCycleLR(o, 1.0, total_steps=n),
    "linear decay": lambda o, n: LinearLR(o, 1.0, 0.1, total_iters=n),
    "polynomial": lambda o, n: PolynomialLR(o, total_iters=n, power=2.0),
    "warm-up, then cosine": lambda o, n: SequentialLR(
        o, [LinearLR(o, 0.1, 1.0, total_iters=2), CosineAnnealingLR(o, T_max=n - 2)], [2]
    ),
    "chained": lambda o, n: ChainedScheduler([ConstantLR(o, 0.5, 2), CosineAnnealingLR(o, T_max=n)]),
}
ENDLESS: dict[str, Build] = {
    "restarts": lambda o, n: CosineAnnealingWarmRestarts(o, T_0=n // 3),
    "short cosine that comes round": lambda o, _: CosineAnnealingLR(o, T_max=2),
    "warm-up": lambda o, _: LinearLR(o, 0.1, 1.0, total_iters=2),
    "exponential": lambda o, _: ExponentialLR(o, 0.9),
    "steps": lambda o, n: StepLR(o, n // 3),
    "milestones": lambda o, n: MultiStepLR(o, [n // 2]),
    "cyclic": lambda o, _: CyclicLR(o, 0.1, 1.0, step_size_up=2),
    "constant factor": lambda o, _: ConstantLR(o, 0.5, 2),
}
FUNCTIONS: dict[str, Build] = {
    "lambda": lambda o, n: LambdaLR(o, lambda epoch: 1 - epoch / n),
    "multiplicative": lambda o, _: MultiplicativeLR(o, lambda _: 0.9),
}
ALL = ENDING | ENDLESS | FUNCTIONS


class Own(LRScheduler):
    """A user's own."""

    def get_lr(self) -> list[float | torch.Tensor]:
        return [0.5 * group["lr"] for group in self.optimizer.param_groups]


class Nothing(LRScheduler):
    """A user's own, at its end."""

    def get_lr(self) -> list[float | torch.Tensor]:
        return [0.0 for _ in self.optimizer.param_groups]


@dataclass(frozen=True)
class Config:
    """Nothing is varied."""


def rates(
    folder: Path, build: Build, epochs: int, schedule: str | None = None, *, stop_after: int | None = None
) -> list[tuple[float, float]]:
    """Learning rate and momentum of each epoch that was trained now."""
    found: list[tuple[float, float]] = []

    def train(_: Config, run: Run) -> None:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
        scheduler = build(optimizer, run.max_epochs)
        run.track(model=model, optimizer=optimizer, scheduler=scheduler)
        for _ in run.epochs():
            if len(found) == stop_after:
                raise KeyboardInterrupt
            (group,) = optimizer.param_groups
            found.append((float(group["lr"]), group["momentum"]))
            optimizer.zero_grad()
            model(torch.ones(1, 2)).mean().backward()
            optimizer.step()
            scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
            run.report(loss=0.0)

    experiment = Experiment(config=Config, train=train, monitor="loss", direction="minimize", max_epochs=epochs)
    run = Run.local(folder, experiment, schedule=schedule)  # type: ignore[arg-type]
    try:
        train(Config(), run)
        run.finish()
    except KeyboardInterrupt:
        pass
    finally:
        run.close()
    return found


def last_state(folder: Path):
    store = FolderStore(folder)
    return load(store, store.names()[-1])[1]


def shown(found: list[tuple[float, float]]) -> list[float]:
    return [round(rate, 3) for rate, _ in found]


def test_a_spent_cosine_is_told_what_to_do_and_does_it(tmp_path):
    """The curves, as one would plot them."""
    for name in ("keep", "stretch", "constant"):
        assert shown(rates(tmp_path / name, ENDING["cosine"], PLANNED)) == [1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    assert shown(rates(tmp_path / "keep", ENDING["cosine"], LONGER, "keep")) == [0.0, 0.067, 0.25, 0.5, 0.75, 0.933]
    stretched = shown(rates(tmp_path / "stretch", ENDING["cosine"], LONGER, "stretch"))
    assert stretched == [0.5, 0.371, 0.25, 0.146, 0.067, 0.017]
    assert shown(rates(tmp_path / "constant", ENDING["cosine"], LONGER, "constant")) == [0.0] * 6


@pytest.mark.parametrize("name", [*ENDING, *FUNCTIONS])
def test_without_a_word_a_schedule_that_ends_is_refused_with_the_rate_it_has_reached(tmp_path, name):
    rates(tmp_path, ALL[name], PLANNED)
    reached = last_state(tmp_path)["scheduler"]["_last_lr"][0]
    with pytest.raises(UsageError) as refusal:
        rates(tmp_path, ALL[name], LONGER)
    assert f"has reached learning rate {reached:.3g} at epoch 6; say what it does until epoch 12" in str(refusal.value)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schedule_without_an_end_goes_on_by_itself_as_kept(tmp_path, name):
    for folder in ("plain", "kept"):
        rates(tmp_path / folder, ENDLESS[name], PLANNED)
    assert rates(tmp_path / "plain", ENDLESS[name], LONGER) == rates(tmp_path / "kept", ENDLESS[name], LONGER, "keep")


@pytest.mark.parametrize("name", ALL)
def test_a_stretched_schedule_is_what_a_longer_plan_has_from_here(tmp_path, name):
    rates(tmp_path / "parts", ALL[name], PLANNED)
    whole = rates(tmp_path / "whole", ALL[name], LONGER)
    # Killed on the way: what goes on from its own checkpoint is not stretched again.
    found = rates(tmp_path / "parts", ALL[name], LONGER, "stretch", stop_after=2)
    found += rates(tmp_path / "parts", ALL[name], LONGER, "stretch")
    assert found == whole[PLANNED:]
    for part in ("scheduler", "loop"):
        assert_same(last_state(tmp_path / "parts")[part], last_state(tmp_path / "whole")[part], part)


@pytest.mark.parametrize("name", ALL)
def test_a_constant_one_stays_where_it_is_and_so_it_does_when_resumed(tmp_path, name):
    rates(tmp_path, ALL[name], PLANNED)
    (group,) = last_state(tmp_path)["optimizer"]["param_groups"]
    found = rates(tmp_path, ALL[name], LONGER, "constant", stop_after=2)
    found += rates(tmp_path, ALL[name], LONGER)  # the same budget: nothing is asked again
    assert found == [(group["lr"], group["momentum"])] * (LONGER - PLANNED)


@pytest.mark.parametrize("name", ["steps of its own", "exponential"])
def test_kept_without_an_end_it_is_bit_for_bit_a_run_that_was_planned_longer(tmp_path, name):
    build = {**ENDLESS, "steps of its own": lambda o, _: StepLR(o, 4)}[name]
    rates(tmp_path / "parts", build, PLANNED)
    rates(tmp_path / "parts", build, LONGER, "keep")
    rates(tmp_path / "whole", build, LONGER)
    assert_same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))


def test_one_cycle_cannot_be_kept_and_an_own_class_cannot_be_stretched(tmp_path):
    rates(tmp_path / "cycle", ENDING["one cycle"], PLANNED)
    with pytest.raises(UsageError, match=r"keep: scheduler \(OneCycleLR\) has no rate beyond its 6 steps"):
        rates(tmp_path / "cycle", ENDING["one cycle"], LONGER, "keep")
    rates(tmp_path / "own", lambda o, _: Own(o), PLANNED)
    with pytest.raises(UsageError, match=r"stretch: scheduler \(Own\) is none of torch's own"):
        rates(tmp_path / "own", lambda o, _: Own(o), LONGER, "stretch")
    assert shown(rates(tmp_path / "own", lambda o, _: Own(o), LONGER, "keep")) == [0.008, 0.004, 0.002, 0.001, 0, 0]


def test_an_own_class_is_known_to_be_spent_by_its_rate_alone(tmp_path):
    rates(tmp_path, lambda o, _: Nothing(o), PLANNED)
    with pytest.raises(UsageError, match=r"scheduler \(Nothing\) has nothing left, and has reached learning rate 0 at"):
        rates(tmp_path, lambda o, _: Nothing(o), LONGER)


def test_schedulers_that_share_an_optimizer_cannot_be_stretched_one_by_one():
    kinds = {"optimizer": "optimizer SGD", "a": "scheduler StepLR", "b": "scheduler ExponentialLR"}
    state = {"kinds": kinds, "a": {"last_epoch": 6}, "b": {"last_epoch": 6}}
    check_schedule(state, epochs=6, max_epochs=12, schedule=None)
    with pytest.raises(UsageError, match="several schedulers share an optimizer"):
        check_schedule(state, epochs=6, max_epochs=12, schedule="stretch")
    with pytest.raises(UsageError, match="constant: the checkpoint holds no scheduler"):
        check_schedule({"kinds": {"model": "module"}}, epochs=6, max_epochs=12, schedule="constant")


def test_reducing_on_a_plateau_has_no_length_to_stretch(tmp_path):
    build: Build = lambda o, _: ReduceLROnPlateau(o, patience=1)  # noqa: E731
    for folder in ("keep", "stretch"):
        rates(tmp_path / folder, build, PLANNED)
    kept = rates(tmp_path / "keep", build, LONGER, "keep")
    assert rates(tmp_path / "stretch", build, LONGER, "stretch") == kept
