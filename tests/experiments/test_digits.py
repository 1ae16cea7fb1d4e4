"""The convolutional net on digits."""

import optuna
import pandas as pd
import pytest
import torch

from experiments import digits


@pytest.fixture(scope="module")
def tables():
    return digits.prepare(digits.Data())


def test_the_split_is_64_16_20_and_keeps_the_share_of_every_digit(tables):
    assert {name: len(table) for name, table in tables.items()} == {
        "train": 1149,
        "validation": 288,
        "test": 360,
    }
    for table in tables.values():
        assert table["target"].value_counts(normalize=True).between(0.09, 0.11).all()


def test_no_image_is_in_two_parts(tables):
    images = digits.load_digits(as_frame=True).frame
    parts = pd.concat(list(tables.values()))
    assert parts.sort_values(list(parts.columns)).to_numpy().tolist() == (
        images.sort_values(list(images.columns)).to_numpy().tolist()
    )


def test_a_table_becomes_64_pixels_and_a_digit_a_row(tables):
    pixels, labels = digits.tensors(tables["train"])
    assert (pixels.shape, pixels.dtype) == ((1149, 64), torch.float32)
    assert (labels.shape, labels.dtype) == ((1149,), torch.int64)
    assert pixels[0].tolist() == tables["train"].iloc[0, :64].tolist()


@pytest.mark.parametrize("channels", [8, 32])
def test_the_net_gives_ten_logits_an_image(channels):
    assert digits.Net(digits.Config(channels=channels))(torch.zeros(3, 64)).shape == (3, 10)


def test_every_suggested_field_is_varied():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [digits.suggest(study.ask()) for _ in range(5)]
    for field in ("lr", "channels", "dropout", "weight_decay"):
        assert len({getattr(config, field) for config in configs}) > 1


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_training_learns_and_the_model_predicts_digits_from_raw_rows(plain_run, tables, loader_workers):
    run = plain_run(digits.experiment, data=tables, max_epochs=2)
    config = digits.Config(channels=8, loader_workers=loader_workers)
    digits.train(config, run)
    assert [sorted(metrics) for metrics in run.reports] == [["train_loss", "val_accuracy", "val_loss"]] * 2
    assert run.reports[-1]["val_accuracy"] > 0.7

    judged = plain_run(digits.experiment, data=tables, best=run.tracked["model"].state_dict())
    metrics = digits.evaluate(config, judged)
    predicted = judged.tracked["model"].predict(tables["test"].drop(columns="target"))
    hits = predicted["digit"] == tables["test"]["target"]
    assert metrics["test_accuracy"] == pytest.approx(hits.mean())
    assert metrics["test_accuracy"] > 0.7
