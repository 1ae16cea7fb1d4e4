"""Broken: the averaged weights that it validates with are a plain copy, and start anew after a kill."""

import copy
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
    average = copy.deepcopy(model)

    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for inputs, targets in run.batches(loader):
            optimizer.zero_grad()
            mse_loss(model(inputs), targets).backward()
            optimizer.step()
            with torch.no_grad():
                for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(parameter, 0.1)
        with torch.no_grad():
            run.report(val_loss=mse_loss(average(x), 2 * x))


experiment = Experiment(config=Config, train=train, monitor="val_loss", direction="minimize", max_epochs=3)
