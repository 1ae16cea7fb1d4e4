"""A search by commands: known points, budgets that end and grow, samplers and pruners by name."""

import pytest

from tests.integration.sweeps import Sweep, assert_sound


def epochs(workplace, name="quick"):
    return {number: lineage.epochs for number, lineage in workplace.study(name).lineages().items()}


def test_known_points_come_first_a_budget_of_epochs_pauses_and_more_of_everything_goes_on(workplace):
    flags = ("--enqueue", "lr=0.05,width=3;width=7", "--pruner", "hyperband", "--sampler", "cmaes", "--workers", "1")
    sweep = Sweep.of(workplace, *flags, "--configurations", "3", "--max-total-epochs", "3")
    # Brackets 0, 1, 0: the first trains one epoch, the second three, of which the budget leaves two.
    output = sweep.finish()
    assert "study quick: 3 epochs are trained, and --max-total-epochs 3 is spent" in output
    assert "continue:  python -m pipeline resume --study quick" in output
    assert epochs(workplace) == {0: 1, 1: 2}
    study = workplace.study("quick").lineages()
    assert [one.ended for one in study.values()] == ["paused", "preempted"]
    assert study[0].head.params == {"lr": 0.05, "width": 3}
    assert study[1].head.params["width"] == 7
    trained = sweep.history.read_text()
    assert "--max-total-epochs 3 is spent" in sweep.finish()  # the same again: nothing is enqueued twice, or trained
    assert sweep.history.read_text() == trained
    assert "study quick: 3 configurations done" in sweep.finish("resume", "--study", "quick")
    grown = (*sweep.arguments[:2], *flags, "--configurations", "5")
    assert "study quick: 5 configurations done" in sweep.finish(*grown)
    lineages = assert_sound(sweep, configurations=5)
    assert {one.until for one in lineages.values()} <= {1, 3, 9}
    assert "configurations: 5 -> 3" in workplace.run(*sweep.arguments, code=2)  # fewer is another search


def test_when_the_time_is_up_what_runs_stops_resumably(workplace):
    flags = ("--configurations", "1", "--pruner", "none", "--max-epochs", "1000", "--timeout", "4s", "--workers", "1")
    sweep = Sweep.of(workplace, *flags)
    command = sweep.start(gate="1 2")  # where training waits, if it has come so far
    command.wait_for_output("--timeout: the time is up")
    sweep.progress.open_gate()
    assert command.wait() == 75, command.output
    assert "stopped; run the same command again to continue" in command.output
    study = workplace.study("quick")
    assert all(trial.state.is_finished() for trial in study.trials())
    assert {one.ended for one in study.lineages().values()} <= {"preempted"}
    assert {run.info.status for run in workplace.runs()} == {"KILLED"}


@pytest.mark.parametrize("flags", [("--pruner", "median", "--pruner-args", "{n_startup_trials: 1}", "--seed", "3")])
def test_what_a_stopping_rule_prunes_goes_on_when_its_user_says_so(workplace, flags):
    sweep = Sweep.of(workplace, "--configurations", "5", "--workers", "1", *flags)
    output = sweep.finish()
    pruned = [number for number, one in workplace.study("quick").lineages().items() if one.ended == "pruned"]
    assert pruned, output
    sweep.finish("resume", "--study", "quick", "--configuration", str(pruned[-1]))
    lineages = assert_sound(sweep, configurations=5)
    assert lineages[pruned[-1]].epochs == 9
    assert [one.ended for one in lineages.values()].count("pruned") == len(pruned) - 1
