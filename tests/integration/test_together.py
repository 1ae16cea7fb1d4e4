"""Several processes in one trial: what is killed, told to stop or fails in one of them, and the bits afterwards."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.integration.commands import (
    Command,
    Workplace,
    assert_each_step_once,
    assert_same_training,
    pending,
    wait_until,
    wait_until_gone,
)

TOGETHER = Path(__file__).with_name("together.py")
EPOCHS = 4
TRAIN = ("train", TOGETHER, "--processes-per-trial", "2", "--checkpoint-every-s", "0.001")


@pytest.fixture(scope="module")
def place(new_workplace) -> Workplace:
    """A folder where the training was not disturbed."""
    place = new_workplace("together")
    place.run(*TRAIN, "--study", "whole")
    return place


def ranks(place: Workplace, study: str, command: Command) -> tuple[psutil.Process, psutil.Process]:
    """The worker, and the process that trains along."""
    running = place.study(study).trials()[-1]
    both = command.trainers()
    (worker,) = [one for one in both if one.pid == running.user_attrs["worker"]["pid"]]
    (other,) = [one for one in both if one.pid != worker.pid]
    return worker, other


def test_whichever_process_is_killed_or_told_to_stop_the_training_ends_as_an_undisturbed_one(place):
    progress = place.progress()
    command = place.start(*TRAIN, "--study", "disturbed", environment=progress.environment(gate="*"))
    disturb = {"0 4": (0, signal.SIGKILL), "1 3": (1, signal.SIGKILL), "2 2": (1, signal.SIGTERM)}
    while (line := progress.next(command)) is not None:
        rank, number = disturb.pop(line, (0, None))
        both = ranks(place, "disturbed", command) if number is not None else ()
        if number is not None:
            both[rank].send_signal(number)
        if number == signal.SIGTERM:
            wait_until(lambda: not pending(both[rank].pid, number), "it takes the signal")  # noqa: B023
        if number == signal.SIGKILL:
            wait_until_gone(list(both))
        else:
            progress.open_gate()
    assert command.wait() == 0, command.output
    assert not disturb
    found = place.trained(study="disturbed")
    assert_same_training(found, place.trained(study="whole"))
    assert_each_step_once(found, EPOCHS)
    ended = [segment.user_attrs["ended"] for segment in place.study("disturbed").lineages()[0].segments]
    assert ended == ["lost", "lost", "preempted", "complete"]
    assert found.run.data.tags["resumed"] == "exact"
    # Each drew for itself, and the model has the names of one that is trained alone.
    assert not found.state["rng"]["torch"].equal(found.state["ranks"]["1"]["rng"]["torch"])
    assert list(found.state["model"]) == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_an_exception_in_any_process_is_told_as_the_trials_own(place):
    output = place.start(*TRAIN, "--study", "poisoned", "--config.poison", "1", "--max-retries", "0")
    assert output.wait() == 1
    lineage = place.study("poisoned").lineages()[0]
    assert (lineage.ended, lineage.epochs) == ("bug", 2)
    bug = lineage.head.user_attrs["bug"]
    lines = TOGETHER.read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, text in enumerate(lines, start=1) if "raise ValueError" in text]
    assert (bug["type"], bug["place"]) == ("ValueError", f"together.py:{line}")
    assert "rank 1: ValueError: poisoned" in output.output
