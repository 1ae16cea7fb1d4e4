"""The study of the tests on a cluster: handwritten digits, six batches an epoch, with the history of quick.py."""

import quick
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from pipeline import Experiment, Run


def train(config: quick.Config, run: Run) -> None:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=300, shuffle=True)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8 * config.width, 3, padding=1), nn.BatchNorm2d(8 * config.width), nn.ReLU()),
        *(nn.Conv2d(8 * config.width, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * 32, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.max_epochs)

    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs():
        for batch, (inputs, targets) in enumerate(run.batches(loader), start=run.batch):
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            run.mean(loss=loss.item())
            quick.note(run, epoch, batch)
        scheduler.step()
        run.report(lr=scheduler.get_last_lr()[0])


experiment = Experiment(
    config=quick.Config, suggest=quick.suggest, train=train, monitor="loss", direction="minimize", max_epochs=9
)
