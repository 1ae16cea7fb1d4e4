"""`train`, interrupted by every means at any moment and started again, ends as if nothing had happened."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint import parse_name
from tests.integration.commands import (
    Command,
    Progress,
    Trained,
    Workplace,
    assert_each_step_once,
    assert_same_training,
    signal_all_and_open,
    signal_mask,
    tensors,
    wait_until,
    wait_until_gone,
)

AUGMENTED = Path(__file__).with_name("augmented.py")
EPOCHS, BATCHES = 4, 20
KILLS = 5

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def uninterrupted(new_workplace: Callable[[str], Workplace]) -> Callable[..., Trained]:
    """Trains a configuration without a stop, once a module for each configuration."""
    place = new_workplace("uninterrupted")
    known: dict[tuple[str, ...], Trained] = {}

    def train(*flags: str) -> Trained:
        if flags not in known:
            study = f"whole-{len(known)}"
            place.run("train", AUGMENTED, "--study", study, *flags)
            known[flags] = place.trained(study=study)
        return known[flags]

    return train


def assert_finished_like(place: Workplace, expected: Trained) -> None:
    """One configuration, one MLflow run, finished, and equal to `expected` to the bit."""
    found = place.trained()
    assert_same_training(found, expected)
    assert_each_step_once(found, EPOCHS)
    assert len(tensors(found.state)) > 20
    assert found.run.info.status == "FINISHED"
    assert found.run.data.tags["state"] == "complete"
    (study,) = place.runs(kind="study")
    assert study.info.status == "FINISHED"
    assert all(trial.state.is_finished() for trial in place.trials())


def assert_interrupted(place: Workplace) -> None:
    """The configuration and its study say that they were interrupted, and where."""
    found = place.trained()
    (study,) = place.runs(kind="study")
    for run in (found.run, study):
        assert run.info.status == "KILLED"
        assert run.data.tags["state"] == "interrupted"
    assert place.trials()[-1].user_attrs["ended"] == "preempted"


def position(place: Workplace) -> tuple[int, int]:
    """Epoch and batch of the newest checkpoint that the study knows of."""
    progress = place.trials()[-1].user_attrs.get("progress", {})
    found = parse_name(progress.get("checkpoint") or "")
    return (0, 0) if found is None else (found[0].epoch, found[0].batch)


def batches(progress: Progress) -> list[tuple[int, int]]:
    """The (epoch, batch) of every batch that training was handed, in order."""
    pairs = [line.split() for line in progress.lines]
    return [(int(a), int(b)) for a, b in (pair for pair in pairs if len(pair) == 2) if a.isdigit() and b.isdigit()]


def follow(progress: Progress, command: Command) -> None:
    """Reads what the experiment says until the command has ended."""
    while progress.next(command) is not None:
        pass


def kill_trainer(command: Command, lines: list[str]) -> None:
    """SIGKILL to the process that wrote the last `start`."""
    pid = next(int(line.split()[1]) for line in reversed(lines) if line.startswith("start"))
    os.kill(pid, signal.SIGKILL)


def moments(seed: int) -> list[str]:
    """Lines of the experiment at which to kill it, one after the other: one in each fifth of the training."""
    said = [
        f"{epoch} {what}"
        for epoch in range(EPOCHS)
        for what in (*range(BATCHES), *(f"validation{n}" for n in ("", " 1", " 2", " 3", " 4", " 5")), "reported")
    ][:-10]
    chance = random.Random(seed)
    chosen = [said[chance.randrange(k * len(said) // KILLS, (k + 1) * len(said) // KILLS)] for k in range(KILLS)]
    print(f"seed {seed}: kills at {chosen}")
    return chosen


def test_killed_with_its_whole_group_at_random_moments_it_ends_as_if_never_killed(
    workplace: Workplace, uninterrupted: Callable[..., Trained]
) -> None:
    for moment in moments(seed=29):
        progress = workplace.progress()
        command = workplace.start("train", AUGMENTED, environment=progress.environment())
        progress.wait_for(moment, command)  # and it goes on, until the signal arrives
        command.kill()
    workplace.run("train", AUGMENTED)
    assert_finished_like(workplace, uninterrupted())
    assert "nothing left to train" in workplace.run("train", AUGMENTED)


def test_a_trainer_killed_alone_at_random_moments_is_replaced_and_nothing_is_lost(
    workplace: Workplace, uninterrupted: Callable[..., Trained]
) -> None:
    progress = workplace.progress()
    command = workplace.start("train", AUGMENTED, environment=progress.environment())
    for moment in moments(seed=41):
        progress.wait_for(moment, command)
        kill_trainer(command, progress.lines)
    follow(progress, command)
    assert command.wait() == 0, command.output
    assert command.output.count("a worker died") == KILLS
    assert_finished_like(workplace, uninterrupted())


def test_killed_inside_an_epoch_it_goes_on_from_the_last_checkpoint_inside_it(
    workplace: Workplace, uninterrupted: Callable[..., Trained]
) -> None:
    flags = ("--checkpoint-every-s", "0.001")
    first = workplace.progress()
    command = workplace.start("train", AUGMENTED, *flags, environment=first.environment(gate="1 7"))
    first.wait_for("1 7", command)
    wait_until(lambda: position(workplace) > (1, 0), "a checkpoint inside the epoch")
    command.kill()
    epoch, batch = position(workplace)
    assert epoch == 1
    assert 0 < batch <= 7

    second = workplace.progress()
    command = workplace.start("train", AUGMENTED, *flags, environment=second.environment())
    follow(second, command)
    assert command.wait() == 0, command.output
    assert batches(second)[0] == (1, batch)
    assert_finished_like(workplace, uninterrupted())


SHAPES = {
    "two_loader_workers": (),
    "no_loader_workers": ("--config.loader-workers", "0"),
    "persistent_loader_workers_and_gradients_of_three_batches": (
        *("--config.persistent", "true"),
        *("--config.accumulate", "3"),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_stopped_in_the_middle_of_an_epoch_by_sigterm_to_all_processes_it_resumes_exactly_there(
    workplace: Workplace, uninterrupted: Callable[..., Trained], shape: str
) -> None:
    stop_and_resume(workplace, uninterrupted, signal.SIGTERM, *SHAPES[shape])


def test_stopped_in_the_middle_of_an_epoch_by_ctrl_c_it_resumes_exactly_there(
    workplace: Workplace, uninterrupted: Callable[..., Trained]
) -> None:
    stop_and_resume(workplace, uninterrupted, signal.SIGINT)


def stop_and_resume(
    place: Workplace, uninterrupted: Callable[..., Trained], number: signal.Signals, *flags: str
) -> None:
    first = place.progress()
    command = place.start("train", AUGMENTED, *flags, environment=first.environment(gate="1 4"))
    first.wait_for("1 4", command)  # training waits there until every process has the signal
    signal_all_and_open(command, number, first)
    assert command.wait() == 75, command.output
    assert "run the same command again" in command.output
    assert "Traceback" not in command.output
    follow(first, command)
    epoch, batch = position(place)
    assert epoch == 1
    assert 4 < batch < BATCHES
    assert batches(first)[-1] == (1, batch - 1)
    assert_interrupted(place)

    second = place.progress()
    command = place.start("train", AUGMENTED, *flags, environment=second.environment())
    follow(second, command)
    assert command.wait() == 0, command.output
    assert batches(second)[0] == (1, batch)
    assert_finished_like(place, uninterrupted(*flags))
    assert [trial.user_attrs["ended"] for trial in place.trials()] == ["preempted", "complete"]


def test_stopped_while_it_validates_with_loader_workers_it_finishes_the_epoch_first(
    workplace: Workplace, uninterrupted: Callable[..., Trained]
) -> None:
    flags = ("--config.validation-workers", "2")
    progress = workplace.progress()
    command = workplace.start("train", AUGMENTED, *flags, environment=progress.environment(gate="1 validation 2"))
    progress.wait_for("1 validation 2", command)
    signal_all_and_open(command, signal.SIGTERM, progress)
    assert command.wait() == 75, command.output
    assert position(workplace) == (2, 0)
    assert_interrupted(workplace)
    workplace.run("train", AUGMENTED, *flags)
    assert_finished_like(workplace, uninterrupted(*flags))


def test_no_process_outlives_a_trainer_that_was_killed(workplace: Workplace) -> None:
    progress = workplace.progress()
    command = workplace.start("train", AUGMENTED, environment=progress.environment(gate="0 5"))
    progress.wait_for("0 5", command)
    (trainer,) = command.trainers()
    loaders = trainer.children()
    assert len(loaders) == 2
    kill_trainer(command, progress.lines)
    wait_until_gone(loaders)
    assert command.process.poll() is None  # its supervisor goes on


def test_when_the_supervisor_is_killed_its_trainer_takes_a_checkpoint_and_leaves(
    workplace: Workplace, uninterrupted: Callable[..., Trained]
) -> None:
    progress = workplace.progress()
    command = workplace.start("train", AUGMENTED, environment=progress.environment(gate="1 4"))
    progress.wait_for("1 4", command)
    others = [process for process in command.members() if process.pid != command.process.pid]
    assert len(others) >= 4  # forkserver, trainer, two that load
    command.process.kill()
    command.wait_for_output("the supervisor is gone")  # the thread that trains waits at the gate
    progress.open_gate()
    wait_until_gone(others)
    epoch, batch = position(workplace)
    assert epoch == 1
    assert 4 < batch < BATCHES
    workplace.run("train", AUGMENTED)
    assert_finished_like(workplace, uninterrupted())


def catches(command: Command, number: signal.Signals) -> bool:
    """Whether the command handles this signal by now."""
    return bool(signal_mask(command.process.pid, "SigCgt") >> (number - 1) & 1)


# What a signal is sent at. Its own handler for SIGINT python installs long before there is one of ours.
POINTS: dict[str, Callable[[Workplace, Command], object]] = {
    "as it listens": lambda _, command: wait_until(lambda: catches(command, signal.SIGTERM), "it listens"),
    "with its forkserver": lambda _, command: wait_until(lambda: len(command.members()) > 1, "a forkserver"),
    "with the first database begun": lambda place, _: wait_until(lambda: begun(place), "a database"),
    "with the first database": lambda place, _: wait_until((place.folder / "mlflow.db").exists, "mlflow.db"),
    "with the other database": lambda place, _: wait_until((place.folder / "optuna.db").exists, "optuna.db"),
    "with the trainer": lambda _, command: wait_until(command.trainers, "a trainer"),
    "with the segment": lambda _, command: command.wait_for_output("trains until"),
}
WHILE_IT_LOADS = ("as it listens", "with its forkserver")  # so that there has to be something to load


def begun(place: Workplace) -> bool:
    return any(place.folder.iterdir())


@pytest.mark.parametrize(
    ("number", "points"),
    [
        (signal.SIGTERM, list(POINTS)),
        (signal.SIGINT, ["as it listens", "with the first database begun", "with the trainer"]),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_at_any_point_of_the_start_leaves_nothing_to_stumble_over(
    workplace: Workplace, uninterrupted: Callable[..., Trained], number: signal.Signals, points: list[str]
) -> None:
    for point in points:
        command = workplace.start("train", AUGMENTED, fresh=point in WHILE_IT_LOADS)
        POINTS[point](workplace, command)
        command.signal_group(number)
        assert command.wait() == 75, f"{point}:\n{command.output}"
        assert "Traceback" not in command.output, f"{point}:\n{command.output}"
    workplace.run("train", AUGMENTED)
    assert_finished_like(workplace, uninterrupted())


def test_sigterm_right_after_the_command_was_started_leaves_nothing_to_stumble_over(workplace: Workplace) -> None:
    command = workplace.start("train", AUGMENTED, fresh=True)
    command.signal_group(signal.SIGTERM)
    # By the signal itself, as long as python had not got to our first line.
    assert command.wait() in (75, -signal.SIGTERM), command.output
    assert not list(workplace.folder.iterdir())


def test_killed_at_any_point_of_the_start_it_starts_again(
    workplace: Workplace, uninterrupted: Callable[..., Trained]
) -> None:
    for point, wait in POINTS.items():
        command = workplace.start("train", AUGMENTED, fresh=point in WHILE_IT_LOADS)
        print(f"killed {point}")
        wait(workplace, command)
        command.kill()
    workplace.run("train", AUGMENTED)
    assert_finished_like(workplace, uninterrupted())
