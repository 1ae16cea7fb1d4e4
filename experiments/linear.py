"""The smallest experiment: one weight and one bias learn y = 2x; the sweep looks for the learning rate."""

from dataclasses import dataclass

import optuna
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied.

    Attributes:
        lr: learning rate of SGD.
    """

    lr: float = 0.2


def suggest(trial: optuna.Trial) -> Config:
    return Config(lr=trial.suggest_float("lr", 1e-3, 0.5, log=True))


def train(config: Config, run: Run) -> None:
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=16, shuffle=True)
    model = nn.Linear(1, 1).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)

    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for inputs, targets in run.batches(loader):
            loss = mse_loss(model(inputs.to(run.device)), targets.to(run.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.mean(train_loss=loss.item())
        run.report()  # the averages are in it: train_loss


experiment = Experiment(
    config=Config, suggest=suggest, train=train, monitor="train_loss", direction="minimize", max_epochs=5
)
