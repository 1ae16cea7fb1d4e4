"""Good: two stages, the second from the first one's weights, with loader workers, noise and a scheduler."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run, Stage


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 0.1
    loader_workers: int = 2


def data(config: Config) -> DataLoader:
    x = torch.linspace(-1, 1, 48).unsqueeze(1)
    return DataLoader(TensorDataset(x, 2 * x), batch_size=16, shuffle=True, num_workers=config.loader_workers)


def pretrain(config: Config, run: Run) -> None:
    learn(config, run, nn.Linear(1, 1))


def finetune(config: Config, run: Run) -> None:
    model = nn.Linear(1, 1)
    run.previous.load_into(model=model)
    learn(config, run, model)


def learn(config: Config, run: Run, model: nn.Module) -> None:
    loader = data(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    scheduler = CosineAnnealingLR(optimizer, T_max=run.max_epochs)
    noise = np.random.default_rng(run.seed)

    run.track(model=model, optimizer=optimizer, scheduler=scheduler, noise=noise)
    for _ in run.epochs():
        for inputs, targets in run.batches(loader):
            inputs = inputs + 0.1 * float(noise.normal()) + 0.1 * torch.randn(inputs.shape)
            loss = mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.mean(train_loss=loss)
        scheduler.step()
        run.report()


experiment = Experiment(
    config=Config,
    train=(Stage("pretrain", pretrain, max_epochs=2), Stage("finetune", finetune, max_epochs=2)),
    monitor="train_loss",
    direction="minimize",
)
