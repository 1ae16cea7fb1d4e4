"""Broken: the learning rate depends on the time of day."""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 0.1


def train(config: Config, run: Run) -> None:
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=16, shuffle=True)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)

    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for inputs, targets in run.batches(loader):
            loss = mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            (loss * (1 + time.time() % 60 / 60)).backward()
            optimizer.step()
            run.mean(train_loss=loss)
        run.report()


experiment = Experiment(config=Config, train=train, monitor="train_loss", direction="minimize", max_epochs=3)
