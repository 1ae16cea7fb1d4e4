"""An experiment: one weight and one bias learn y = 2x; a sweep looks for the learning rate.

    python -m pipeline sweep template.py --configurations 12     # many configurations, the worse ones paused early
    python -m pipeline train template.py --config.lr 0.1         # one
    python -m pipeline prove template.py                         # does this loop resume bit for bit?

Kill any of them at any moment and run the same command again: it goes on where it was.
"""

from dataclasses import dataclass

import optuna
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run


# What is varied. Each field is a flag of `train`, typed and documented from here: --config.lr 0.1
@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied.

    Attributes:
        lr: learning rate of SGD.
    """

    lr: float = 0.2


# How a sweep draws a configuration; `trial` is Optuna's.
def suggest(trial: optuna.Trial) -> Config:
    return Config(lr=trial.suggest_float("lr", 1e-3, 0.5, log=True))


# An ordinary PyTorch loop. It begins anew whenever training is resumed, so construct everything first.
def train(config: Config, run: Run) -> None:
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=16, shuffle=True)
    model = nn.Linear(1, 1).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)

    # Whatever training changes: models, optimizers, schedulers, generators. A plain variable would be lost in a kill.
    run.track(model=model, optimizer=optimizer)  # resumes in place, if there is something to resume
    for _ in run.epochs():  # the epochs that remain
        for inputs, targets in run.batches(loader):  # the batches that remain
            loss = mse_loss(model(inputs.to(run.device)), targets.to(run.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.mean(train_loss=loss.item())  # an average over the epoch that survives a kill
        # Validate here, with a loader of your own: run.report(val_loss=...)
        run.report()  # the epoch's metrics, with the averages: train_loss


# `monitor` is what configurations are compared by, a metric that the loop reports.
experiment = Experiment(
    config=Config, suggest=suggest, train=train, monitor="train_loss", direction="minimize", max_epochs=5
)
