"""1000 rows, 10 features: 3 epochs, an interruption, 2 more; then the model is served as it was evaluated."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.checkpoint import MlflowStore, load, restore
from pipeline.experiment import load_experiment
from tests.integration.commands import (
    EXPERIMENTS,
    PATIENCE_S,
    Trained,
    Workplace,
    assert_each_step_once,
    assert_same_training,
    signal_all_and_open,
)

ROWS, FEATURES, EPOCHS, STOP = 1000, 10, 5, 3
TABULAR = EXPERIMENTS / "tabular.py"

# The same experiment, with a place to interrupt it at.
GATED = """
from dataclasses import replace

import tabular
from voice import say


class Gated:
    def __init__(self, run):
        self._run = run

    def __getattr__(self, name):
        return getattr(self._run, name)

    def report(self, **metrics):
        self._run.report(**metrics)
        say(f"{self._run.epoch} reported")


experiment = replace(tabular.experiment, train=lambda config, run: tabular.train(config, Gated(run)))
"""

# What whoever serves the model does: it knows MLflow, and nothing of this project.
SERVE = """
import sys
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(pd.read_parquet(sys.argv[2])).to_parquet(sys.argv[3])
"""

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Ten features of very different sizes, and a class that depends on three of them and on chance."""
    chance = np.random.default_rng(12)
    features = chance.normal(loc=np.arange(FEATURES), scale=10.0 ** np.arange(-4, 6), size=(ROWS, FEATURES))
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    score = scaled[:, 0] - 2 * scaled[:, 4] * scaled[:, 7] + 0.5 * chance.normal(size=ROWS)
    columns = {f"feature_{n}": features[:, n] for n in range(FEATURES)}
    return pd.DataFrame(columns).assign(outcome=np.where(score > 0, "yes", "no"))


def test_two_epochs_after_an_interruption_are_those_of_an_uninterrupted_run_and_the_model_serves_the_same(
    workplace: Workplace, table: pd.DataFrame
) -> None:
    csv = workplace.folder / "measured.csv"
    table.to_csv(csv, index=False)
    options = {"path": csv, "target": "outcome", "validation-fraction": 0, "test-fraction": 0.2}
    data = [str(part) for name, value in options.items() for part in (f"--data.{name}", value)]
    prepared = workplace.run("prepare", TABULAR, *data)
    assert {line.split()[0]: line.split()[1] for line in prepared.splitlines() if "blake3" in line} == {
        "train": "800",
        "validation": "0",
        "test": "200",
        "columns": "10",
        "classes": "2",
    }

    training = (*data, "--max-epochs", str(EPOCHS))
    workplace.run("train", TABULAR, "--study", "whole", *training)
    gated = gated_copy(workplace)
    stop_after(workplace, STOP, "train", gated, "--study", "parts", *training)
    stopped = workplace.trained(study="parts")
    assert (stopped.manifest.position.epoch, stopped.manifest.position.batch) == (STOP, 0)
    assert stopped.run.info.status == "KILLED"
    workplace.run("train", gated, "--study", "parts", *training)

    whole, parts = workplace.trained(study="whole"), workplace.trained(study="parts")
    assert_each_step_once(parts, EPOCHS)
    for curve in ("train_loss", "loss", "train_accuracy"):
        assert [step for step, _ in whole.curves[curve][STOP:]] == [4, 5]
        assert parts.curves[curve][STOP:] == whole.curves[curve][STOP:]
    assert_same_training(parts, whole)

    rows = table.drop(columns="outcome").sample(n=100, random_state=1)
    for study in ("whole", "parts"):
        assert f"registered as models:/{study}/1" in workplace.run("evaluate", "--study", study)
        trained = workplace.trained(study=study)
        expected = predicted_in_memory(workplace, trained, table, csv, rows)
        pd.testing.assert_frame_equal(served(workplace, f"models:/{study}/1", rows), expected, check_exact=True)
        assert set(expected["outcome"]) == {"yes", "no"}
    (one, other) = workplace.runs(kind="evaluate")
    assert one.data.metrics == other.data.metrics
    assert one.data.metrics["test_accuracy"] > 0.5


def gated_copy(place: Workplace) -> Path:
    """The path of the gated experiment, beside what it imports."""
    folder = place.folder / "gated"
    folder.mkdir()
    for source in (TABULAR, Path(__file__).with_name("voice.py")):
        shutil.copy(source, folder)
    path = folder / "gated.py"
    path.write_text(GATED, encoding="utf-8")
    return path


def stop_after(place: Workplace, epochs: int, *arguments: str | Path) -> None:
    """Runs a command of the gated experiment and stops it by SIGTERM after so many epochs."""
    progress = place.progress()
    last = f"{epochs - 1} reported"
    command = place.start(*arguments, environment=progress.environment(gate=last))
    progress.wait_for(last, command)
    signal_all_and_open(command, signal.SIGTERM, progress)
    assert command.wait() == 75, command.output


def predicted_in_memory(
    place: Workplace, trained: Trained, table: pd.DataFrame, csv: Path, rows: pd.DataFrame
) -> pd.DataFrame:
    """What the experiment's own model, with the best weights in it, makes of raw rows."""
    load_experiment(TABULAR, "tabular_in_memory")
    tabular = sys.modules["tabular_in_memory"]
    prepared = tabular.prepare(tabular.Data(path=csv, target="outcome", validation_fraction=0.0))
    model = tabular.Classifier(prepared["columns"], prepared["classes"], tabular.Config().width)
    best = trained.manifest.best
    assert best is not None
    _, state = load(MlflowStore(trained.run.info.run_id, place.tracking_uri), best.checkpoint)
    restore({"model": model}, {name: state[name] for name in ("model", "kinds")})
    return model.predict(rows)


def served(place: Workplace, model: str, rows: pd.DataFrame) -> pd.DataFrame:
    """What the registered model makes of them, in a process and a folder of its own."""
    folder = place.folder / f"serving-{model.split('/')[1]}"
    folder.mkdir()
    rows.to_parquet(folder / "rows.parquet")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "-c", SERVE, model, "rows.parquet", "answers.parquet"],
        cwd=folder,
        env={**environment, "MLFLOW_TRACKING_URI": place.tracking_uri},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return pd.read_parquet(folder / "answers.parquet")
