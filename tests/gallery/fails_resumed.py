"""Broken: it cannot be begun in its middle."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import mse_loss

from pipeline import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 0.1


def train(config: Config, run: Run) -> None:
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)

    run.track(model=model, optimizer=optimizer)
    if run.epoch > 0:
        raise RuntimeError("a first epoch was expected")
    for _ in run.epochs():
        optimizer.zero_grad()
        loss = mse_loss(model(x), 2 * x)
        loss.backward()
        optimizer.step()
        run.report(train_loss=loss)


experiment = Experiment(config=Config, train=train, monitor="train_loss", direction="minimize", max_epochs=3)
