"""A training that several processes share: each drops units of its own, and rank 0 says where it stands."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from voice import say

from pipeline import Experiment, Run

BATCHES = 6


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied.

    Attributes:
        lr: learning rate.
        poison: the rank that fails in its third epoch; none by default.
    """

    lr: float = 1e-2
    poison: int = -1


def train(config: Config, run: Run) -> None:
    x = torch.rand(16 * BATCHES, 4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=16, shuffle=True)
    model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1)).to(run.device)
    if run.world_size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)

    run.track(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        if epoch == 2 and config.poison == run.rank:
            raise ValueError("poisoned")
        for batch, (inputs, targets) in enumerate(run.batches(loader), start=run.batch):
            loss = mse_loss(model(inputs.to(run.device)), targets.to(run.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.mean(loss=loss.item())
            if run.is_main:
                say(f"{epoch} {batch}")
        run.report(drawn=torch.rand(()).item())


experiment = Experiment(config=Config, train=train, monitor="loss", direction="minimize", max_epochs=4)
