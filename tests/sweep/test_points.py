"""Points that are given instead of drawn."""

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.errors import UsageError
from pipeline.experiment import ExperimentFile
from pipeline.sweep.points import LARGEST_GRID, enqueued, grid


def file_of(suggest, tmp_path) -> ExperimentFile:
    return cast(
        ExperimentFile, SimpleNamespace(experiment=SimpleNamespace(suggest=suggest), path=tmp_path / "experiment.py")
    )


def suggest(trial: Any) -> None:
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_int("width", 8, 64, step=8)
    if trial.suggest_categorical("optimizer", ["sgd", "adam", None]) == "sgd":
        trial.suggest_float("momentum", 0.0, 0.9, step=0.3)
    trial.suggest_categorical("batch", [16, 2.5, True])


@pytest.fixture
def file(tmp_path):
    return file_of(suggest, tmp_path)


def test_a_point_is_read_as_suggest_returns_it_and_may_leave_the_rest_to_the_sampler(file):
    texts = ["lr=1e-2,width=64", " optimizer = None , batch=2.50", "optimizer=sgd,momentum=0.6,batch=true,width=8.0"]
    points = enqueued(file, texts, None)
    assert points == [
        {"lr": 0.01, "width": 64},
        {"optimizer": None, "batch": 2.5},
        {"optimizer": "sgd", "momentum": 0.6, "batch": True, "width": 8},
    ]
    assert [type(value) for value in points[0].values()] == [float, int]


def test_a_table_of_points_follows_and_an_empty_cell_is_drawn(file, tmp_path):
    table = tmp_path / "points.csv"
    table.write_text("lr,optimizer\n0.01,adam\n,sgd\n", encoding="utf-8")
    assert enqueued(file, ["width=8"], table) == [{"width": 8}, {"lr": 0.01, "optimizer": "adam"}, {"optimizer": "sgd"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "--enqueue lr: expected for instance lr=0.01,width=64"),
        ("lr=0.01,", "expected for instance"),
        ("lr=0.5", "lr is 0.5, expected a number from 0.0001 to 0.1"),
        ("lr=nan", "lr is nan, expected a number"),
        ("lr=much", "lr is much, expected a number"),
        ("width=12", "width is 12, expected a whole number from 8 to 64 in steps of 8"),
        ("optimizer=rmsprop", "optimizer is rmsprop, expected one of sgd, adam, None"),
        ("depth=3", "suggest asks for no 'depth', but for lr, width, optimizer, momentum, batch"),
        ("optimizer=adam,momentum=0.6", "suggest asks for no 'momentum'"),
    ],
)
def test_what_is_no_point_of_the_space_is_refused_before_anything_is_trained(file, text, message):
    with pytest.raises(UsageError, match=message):
        enqueued(file, [text], None)


def test_the_same_point_twice_is_refused(file):
    with pytest.raises(UsageError, match="--enqueue lr=1e-2: this point is given twice"):
        enqueued(file, ["lr=0.01", "lr=1e-2"], None)


@pytest.mark.parametrize("content", ["", "lr,width\n0.01\n", "lr\n0.01,8\n", "lr\n"])
def test_a_table_that_is_none_is_refused(file, tmp_path, content):
    table = tmp_path / "points.csv"
    table.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"points\.csv: expected a row of names"):
        enqueued(file, [], table)
    with pytest.raises(UsageError, match=r"missing\.csv: .*expected a CSV table"):
        enqueued(file, [], tmp_path / "missing.csv")


def test_a_grid_has_every_point_once_and_a_conditional_parameter_where_it_is_asked_for(file):
    points = grid(file, {"lr": [0.1, "1e-3"], "width": 8}, seed=0)
    expected = []
    for lr, batch in itertools.product((0.1, 0.001), (16, 2.5, True)):
        rest = {"lr": lr, "width": 8, "batch": batch}
        expected += [{**rest, "optimizer": "sgd", "momentum": m} for m in (0.0, 0.3, 0.6, 0.9)]
        expected += [{**rest, "optimizer": optimizer} for optimizer in ("adam", None)]
    keyed = [tuple(sorted((k, str(v)) for k, v in point.items())) for point in points]
    assert sorted(keyed) == sorted(tuple(sorted((k, str(v)) for k, v in point.items())) for point in expected)
    assert grid(file, {"lr": [0.1, "1e-3"], "width": 8}, seed=0) == points
    assert grid(file, {"lr": [0.1, "1e-3"], "width": 8}, seed=1) != points


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"lr has no steps between 0.0001 and 0.1; .* --grid '\{lr: \[0.0001, 0.1\]\}'"),
        ({"lr": [0.5]}, "--grid: lr is 0.5, expected a number from"),
        ({"lr": []}, "lr has no value"),
        ({"lr": [0.1, 0.1]}, "or one twice"),
        ({"lr": 0.1, "depth": [1]}, "suggest asks for no 'depth', but for batch, lr, momentum"),
    ],
)
def test_what_makes_no_grid_is_refused_with_what_to_give(file, given, message):
    with pytest.raises(UsageError, match=message):
        grid(file, given, seed=0)


def test_a_grid_that_is_too_large_is_refused(tmp_path):
    def large(trial):
        for name in "abcdef":
            trial.suggest_int(name, 1, 9)

    with pytest.raises(UsageError, match=f"more than {LARGEST_GRID} points"):
        grid(file_of(large, tmp_path), {}, seed=0)
