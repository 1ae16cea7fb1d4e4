"""The best of a finished study, trained on beyond its budget as if it had been planned so."""

import mlflow
import pytest

from pipeline import Study, UsageError
from pipeline.checkpoint import MlflowStore
from pipeline.sweep.reopening import reopen
from tests.integration.commands import assert_same_tensors
from tests.integration.sweeps import BATCHES, QUICK, Sweep, assert_each_step_accepted_once, step_of
from tests.integration.test_resume import never_paused

STEADY = QUICK.with_name("steady.py")
PLANNED, LONGER = 3, 6
EXTEND = ("resume", "--study", "steady", "--top", "2", "--max-epochs", str(LONGER), "--schedule", "keep")


@pytest.fixture(scope="module")
def swept(new_workplace):
    """A finished study of three configurations, trained to the full."""
    workplace = new_workplace("steady")
    flags = ("--configurations", "3", "--pruner", "none", "--workers", "1")
    sweep = Sweep(
        workplace=workplace,
        arguments=("sweep", STEADY, *flags),
        progress=workplace.progress(),
        history=workplace.folder / "history",
    )
    sweep.finish()
    return sweep


def test_the_extended_are_what_a_longer_plan_gives_although_they_were_killed(swept, tmp_path):
    study, before = swept.workplace.study("steady"), swept.trained()
    best = sorted(study.lineages().values(), key=lambda one: one.best["value"])[:2]
    swept.progress.skip()
    command = swept.start(*EXTEND)
    swept.progress.wait_for_end_of(f" {PLANNED + 1} 2", command)
    command.kill()
    output = swept.finish(*EXTEND)
    lineages = study.lineages()
    assert {n for n, one in lineages.items() if one.epochs == LONGER} == {one.number for one in best}
    for one in best:
        lineage = lineages[one.number]
        assert f"configuration #{one.number:02d} is complete at epoch {LONGER}" in output
        assert_each_step_accepted_once(lineage, swept.trained())
        found = swept.workplace.trained(configuration=str(one.number))
        assert found.run.data.tags["resumed"] == "exact"
        assert found.run.data.tags["extended"] == f"to {LONGER} epochs, schedule keep"
        state, curve = never_paused(swept, one.number, tmp_path / str(one.number), study="steady", max_epochs=LONGER)
        for part in ("model", "optimizer", "scheduler", "rng"):
            assert_same_tensors(found.state[part], state[part], part)
        for name in curve[0]:
            assert found.curves[name] == [(epoch, metrics[name]) for epoch, metrics in enumerate(curve, start=1)]
    new = {segment: steps for segment, steps in swept.trained().items() if segment not in before}
    assert min(step for steps in new.values() for step in steps) == PLANNED * BATCHES
    history = swept.history.read_text()
    assert f"#{best[0].number:02d} has had its {LONGER} epochs, nothing left to train" in swept.finish(*EXTEND)
    assert swept.history.read_text() == history


@pytest.fixture
def notebook(swept, monkeypatch):
    """The study as a notebook in its folder has it."""
    monkeypatch.chdir(swept.workplace.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets as well; it is put back afterwards
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(swept.workplace.tracking_uri)
    yield Study.load("steady")
    mlflow.set_tracking_uri(before)


def test_its_results_are_tables_that_say_what_mlflow_and_the_study_say(swept, notebook):
    table, lineages = notebook.dataframe(), swept.workplace.study("steady").lineages()
    assert list(table.index) == list(lineages)
    for number, one in lineages.items():
        row, found = table.loc[number], swept.workplace.trained(configuration=str(number))
        assert (row["state"], row["epochs"], row["segments"]) == ("complete", one.epochs, len(one.segments))
        assert (row["params.lr"], row["params.steps"]) == (one.config["lr"], 2)
        assert row["metrics.loss"] == found.curves["loss"][-1][1]
        assert row["best.loss"] == min(value for _, value in found.curves["loss"])
        assert row["best.lr"] == dict(found.curves["lr"])[row["best_epoch"]]
        assert row["seconds"] > 0
        assert (row["checkpoint"], row["run_id"]) == (found.checkpoints[-1], found.run.info.run_id)
    types = {"params.width": "int64", "epochs": "int64", "metrics.loss": "float64", "best_epoch": "Int64"}
    assert {name: str(table[name].dtype) for name in types} == types
    best = notebook.best
    assert best["best.loss"] == table["best.loss"].min()
    opened = notebook.checkpoint(best.name)
    assert opened.manifest.history[-1].metrics["loss"] == best["best.loss"]
    assert notebook.checkpoint(best.name, "latest").name == best["checkpoint"]
    with pytest.raises(UsageError, match="has no configuration 9"):
        notebook.checkpoint(9)


def test_its_segments_and_its_history_are_long_tables(swept, notebook):
    segments = notebook.segments()
    for number, one in swept.workplace.study("steady").lineages().items():
        mine = segments[segments["configuration"] == number]
        assert list(mine.index) == [trial.number for trial in one.segments]
        assert list(mine["parent"].astype("object").where(mine["parent"].notna(), None))[1:] == list(mine.index[:-1])
        assert list(mine["to_checkpoint"])[-1] == one.progress["checkpoint"]
        assert list(mine["ended"]) == one.endings
        assert (mine["end"] > mine["start"]).all()
    history = notebook.history()
    assert list(history.columns) == ["configuration", "epoch", "metric", "value"]
    for number in segments["configuration"].unique():
        curves = swept.workplace.trained(configuration=str(number)).reported
        for metric, points in curves.items():
            mine = history[(history["configuration"] == number) & (history["metric"] == metric)]
            assert list(zip(mine["epoch"], mine["value"], strict=True)) == points
    assert notebook.history("loss").equals(history[history["metric"] == "loss"].reset_index(drop=True))


def test_a_notebook_extends_as_the_command_does(swept, notebook):
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'epochs'"):
        notebook.resume(epochs=6)
    (number,) = notebook.dataframe().query("epochs == @PLANNED").index
    notebook.resume(configuration=number, max_epochs=LONGER, workers=1, schedule="stretch")
    assert list(notebook.dataframe()["epochs"]) == [LONGER] * 3
    # It is not the training that was planned, and says so.
    assert list(notebook.segments().query("configuration == @number")["resumed"])[-1] == "schedule stretch"
    assert swept.workplace.trained(configuration=str(number)).run.data.tags["resumed"] == "schedule stretch"


def test_one_whose_last_checkpoint_was_deleted_cannot_be_extended(swept, notebook):
    study = swept.workplace.study("steady")
    lineage = study.lineages()[0]
    name = lineage.progress["checkpoint"]
    store = MlflowStore(lineage.run_id, swept.workplace.tracking_uri)
    store.keep_only(set(store.names()) - {name}, lineage.head.number, {})
    with pytest.raises(UsageError, match=f"cannot be extended: its last checkpoint {name} was deleted by --keep-gb"):
        reopen(study, (lineage.number,), max_epochs=LONGER + 1)
    assert step_of(study.lineages()[lineage.number].progress["checkpoint"]) == LONGER * BATCHES
