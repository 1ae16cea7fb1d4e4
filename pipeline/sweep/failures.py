"""What an exception, or the end of a process, says about a segment. The rules that go with a class are `lineage`'s."""

import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from pipeline.course import DivergedError
from pipeline.stages.train import is_out_of_memory
from pipeline.sweep import process
from pipeline.sweep.lineage import BUG, DIVERGED, HANG, LOST, OUT_OF_MEMORY, PREEMPTED
from pipeline.sweep.patience import Unsaved
from pipeline.sweep.study import Fenced, Study
from pipeline.tracking.server import is_away

_HELPER_KILLED = "is killed by signal"  # in torch's words for a loader's worker, which raise a plain RuntimeError


class ElsewhereError(Exception):
    """What has ended another process of the trial. `told` is what that has left word of."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(f"rank {told['rank']}: {': '.join(part for part in (told['type'], told['text']) if part)}")
        self.told = told
        self.add_note(told["trace"])


def class_of(error: Exception) -> str:
    """Why a segment ended that this exception has left."""
    if isinstance(error, ElsewhereError):
        return str(error.told["ended"])
    if isinstance(error, Unsaved):
        return PREEMPTED  # no fault of the configuration's
    if isinstance(error, DivergedError):
        return DIVERGED
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if is_away(error):
        return LOST  # the user's code has called MLflow itself; the next segment waits until it answers
    if isinstance(error, RuntimeError) and _HELPER_KILLED in str(error):
        return LOST
    return BUG


def bug(error: Exception, position: list[int] | None, code: str) -> dict[str, Any]:
    """What tells one bug from another: the same twice is final. `code` is the experiment's digest."""
    if isinstance(error, ElsewhereError):
        return {"type": error.told["type"], "place": error.told["place"], "position": position, "code": code}
    return {"type": type(error).__name__, "place": place_of(error), "position": position, "code": code}


def place_of(error: Exception) -> str:
    """The file and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def end_hung(study: Study, pid: int, still_s: float) -> str | None:
    """Takes the trial away from a worker of this host that no longer moves; returns the MLflow run it trains for.

    Raises what the database raises; it may be repeated.
    """
    for trial in study.trials():
        worker = trial.user_attrs.get("worker")
        if trial.state is TrialState.RUNNING and worker is not None and process.is_here(worker, pid):
            with suppress(Fenced):
                study.set(trial._trial_id, "error", f"training stood still for {still_s:.0f} s; stacks.txt says where")
                study.end(trial._trial_id, TrialState.FAIL, HANG)
            return trial.user_attrs.get("run_id")
    return None


class OomKills:
    """Processes that the kernel killed for want of memory: of this control group or, where there is none, of all."""

    def __init__(self) -> None:
        self._seen = _oom_kills()

    def any_new(self) -> bool:
        """Whether there were any since the last time."""
        before, self._seen = self._seen, _oom_kills()
        return self._seen > before


def _oom_kills() -> int:
    for file in (_cgroup_events(), Path("/proc/vmstat")):
        if file is not None and file.is_file():
            for line in file.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _cgroup_events() -> Path | None:
    """The events of this process's control group, version 2 or 1."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            found = Path("/sys/fs/cgroup", path.lstrip("/"), "memory.events")
        elif "memory" in controllers.split(","):
            found = Path("/sys/fs/cgroup/memory", path.lstrip("/"), "memory.oom_control")
        else:
            continue
        # Inside a container its own group is the root of what is mounted, whatever path it is told.
        for file in (found, Path("/sys/fs/cgroup", found.name), Path("/sys/fs/cgroup/memory", found.name)):
            if file.is_file():
                return file
    return None
