"""How soon another worker goes on with what a killed one was training.

`python -m benchmarks.restart` sweeps `experiments/digits.py` with two workers, and kills one of them again and again.
The time is from the kill until the trial that continues its configuration is claimed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import ThawError
from pipeline.sweep.study import Study

KILLS = 10
LOOK_S = 0.01
STUDY = "restart"
ROOT = Path(__file__).parents[1]


def main() -> None:
    with TemporaryDirectory(prefix="benchmark-") as folder:
        url = f"sqlite:///{folder}/optuna.db"
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "PIPELINE_STORAGE": url,
            "PYTHONPATH": str(ROOT),
        }
        process = _sweep(Path(folder), environment)
        try:
            times_s = [_kill_one(process, url) for _ in range(KILLS)]
        finally:
            process.terminate()
            process.wait()
    print(f"{KILLS} kills, {os.cpu_count()} cores: median {median(times_s):.2f} s, longest {max(times_s):.2f} s")


def _sweep(folder: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    flags = ["--study", STUDY, "--configurations", "40", "--pruner", "none", "--workers", "2", "--max-retries", "1000"]
    command = [sys.executable, "-m", "pipeline", "sweep", str(ROOT / "experiments" / "digits.py"), *flags]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)


def _kill_one(sweep: "subprocess.Popen[bytes]", url: str) -> float:
    """Kills the owner of a trial that has committed a checkpoint; returns the seconds until its successor runs."""
    while (victim := _running(url)) is None:
        assert sweep.poll() is None, "the sweep has ended"
        time.sleep(LOOK_S)
    study = Study.load(STUDY, url)
    os.kill(victim.user_attrs["worker"]["pid"], signal.SIGKILL)
    began_s = time.perf_counter()
    while (head := study.lineages()[victim.user_attrs["configuration"]].head).number == victim.number or (
        head.state is TrialState.WAITING
    ):
        time.sleep(LOOK_S)
    return time.perf_counter() - began_s


def _running(url: str) -> FrozenTrial | None:
    try:
        trials = Study.load(STUDY, url).trials()
    except ThawError:  # it is not there yet
        return None
    running = [
        one for one in trials if one.state is TrialState.RUNNING and {"worker", "progress"} <= set(one.user_attrs)
    ]
    return next((one for one in running if one.user_attrs["progress"]["checkpoint"] != one.user_attrs["start"]), None)


if __name__ == "__main__":
    main()
