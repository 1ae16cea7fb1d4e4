"""What every method of `benchmarks.sweep` trains, an epoch at a time, and the log of when it did.

The model, the data and the search space are those of `experiments/digits.py`.
"""

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from experiments import digits
from pipeline.experiment import seed_for

ETA = 3
# The driver tells every process of a method by its environment.
FOLDER, EPOCHS, CONFIGURATIONS, WORKERS = "SWEEP_FOLDER", "SWEEP_EPOCHS", "SWEEP_CONFIGURATIONS", "SWEEP_WORKERS"


def folder() -> Path:
    return Path(os.environ[FOLDER])


def epochs() -> int:
    return int(os.environ[EPOCHS])


def workers() -> int:
    return int(os.environ[WORKERS])


def points() -> list[dict[str, Any]]:
    """The configurations, by number: those that our random sampler draws with the seed 0."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return [_point(number) for number in range(int(os.environ[CONFIGURATIONS]))]


def _point(number: int) -> dict[str, Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed_for(0, number)))
    config = asdict(digits.suggest(study.ask()))
    return {name: config[name] for name in ("lr", "channels", "dropout", "weight_decay")}


class Training:
    """One configuration's model and what trains it, from where it was begun or loaded to where it is left."""

    def __init__(self, config: digits.Config, tables: Mapping[str, pd.DataFrame], max_epochs: int) -> None:
        self.config = config
        self.part = uuid.uuid4().hex
        self.validation = tables["validation"]
        data = TensorDataset(*digits.tensors(tables["train"]))
        self.loader = DataLoader(data, batch_size=config.batch_size, shuffle=True)
        self.model = digits.Net(config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.scheduler = CosineAnnealingLR(self.optimizer, T_max=max_epochs)
        self.objects = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    @classmethod
    def of(cls, point: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> "Training":
        """For the methods that seed nothing themselves."""
        torch.manual_seed(0)
        fields = ("lr", "channels", "dropout", "weight_decay")
        return cls(digits.Config(**{name: point[name] for name in fields}), tables, epochs())

    def epoch(self, number: int, batches: Iterable[Any] | None = None) -> dict[str, float]:
        """Trains one epoch, from 0, and logs it; `batches` are the loader's unless they are given."""
        with self._logged(number) as metrics:
            self.model.train()
            total = 0.0
            for pixels, labels in self.loader if batches is None else batches:
                loss = cross_entropy(self.model(pixels), labels)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                total += loss.item()
            self.scheduler.step()
            val_loss, val_accuracy = digits.measure(self.model, self.validation, torch.device("cpu"))
            metrics |= {"train_loss": total / len(self.loader), "val_loss": val_loss, "val_accuracy": val_accuracy}
        return metrics

    @contextmanager
    def _logged(self, epoch: int) -> Iterator[dict[str, float]]:
        metrics: dict[str, float] = {}
        began_s = time.time()
        yield metrics
        line = {
            "lr": self.config.lr,
            "epoch": epoch,
            "part": self.part,
            "began_s": began_s,
            "ended_s": time.time(),
            "val_loss": metrics["val_loss"],
        }
        file = os.open(folder() / "epochs.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{json.dumps(line)}\n".encode())  # one write: others append at the same time
        os.close(file)

    def state_dict(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, **{name: one.state_dict() for name, one in self.objects.items()}}

    def load(self, file: Path) -> int:
        """Returns the epoch to go on with."""
        state = torch.load(file, weights_only=True)
        for name, one in self.objects.items():
            one.load_state_dict(state[name])
        return int(state["epoch"]) + 1
