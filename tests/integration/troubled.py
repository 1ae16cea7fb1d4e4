"""The experiment of the failure tests: each configuration meets with a trouble of its own, in the second epoch."""

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run

TROUBLES = (
    *("none", "killed once", "killed", "out of memory once", "out of memory"),
    *("hangs once", "hangs", "diverges", "raises", "raises elsewhere"),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    trouble: str = "none"
    lr: float = 0.1


def suggest(trial: optuna.Trial) -> Config:
    trouble = TROUBLES[trial.number]
    return Config(trouble=trouble, lr=1e30 if trouble == "diverges" else trial.suggest_float("lr", 0.01, 0.1))


def train(config: Config, run: Run) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(32, 2, generator=generator)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for inputs, targets in run.batches(loader):
            if run.step == 6:
                if config.trouble == "killed":
                    run._segment._flush()  # a checkpoint that is saved only the next time would count as progress
                meet(config.trouble)
            optimizer.zero_grad()
            loss = mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            run.mean(loss=loss.item())
        run.report()


def meet(trouble: str) -> None:
    """The real thing, each time or only the first."""
    kind = trouble.removesuffix(" once")
    if kind != trouble:
        try:
            Path(f"{kind}.met").touch(exist_ok=False)
        except FileExistsError:
            return
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "out of memory":
        if torch.cuda.is_available():
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        bytearray(2**60)
    if kind == "killed for memory":  # where the test has put a limit, and no further where it is not obeyed
        hoard = []
        while len(hoard) < 3 * 16:
            hoard.append(bytes([len(hoard) + 1]) * 2**26)
    if kind == "hangs":
        threading.Event().wait()
    if kind == "raises":
        raise ValueError("as it does each time")
    if kind == "raises elsewhere":
        elsewhere()


def elsewhere() -> None:
    """Another exception in each process."""
    met = Path("elsewhere.met")
    count = len(met.read_text()) if met.exists() else 0
    met.write_text("x" * (count + 1))
    raise (KeyError, IndexError, OSError)[count % 3]("another one each time")


experiment = Experiment(config=Config, suggest=suggest, train=train, monitor="loss", direction="minimize", max_epochs=3)
