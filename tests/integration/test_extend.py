"""The best of a finished study, trained on beyond its budget as if it had been planned so."""

import pytest

from pipeline import UsageError
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


def test_one_whose_last_checkpoint_was_deleted_cannot_be_extended(swept, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", swept.workplace.tracking_uri)
    study = swept.workplace.study("steady")
    lineage = next(one for one in study.lineages().values() if one.epochs == PLANNED)
    name = lineage.progress["checkpoint"]
    store = MlflowStore(lineage.run_id, swept.workplace.tracking_uri)
    store.keep_only(set(store.names()) - {name}, lineage.head.number, {})
    with pytest.raises(UsageError, match=f"cannot be extended: its last checkpoint {name} was deleted by --keep-gb"):
        reopen(study, (lineage.number,), max_epochs=LONGER)
    assert step_of(study.lineages()[lineage.number].progress["checkpoint"]) == PLANNED * BATCHES
