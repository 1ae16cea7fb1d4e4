"""Two objectives that are at odds with each other, and a constraint that some configurations break."""

from dataclasses import dataclass

import optuna
from torch import nn

from pipeline import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied: `x` is good for `gain` and bad for `loss`."""

    x: float = 0.5


def suggest(trial: optuna.Trial) -> Config:
    return Config(x=trial.suggest_float("x", 0.0, 1.0))


def train(config: Config, run: Run) -> None:
    run.track(model=nn.Linear(1, 1))
    for epoch in run.epochs():
        # The first epoch has the least loss.
        run.report(loss=config.x + epoch, gain=config.x - epoch, above=config.x - 0.7)


experiment = Experiment(
    config=Config,
    suggest=suggest,
    train=train,
    monitor=("loss", "gain"),
    direction=("minimize", "maximize"),
    constraints=("above",),
    max_epochs=2,
)
