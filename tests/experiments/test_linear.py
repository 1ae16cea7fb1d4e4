"""The smallest experiment."""

import optuna
import pytest

from experiments import linear


def test_suggested_rates_stay_where_the_line_converges():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rates = [linear.suggest(study.ask()).lr for _ in range(20)]
    assert all(1e-3 <= rate <= 0.5 for rate in rates)
    assert len(set(rates)) == 20


def test_training_learns_that_y_is_twice_x(plain_run):
    run = plain_run(linear.experiment)
    linear.train(linear.Config(), run)
    model = run.tracked["model"]
    assert model.weight.item() == pytest.approx(2, abs=0.2)
    assert model.bias.item() == pytest.approx(0, abs=0.1)
    losses = [metrics["train_loss"] for metrics in run.reports]
    assert len(losses) == linear.experiment.max_epochs
    assert losses == sorted(losses, reverse=True)
