"""The experiment of the interruption tests: everything in it that draws at random, and a voice.

It says what it does, line by line, into the pipe that the environment names, and waits where the test wants it
to: so a test interrupts it where it means to, and not where a clock happens to point.
"""

import os
import random
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset
from voice import say

from pipeline import Experiment, Run

IMAGES = 320


@dataclass(frozen=True, kw_only=True)
class Config:
    """Attributes:
    loader_workers: processes that load batches.
    persistent: whether they live as long as the loader.
    accumulate: batches a step of the optimizer.
    validation_workers: processes that load the validation batches.
    """

    loader_workers: int = 2
    persistent: bool = False
    accumulate: int = 1
    validation_workers: int = 0


class Digits(Dataset):
    """Digits, each one shifted, flipped and noisy by a draw from every source of chance."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images[:IMAGES], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        self.labels = torch.tensor(labels[:IMAGES])

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index] + 0.1 * torch.randn(1, 8, 8)
        if random.random() < 0.5:
            image = image.flip(-1)
        return image.roll(int(np.random.randint(-1, 2)), dims=-1), self.labels[index]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * 4 * 4, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def train(config: Config, run: Run) -> None:
    say(f"start {os.getpid()}")
    data = Digits()
    workers = config.loader_workers
    loader = DataLoader(
        data,
        batch_size=16,
        shuffle=True,
        num_workers=workers,
        persistent_workers=config.persistent and workers > 0,
    )
    validation = DataLoader(data, batch_size=64, num_workers=config.validation_workers)
    model = Net().to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = CosineAnnealingLR(optimizer, T_max=run.max_epochs)

    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs():
        model.train()
        first_noise = torch.rand(()).item()  # a draw before the batches
        for images, labels in run.batches(loader):
            say(f"{epoch} {run.batch}")
            loss = cross_entropy(model(images.to(run.device)), labels.to(run.device)) / config.accumulate
            loss.backward()
            if (run.batch + 1) % config.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
            run.mean(train_loss=loss.item(), pixel=images.mean().item())
        scheduler.step()
        say(f"{epoch} validation")
        model.eval()
        losses = []
        with torch.no_grad():
            for images, labels in validation:
                losses.append(cross_entropy(model(images.to(run.device)), labels.to(run.device)).item())
                say(f"{epoch} validation {len(losses)}")
        run.report(val_loss=sum(losses) / len(losses), first_noise=first_noise)
        say(f"{epoch} reported")


experiment = Experiment(config=Config, train=train, monitor="val_loss", direction="minimize", max_epochs=4)
