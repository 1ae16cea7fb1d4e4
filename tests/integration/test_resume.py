"""One pruned configuration, reopened: it goes on exactly as if it had never been paused."""

import random
import signal

import pytest

from pipeline import Run
from pipeline.checkpoint import FolderStore, load
from pipeline.experiment import from_params, load_experiment, seed_for
from tests.integration.commands import Workplace, assert_same_tensors, signal_all_and_open
from tests.integration.sweeps import BATCHES, QUICK, Sweep, assert_each_step_accepted_once, step_of

EPOCHS = 9
CONFIGURATIONS = 5


@pytest.fixture(scope="module")
def swept(new_workplace):
    """A finished study of which most configurations were pruned after their first epoch."""
    sweep = Sweep.of(new_workplace("swept"), "--configurations", str(CONFIGURATIONS), "--workers", "1")
    sweep.finish()
    return sweep


def pruned(sweep: Sweep) -> list[int]:
    return [n for n, one in sweep.workplace.study("quick").lineages().items() if one.epochs == 1]


def never_paused(sweep: Sweep, number: int, folder, *, study: str = "quick", max_epochs: int | None = None):
    """The same configuration, trained in one go in this process: its state and its curve."""
    import torch

    there = sweep.workplace.study(study)
    experiment = load_experiment(QUICK).experiment
    config = from_params(experiment.config, there.lineages()[number].config)
    threads = torch.get_num_threads()
    torch.set_num_threads(there.attrs["site"]["threads"])
    try:
        run = Run.local(folder, experiment, seed=seed_for(there.spec.seed, number), max_epochs=max_epochs)
        experiment.train(config, run)
        run.finish()
    finally:
        torch.set_num_threads(threads)
    store = FolderStore(folder)
    return load(store, store.names()[-1])[1], [report.metrics for report in run.history]


def others(workplace: Workplace, number: int):
    """Everything that MLflow and the study say about the other configurations."""
    runs = [run for run in workplace.runs(kind="configuration") if run.data.tags["configuration"] != str(number)]
    trials = [t for t in workplace.study("quick").trials() if t.user_attrs["configuration"] != number]
    return [run.to_dictionary() for run in runs], [(t.number, t.state, t.user_attrs) for t in trials]


def assert_complete_and_exact(sweep: Sweep, number: int, folder) -> None:
    lineage = sweep.workplace.study("quick").lineages()[number]
    assert (lineage.ended, lineage.epochs) == ("complete", EPOCHS)
    assert_each_step_accepted_once(lineage, sweep.trained())
    found = sweep.workplace.trained(configuration=str(number))
    assert found.run.info.status == "FINISHED"
    assert found.run.data.tags["state"] == "complete"
    state, curve = never_paused(sweep, number, folder)
    for part in ("model", "optimizer", "scheduler", "rng"):
        assert_same_tensors(found.state[part], state[part], part)
    for name in curve[0]:
        assert found.curves[name] == [(epoch, metrics[name]) for epoch, metrics in enumerate(curve, start=1)]


def test_a_pruned_configuration_resumes_with_its_momentum_schedule_and_random_state(swept, tmp_path):
    number, before = pruned(swept)[0], swept.trained()
    untouched = others(swept.workplace, number)
    swept.finish("resume", "--study", "quick", "--configuration", str(number))
    # Its first epoch was not trained again.
    assert_complete_and_exact(swept, number, tmp_path)
    new = {segment: steps for segment, steps in swept.trained().items() if segment not in before}
    assert list(new.values()) == [list(range(BATCHES, EPOCHS * BATCHES))]
    assert others(swept.workplace, number) == untouched
    (study_run,) = swept.workplace.runs(kind="study")
    assert study_run.info.status == "FINISHED"


def test_a_complete_configuration_is_said_to_be_complete_and_nothing_is_trained(swept):
    lineages = swept.workplace.study("quick").lineages()
    number = next(n for n, one in lineages.items() if one.ended == "complete")
    history, runs = (
        swept.history.read_text(),
        [run.to_dictionary() for run in swept.workplace.runs(kind="configuration")],
    )
    output = swept.finish("resume", "--study", "quick", "--configuration", str(number))
    assert f"configuration #{number:02d} has had its {EPOCHS} epochs" in output
    assert swept.history.read_text() == history
    assert [run.to_dictionary() for run in swept.workplace.runs(kind="configuration")] == runs


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_reopening_that_is_interrupted_is_continued_by_the_same_command(swept, tmp_path, number):
    configuration = pruned(swept)[0]
    untouched = others(swept.workplace, configuration)
    arguments = ("resume", "--study", "quick", "--configuration", str(configuration))
    step = BATCHES + random.SystemRandom().randrange(4, 40)
    moment = f"{step // BATCHES} {step % BATCHES}"
    print(f"interrupted in epoch and batch {moment}")
    swept.progress.skip()
    command = swept.start(*arguments, gate=moment)
    swept.progress.wait_for_end_of(f" {moment}", command)
    if number == signal.SIGKILL:
        command.kill()
    else:
        signal_all_and_open(command, number, swept.progress)
        assert command.wait() == 75, command.output
    reached = step_of(swept.workplace.study("quick").lineages()[configuration].progress["checkpoint"])
    assert reached < EPOCHS * BATCHES
    swept.finish(*arguments)
    assert_complete_and_exact(swept, configuration, tmp_path)
    assert others(swept.workplace, configuration) == untouched
