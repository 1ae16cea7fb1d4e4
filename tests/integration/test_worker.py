"""Workers that a scheduler of machines starts, signals and starts again: they join a study that was begun elsewhere."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.signals import StopRequest
from pipeline.sweep.opening import _threads, found_here
from pipeline.sweep.pulse import Pulse
from pipeline.sweep.segment import Keeping
from pipeline.sweep.study import Study
from pipeline.sweep.worker import OVER_S, work
from tests.integration.commands import Command, Workplace
from tests.integration.in_process import enter, in_process, open_quick
from tests.integration.sweeps import QUICK, Sweep, assert_sound

WORKER = ("worker", "--study", "quick")


def another_machine(workplace: Workplace) -> Workplace:
    """A folder with a copy of the experiment and nothing else, which finds the databases through its environment."""
    place = Workplace(
        workplace.folder.parent / "another machine",
        tracking_uri=workplace.tracking_uri,
        storage_url=workplace.storage_url,
    )
    (place.folder / "experiments").mkdir()
    (workplace.folder / "experiments" / "quick.py").rename(place.folder / "experiments" / "quick.py")
    return place


def test_a_worker_that_is_signalled_as_slurm_does_is_continued_by_the_next_on_another_machine(workplace: Workplace):
    experiment = workplace.folder / "experiments" / "quick.py"
    experiment.parent.mkdir()
    shutil.copy(QUICK, experiment)
    began = workplace.run("sweep", experiment, "--configurations", "3", "--workers", "0")
    assert "study quick waits for workers: python -m pipeline worker --study quick" in began
    assert workplace.study("quick").attrs["site"]["threads"] == 0, "this machine is none that works"

    place = another_machine(workplace)
    sweep = Sweep.of(place)

    def worker(*flags: str, gate: str = "") -> Command:
        return place.start(*WORKER, *flags, environment=sweep.environment(gate))

    command = worker("--grace-s", "1", gate="0 3")  # where it waits, so that it can take no checkpoint
    sweep.progress.wait_for_end_of(" 0 3", command)
    command.signal_group(signal.SIGTERM)
    assert command.wait() == 75, command.output
    assert "--grace-s 1: the time is up; what could not be saved is trained again" in command.output
    assert "Traceback" not in command.output
    assert [trial.user_attrs["ended"] for trial in place.trials("quick")] == ["preempted"]
    assert place.study("quick").attrs["site"]["threads"] == _threads(1)

    command = worker()
    assert sweep.progress.wait_for_count(9, command)
    command.signal_group(signal.SIGTERM)
    assert command.wait() == 75, command.output
    assert "Traceback" not in command.output
    assert "trains until epoch 1, from" not in command.output, "there was no checkpoint"
    (study_run,) = place.runs(kind="study")
    assert study_run.info.status == "KILLED"

    command = worker()
    assert command.wait() == 0, command.output
    assert_sound(sweep, configurations=3)
    place.close()


def work_as_told(folder: Path, name: str, results) -> None:
    """Works on a study of one configuration for one segment, then until it is stopped, which it is when all is done."""
    study = enter(folder, lambda: Study.load(name, f"sqlite:///{folder / 'optuna.db'}"))
    pulse = Pulse(multiprocessing.get_context(), None)
    once = work(study, StopRequest(), pulse=pulse, keeping=Keeping(), until="segment")
    after_one = [trial.state.name for trial in study.trials()]
    stop = StopsWhenOver(study)
    forever = work(study, stop, pulse=pulse, keeping=Keeping(), until="stopped")
    results.send((once, after_one, forever, [lineage.ended for lineage in study.lineages().values()]))


class StopsWhenOver(StopRequest):
    """Gives a study that is over one configuration more, and stops when that is done as well."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study

    def wait(self, timeout_s: float) -> bool:
        assert timeout_s == OVER_S
        if self._study.spec.configurations == 2:
            self.ask("a test")
        else:
            self._study.accept({"configurations": (1, 2)})
        return False


def test_a_worker_leaves_after_one_segment_or_stays_when_nothing_is_left_as_it_is_told(tmp_path: Path):
    in_process(open_quick, tmp_path, ["one"], 1, "halving")
    once, after_one, forever, ended = in_process(work_as_told, tmp_path, "one")
    assert (once, after_one) == ("left", ["PRUNED"])
    assert (forever, ended) == ("stopped", ["complete", "paused"])


def test_threads_are_the_cores_for_each_worker_or_what_the_environment_says(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert [_threads(workers) for workers in (0, 1, 3, 100)] == [0, 64, 21, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert [_threads(workers) for workers in (0, 1, 3)] == [0, 4, 4]


def test_the_experiment_is_found_where_it_was_or_under_the_working_directory(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = "/home/somebody/project/experiments/mine.py"
    with pytest.raises(UsageError, match=r"needs its experiment .*mine\.py, which is not on this machine"):
        found_here("mine", stored)
    Path("mine.py").touch()
    assert found_here("mine", stored) == Path("mine.py")
    Path("experiments").mkdir()
    Path("experiments/mine.py").touch()
    assert found_here("mine", stored) == Path("experiments/mine.py")
    assert found_here("mine", str(tmp_path / "mine.py")) == tmp_path / "mine.py"
