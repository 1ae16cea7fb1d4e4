"""Broken: a NumPy generator of its own makes noise in the loop, is not tracked, and starts anew after a kill."""

from dataclasses import dataclass

import numpy as np
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
    noise = np.random.default_rng(run.seed)

    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for inputs, targets in run.batches(loader):
            inputs = inputs + 0.1 * torch.from_numpy(noise.normal(size=inputs.shape)).float()
            loss = mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.mean(train_loss=loss)
        run.report()


experiment = Experiment(config=Config, train=train, monitor="train_loss", direction="minimize", max_epochs=3)
