"""A sweep, killed in every way there is, comes to the result that it would have come to."""

import os
import random
import signal

import pytest

from pipeline.checkpoint import MlflowStore
from tests.integration.commands import Workplace, wait_until_gone
from tests.integration.sweeps import QUICK, Sweep, assert_same_results, assert_sound

CONFIGURATIONS = 12
SIZE = ("--configurations", str(CONFIGURATIONS))


@pytest.fixture
def chance():
    """Random moments; the seed in the output of a failed test, given as KILL_SEED, repeats them."""
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def undisturbed(new_workplace) -> Workplace:
    """The study of two workers as nothing has disturbed it."""
    place = new_workplace("undisturbed")
    sweep = Sweep.of(place, *SIZE, "--sampler", "random", "--workers", "2")
    sweep.finish()
    assert_sound(sweep, configurations=CONFIGURATIONS)
    return place


def test_a_sweep_killed_twice_and_its_workers_twice_loses_nothing_and_trains_nothing_twice(
    workplace, undisturbed, chance
):
    sweep = Sweep.of(workplace, *SIZE, "--sampler", "random", "--workers", "2")
    kills = ["sweep", "sweep", "worker", "worker"]
    chance.shuffle(kills)
    command = sweep.start()
    for victim in kills:
        assert sweep.progress.wait_for_count(chance.randint(3, 25), command), command.output
        if victim == "sweep":
            command.kill()
            command = sweep.start()
        else:
            worker = chance.choice(command.trainers())
            os.kill(worker.pid, signal.SIGKILL)
            wait_until_gone([worker])
    assert command.wait() == 0, command.output
    lineages = assert_sound(sweep, configurations=CONFIGURATIONS)
    assert "bug" not in [segment.user_attrs["ended"] for one in lineages.values() for segment in one.segments]
    assert assert_same_results(workplace, undisturbed, configurations=CONFIGURATIONS) >= CONFIGURATIONS // 2


def test_only_what_a_worker_lost_alone_is_charged_to_its_configuration(workplace):
    sweep = Sweep.of(workplace, "--configurations", "1", "--workers", "1")
    # Both times in the middle of the second epoch: first the worker alone, then everything at once.
    command = sweep.start(gate="1 2")
    sweep.progress.wait_for_end_of(" 1 2", command)
    (worker,) = command.trainers()
    os.kill(worker.pid, signal.SIGKILL)
    sweep.progress.wait_for_end_of(" 1 2", command)
    command.kill()
    sweep.finish()
    (lineage,) = assert_sound(sweep, configurations=1).values()
    ended = [segment.user_attrs["ended"] for segment in lineage.segments]
    assert ended == ["paused", "lost", "preempted", "paused", "complete"]


def test_with_one_worker_an_interrupted_sweep_suggests_and_promotes_as_if_it_had_not_been(
    workplace, new_workplace, chance
):
    flags = (*SIZE, "--workers", "1")
    whole = Sweep.of(new_workplace("whole"), *flags)
    whole.finish()
    sweep = Sweep.of(workplace, *flags)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        command = sweep.start()
        assert sweep.progress.wait_for_count(chance.randint(3, 35), command), command.output
        command.signal_group(number)
        code = command.wait()
        assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL), command.output
    sweep.finish()
    assert_sound(sweep, configurations=CONFIGURATIONS)
    assert decisions(workplace) == decisions(whole.workplace)
    compared = assert_same_results(workplace, whole.workplace, configurations=CONFIGURATIONS)
    assert compared == CONFIGURATIONS


def decisions(workplace):
    """What was trained until where, in the order in which it got there, and from which draws."""
    study = workplace.study()
    reached = [t for t in study.trials() if t.user_attrs["ended"] in ("paused", "complete")]
    return [
        (t.user_attrs["configuration"], t.user_attrs["until"], t.params, t.intermediate_values)
        for t in sorted(reached, key=lambda t: t.datetime_complete)
    ]


