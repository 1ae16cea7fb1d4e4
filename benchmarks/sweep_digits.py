"""The experiment that `benchmarks.sweep` sweeps: `experiments/digits.py` with a log of its epochs."""

from benchmarks.sweep_training import Training
from experiments import digits
from pipeline import Experiment, Run


def train(config: digits.Config, run: Run) -> None:
    training = Training(config, run.data, run.max_epochs)
    run.track(**training.objects)
    for epoch in run.epochs():
        run.report(**training.epoch(epoch, run.batches(training.loader)))


experiment = Experiment(
    config=digits.Config,
    suggest=digits.suggest,
    train=train,
    data=digits.Data,
    prepare=digits.prepare,
    monitor="val_loss",
    direction="minimize",
    max_epochs=27,
)
