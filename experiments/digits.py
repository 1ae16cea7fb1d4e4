"""A small convolutional net on scikit-learn's digits: 8 by 8 pixels, ten classes."""

from collections.abc import Mapping
from dataclasses import dataclass

import optuna
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied, and what may be set by hand.

    Attributes:
        lr: learning rate of AdamW at the start of its cosine schedule.
        channels: channels of the first convolution; the second has twice as many.
        dropout: share of the features that are dropped before the last layer.
        weight_decay: AdamW's weight decay.
        batch_size: images a step.
        loader_workers: processes that load batches; 0 loads in the training process.
    """

    lr: float = 3e-3
    channels: int = 16
    dropout: float = 0.2
    weight_decay: float = 1e-2
    batch_size: int = 64
    loader_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """How the images are split.

    Attributes:
        test_fraction: share of the images that training never sees.
        validation_fraction: share of the rest by which epochs and configurations are compared.
        seed: decides which image goes where.
    """

    test_fraction: float = 0.2
    validation_fraction: float = 0.2
    seed: int = 0


def suggest(trial: optuna.Trial) -> Config:
    return Config(
        lr=trial.suggest_float("lr", 1e-4, 3e-2, log=True),
        channels=trial.suggest_int("channels", 8, 32, log=True),
        dropout=trial.suggest_float("dropout", 0.0, 0.6),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
    )


def prepare(data: Data) -> Mapping[str, pd.DataFrame]:
    """Tables of 64 pixel columns, 0 to 16 as they were measured, and the digit as the last column."""
    images = load_digits(as_frame=True).frame
    rest, test = split(images, data.test_fraction, data.seed)
    training, validation = split(rest, data.validation_fraction, data.seed)
    return {"train": training, "validation": validation, "test": test}


def split(table: pd.DataFrame, fraction: float, seed: int) -> list[pd.DataFrame]:
    parts = train_test_split(table, test_size=fraction, random_state=seed, stratify=table["target"])
    return [part.reset_index(drop=True) for part in parts]


class Net(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, config.channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.channels, 2 * config.channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * config.channels * 4 * 4, 10),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 64) pixels, 0 to 16 -> (batch, 10) logits."""
        return self.layers(pixels.reshape(-1, 1, 8, 8) / 16)

    @torch.no_grad()
    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """The digit on each row of 64 pixels: what the registered model serves."""
        device = next(self.parameters()).device
        pixels = torch.tensor(table.to_numpy(dtype="float32"), device=device)
        return pd.DataFrame({"digit": self.eval()(pixels).argmax(dim=1).cpu().numpy()}, index=table.index)


def tensors(table: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """(rows, 64) pixels as float32 and (rows,) digits as int64."""
    pixels = table.drop(columns="target").to_numpy(dtype="float32")
    return torch.tensor(pixels), torch.tensor(table["target"].to_numpy(dtype="int64"))


@torch.no_grad()
def measure(model: Net, table: pd.DataFrame, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    pixels, digits = (tensor.to(device) for tensor in tensors(table))
    logits = model.eval()(pixels)
    return cross_entropy(logits, digits).item(), (logits.argmax(dim=1) == digits).float().mean().item()


def train(config: Config, run: Run) -> None:
    validation = run.data["validation"]
    loader = DataLoader(
        TensorDataset(*tensors(run.data["train"])),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=config.loader_workers,
    )
    model = Net(config).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scheduler = CosineAnnealingLR(optimizer, T_max=run.max_epochs)

    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for _ in run.epochs():
        model.train()
        for pixels, digits in run.batches(loader):
            loss = cross_entropy(model(pixels.to(run.device)), digits.to(run.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.mean(train_loss=loss.item())
        scheduler.step()
        val_loss, val_accuracy = measure(model, validation, run.device)
        run.report(val_loss=val_loss, val_accuracy=val_accuracy)


def evaluate(config: Config, run: Run) -> Mapping[str, float]:
    model = Net(config).to(run.device)
    run.track(model=model)
    test = run.data["test"]
    answers = model.predict(test.drop(columns="target"))  # asked as the registered model will be
    return {
        "test_loss": measure(model, test, run.device)[0],
        "test_accuracy": float((answers["digit"] == test["target"]).mean()),
    }


experiment = Experiment(
    config=Config,
    suggest=suggest,
    train=train,
    data=Data,
    prepare=prepare,
    evaluate=evaluate,
    monitor="val_loss",
    direction="minimize",
    max_epochs=27,
)