def test_when_the_supervisor_is_killed_its_workers_checkpoint_and_leave(workplace, chance):
    sweep = Sweep.of(workplace, "--configurations", "4", "--workers", "2")
    command = sweep.start()
    assert sweep.progress.wait_for_count(chance.randint(3, 15), command), command.output
    members = command.members()
    assert len(command.trainers()) == 2
    os.kill(command.process.pid, signal.SIGKILL)
    wait_until_gone(members)
    command.wait()
    for lineage in workplace.study("quick").lineages().values():
        assert lineage.head.state.is_finished() or lineage.head.user_attrs.get("worker") is None
        assert lineage.ended in ("preempted", "paused", "complete", None)
    assert not [run for run in workplace.runs(kind="configuration") if run.info.status == "RUNNING"]
    sweep.finish()
    assert_sound(sweep, configurations=4)


def test_a_sweep_that_is_asked_to_stop_says_how_everything_stands_and_goes_on_by_its_name(workplace, chance):
    sweep = Sweep.of(workplace, "--configurations", "6", "--workers", "2")
    command = sweep.start()
    assert sweep.progress.wait_for_count(chance.randint(13, 25), command), command.output
    command.signal_group(signal.SIGTERM)
    assert command.wait() == 75, command.output
    assert "Traceback" not in command.output
    (study_run,) = workplace.runs(kind="study")
    assert (study_run.info.status, study_run.data.tags["state"]) == ("KILLED", "interrupted")
    statuses = {"interrupted": "KILLED", "paused": "SCHEDULED", "complete": "FINISHED"}
    for run in workplace.runs(kind="configuration"):
        assert run.info.status == statuses[run.data.tags["state"]]
    # And so does the command that only looks.
    standing = sweep.finish("status", "--study", "quick")
    assert "study quick: not done; " in standing
    for run in workplace.runs(kind="configuration"):
        (line,) = [line for line in standing.splitlines() if line.startswith(run.info.run_name)]
        assert run.data.tags["state"] in line.split()
        size_bytes = sum(MlflowStore(run.info.run_id, workplace.tracking_uri).sizes().values())
        assert f" {size_bytes:,} bytes" in line
    # From its name alone, by another command in another process.
    assert "quick: 6 configurations done" in sweep.finish("resume", "--study", "quick")
    assert_sound(sweep, configurations=6)
    assert "study quick: done; " in sweep.finish("status")
    trained = sweep.history.read_text()
    assert "nothing left to train" in sweep.finish("resume", "--study", "quick")
    assert sweep.history.read_text() == trained


def test_a_study_stopped_before_its_first_checkpoint_leaves_no_run_that_seems_to_run(workplace):
    sweep = Sweep.of(workplace, "--configurations", "2", "--workers", "1")
    command = sweep.start()
    assert sweep.progress.wait_for_count(1, command), command.output
    command.kill()  # in the first epoch: no checkpoint
    command = sweep.start()
    command.wait_for_output("trains until")
    command.signal_group(signal.SIGTERM)
    assert command.wait() == 75, command.output
    assert {run.info.status for run in workplace.runs()} == {"KILLED"}


def test_two_commands_on_one_new_study_at_once_share_it(workplace):
    sweep = Sweep.of(workplace, "--configurations", "6", "--workers", "1")
    commands = [sweep.start(), sweep.start()]
    for command in commands:
        assert command.wait() == 0, command.output
    assert_sound(sweep, configurations=6)


def test_a_configuration_that_fails_is_listed_and_the_others_are_trained(workplace):
    sweep, failing = Sweep.of(workplace), workplace.folder / "failing.py"
    drawn = 'trial.suggest_int("width", 2, 16)'
    text = QUICK.read_text(encoding="utf-8")
    assert drawn in text
    failing.write_text(text.replace(drawn, f"{drawn}, poison=0 if trial.number == 1 else -1"), encoding="utf-8")
    output = sweep.finish("sweep", str(failing), "--configurations", "3", "--workers", "1")
    assert "failed: #01 ValueError: poisoned" in output
    found = {run.data.tags["configuration"]: run for run in workplace.runs(kind="configuration")}
    assert found["1"].info.status == "FAILED"
    assert found["1"].data.tags["state"] == "failed"
    assert [t.user_attrs["ended"] for t in workplace.study("failing").lineages()[1].segments] == ["bug", "bug"]
    assert {found["0"].data.tags["state"], found["2"].data.tags["state"]} == {"complete", "pruned"}
