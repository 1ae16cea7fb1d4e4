"""The experiment of the sweep tests: small, drawing at random everywhere, and keeping a history of what it trained.

Each batch adds a line to the file that HISTORY names: configuration's run, trial, epoch, batch.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import mlflow
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
        lr: learning rate.
        width: hidden units.
        poison: fail at this epoch, which is none by default.
        steps: epochs between two steps of a schedule that does not end; 0 is a cosine over the whole run.
    """

    lr: float = 1e-2
    width: int = 8
    poison: int = -1
    steps: int = 0


def suggest(trial: optuna.Trial) -> Config:
    return Config(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True), width=trial.suggest_int("width", 2, 16))


def train(config: Config, run: Run) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(96, 4, generator=generator)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(4, config.width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(config.width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    schedulers = torch.optim.lr_scheduler
    scheduler = (
        schedulers.StepLR(optimizer, config.steps)
        if config.steps
        else schedulers.CosineAnnealingLR(optimizer, T_max=run.max_epochs)
    )

    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs():
        if epoch == config.poison:
            raise ValueError("poisoned")
        for batch, (inputs, targets) in enumerate(run.batches(loader), start=run.batch):
            optimizer.zero_grad()
            loss = mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            run.mean(loss=loss.item())
            note(run, epoch, batch)
        scheduler.step()
        run.report(lr=scheduler.get_last_lr()[0])


def note(run: Run, epoch: int, batch: int) -> None:
    """One line in one write, so that lines of several workers never mix; then a word to the test that waits.

    The trial is the one that this process works on, which may have lost it: its MLflow run names the newest.
    """
    if "HISTORY" not in os.environ:
        return
    active = mlflow.active_run()
    assert active is not None
    for file in (Path(os.environ["HISTORY"]), Path(os.environ["PROGRESS"]) / "progress"):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(opened, f"{active.info.run_id} {run._segment.trial} {epoch} {batch}\n".encode())
        os.close(opened)
    if os.environ["PROGRESS_GATE"] == f"{epoch} {batch}":
        with Path(os.environ["PROGRESS"], "gate").open("rb", buffering=0) as gate:
            gate.read(1)  # is there when the test opens it


def evaluate(config: Config, run: Run) -> dict[str, float]:
    model = nn.Sequential(nn.Linear(4, config.width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(config.width, 1))
    run.track(model=model)
    model.eval()
    x = torch.rand(32, 4, generator=torch.Generator().manual_seed(2))
    return {"test_loss": mse_loss(model(x), x.sum(1, keepdim=True).sin()).item()}


experiment = Experiment(
    config=Config, suggest=suggest, train=train, evaluate=evaluate, monitor="loss", direction="minimize", max_epochs=9
)
