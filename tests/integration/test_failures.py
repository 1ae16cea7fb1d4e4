"""Each class of failure, by its real cause: how it is told apart, how often it is tried again, and who is told."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from pipeline.checkpoint import MlflowStore
from tests.integration.commands import Workplace, wait_until, wait_until_gone
from tests.integration.sweeps import QUICK, Sweep
from tests.integration.troubled import TROUBLES

TROUBLED = Path(__file__).with_name("troubled.py")
SLOW_S = 8  # to stand still for so long is a hang; anything else has to be faster, on a busy machine too
NO_MEMORY = (
    ("OutOfMemoryError", "torch.empty(2**50") if torch.cuda.is_available() else ("MemoryError", "bytearray(2**60")
)
EXPECTED = {  # how each segment ended; how the configuration's run stands; what `status` says
    "none": (["complete"], "FINISHED", ""),
    "killed once": (["lost", "complete"], "FINISHED", "broken off: 1 lost"),
    "killed": (["lost"] * 3, "FAILED", "lost"),
    "out of memory once": (["out_of_memory", "complete"], "FINISHED", "broken off: 1 out_of_memory"),
    "out of memory": (["out_of_memory"] * 2, "FAILED", f"out_of_memory: {NO_MEMORY[0]}:"),
    "hangs once": (["hang", "complete"], "FINISHED", "broken off: 1 hang"),
    "hangs": (["hang"] * 2, "FAILED", "hang: training stood still for"),
    "diverges": (["diverged"], "FAILED", "diverged: DivergedError: loss is "),
    "raises": (["bug"] * 2, "FAILED", "bug: ValueError: as it does each time"),
    "raises elsewhere": (["bug"] * 3, "FAILED", "bug: OSError: another one each time"),
}


@pytest.fixture(scope="module")
def troubled(new_workplace) -> Workplace:
    """The study in which every configuration has met with its trouble."""
    place = new_workplace("troubled")
    place.run(
        *("sweep", TROUBLED, "--configurations", str(len(TROUBLES)), "--pruner", "none", "--sampler", "random"),
        *("--workers", "2", "--max-retries", "2", "--hang-timeout-s", str(SLOW_S)),
    )
    return place


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_trouble_is_told_apart_and_tried_again_as_its_class_says(troubled: Workplace, trouble: str) -> None:
    number = TROUBLES.index(trouble)
    ended, status, says = EXPECTED[trouble]
    lineage = troubled.study().lineages()[number]
    assert [segment.user_attrs["ended"] for segment in lineage.segments] == ended
    (run,) = troubled.runs(kind="configuration", configuration=str(number))
    assert (run.info.status, run.data.tags["ended"]) == (status, ended[-1])
    shown = troubled.run("status", "--study", "troubled").splitlines()
    (line,) = [one for one in shown if one.startswith(f"#{number:02d} ")]
    assert line.rstrip().endswith(says) if not says else says in line


@pytest.mark.parametrize(
    ("trouble", "file", "says"),
    [
        ("hangs", "stacks.txt", "in meet"),
        ("raises", "traceback.txt", 'raise ValueError("as it does each time")'),
        ("out of memory", "traceback.txt", NO_MEMORY[1]),
    ],
)
def test_the_run_has_what_was_seen_of_the_trouble(troubled: Workplace, trouble: str, file: str, says: str) -> None:
    (run,) = troubled.runs(kind="configuration", configuration=str(TROUBLES.index(trouble)))
    path = troubled.client.download_artifacts(run.info.run_id, file)
    assert says in Path(path).read_text()


def test_what_diverged_keeps_its_last_checkpoint_whose_numbers_are_finite(troubled: Workplace) -> None:
    lineage = troubled.study().lineages()[TROUBLES.index("diverges")]
    assert lineage.run_id is not None
    names = MlflowStore(lineage.run_id, troubled.tracking_uri).names()
    assert [name[:9] for name in names] == ["s0-e00001"] * (lineage.epochs == 1)


@pytest.fixture
def memory_limit() -> Iterator[Path]:
    """A control group whose processes have 2 GiB in all; writing their ids to this file puts them there."""
    controller = Path("/sys/fs/cgroup/memory")
    one, limit, swap = (
        (controller, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if controller.is_dir()
        else (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max")
    )
    group = one / f"thaw-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("control groups have no limit of memory here")
        (group / limit).write_text(str(2**31))
        if (group / swap).exists():
            (group / swap).write_text(str(2**31) if controller.is_dir() else "0")
        yield group / "cgroup.procs"
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "its processes have ended")
        group.rmdir()


def test_what_the_kernel_kills_for_want_of_memory_is_tried_once_more(workplace: Workplace, memory_limit: Path) -> None:
    trouble = "killed for memory once"
    command = workplace.start("train", TROUBLED, "--study", "large", "--config.trouble", trouble, fresh=True)
    memory_limit.write_text(str(command.process.pid))  # and all that it starts from here on
    assert command.wait() == 0, command.output
    (lineage,) = workplace.study("large").lineages().values()
    assert lineage.endings == ["out_of_memory", "complete"]
    assert "broken off: 1 out_of_memory" in workplace.run("status", "--study", "large")


def test_a_sweep_whose_first_configurations_fail_alike_stops_and_says_so(workplace: Workplace) -> None:
    failing = workplace.folder / "failing.py"
    drawn = 'trial.suggest_int("width", 2, 16)'
    text = QUICK.read_text(encoding="utf-8")
    assert drawn in text
    failing.write_text(text.replace(drawn, f"{drawn}, poison=0"), encoding="utf-8")
    sweep = ("sweep", failing, "--configurations", "8", "--workers", "1")
    output = workplace.run(*sweep, code=1)
    assert "the first 3 configurations all failed alike, so the sweep stops here: ValueError: poisoned;" in output
    assert len(workplace.study().lineages()) == 3
    assert "all failed alike" in workplace.run(*sweep, code=1)
    assert len(workplace.study().lineages()) == 3
    failing.write_text(text, encoding="utf-8")
    workplace.run(*sweep, "--accept-change", "true")
    states = [run.data.tags["state"] for run in workplace.runs(kind="configuration")]
    assert (states.count("failed"), len(states)) == (3, 8)


def test_a_worker_that_was_stopped_and_wakes_up_after_its_trial_was_taken_away_drops_it(workplace: Workplace) -> None:
    sweep = Sweep.of(workplace, "--configurations", "1", "--workers", "1")
    command = sweep.start(gate="1 2")
    sweep.progress.wait_for_end_of(" 1 2", command)
    (zombie,) = command.trainers()
    os.kill(zombie.pid, signal.SIGSTOP)
    study = workplace.study("quick")
    study.close_dead()
    assert study.lineages()[0].head.state.name == "RUNNING", "it lives, and its supervisor watches it"
    lost = study.lineages()[0].head
    study.end(lost._trial_id, TrialState.FAIL, "lost")  # as another host would that saw no heartbeat
    os.kill(zombie.pid, signal.SIGCONT)
    sweep.progress.open_gate()
    sweep.progress.wait_for_end_of(" 1 2", command)  # of the segment that continues
    sweep.progress.open_gate()
    assert command.wait() == 0, command.output
    assert "was taken over by another worker; this one drops it" in command.output
    ended = [segment.user_attrs["ended"] for segment in workplace.study("quick").lineages()[0].segments]
    assert ended == ["paused", "lost", "paused", "complete"]
    assert zombie.pid not in [one.pid for one in command.members()]
    wait_until_gone([zombie])
