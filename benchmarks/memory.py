"""Peak memory of a training with and without snapshots, each in a process of its own.

`python -m benchmarks.memory PARAMETERS TRACKING_URI RUN snapshots` trains, and commits a snapshot to that MLflow run
after each epoch; with `none` as the last word it trains alone, connected to MLflow all the same. Either prints its
peak and the size of the state, in bytes.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ours import Thaw
from benchmarks.training import Training

EPOCHS = 8


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Resident memory at its peak, in bytes, and that of the state alone."""

    training: int
    with_snapshots: int
    state: int

    @property
    def snapshots(self) -> float:
        """How many snapshots' worth of memory the snapshots take."""
        return (self.with_snapshots - self.training) / self.state


def peaks(parameters: int, tracking_uri: str, run_id: str) -> Peaks:
    """Measures both."""
    training, state = _child(parameters, tracking_uri, run_id, "none")
    with_snapshots, _ = _child(parameters, tracking_uri, run_id, "snapshots")
    return Peaks(training=training, with_snapshots=with_snapshots, state=state)


def _child(parameters: int, *words: str) -> tuple[int, int]:
    command = [sys.executable, "-m", __name__, str(parameters), *words]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    peak, state = map(int, output.split())
    return peak, state


def _train(parameters: int, tracking_uri: str, run_id: str, *, snapshots: bool) -> int:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    training = Training(parameters, "cpu")
    thaw = Thaw(training, run_id)
    mlflow.MlflowClient().get_run(run_id)
    for _ in range(EPOCHS):
        training.epoch()
        if snapshots:
            thaw.take()
    thaw.close()
    return training.state_bytes


def _peak() -> int:
    """Of this process alone: what `getrusage` says begins with the parent's, from before its exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: no VmHWM; the peak is known on Linux alone")


if __name__ == "__main__":
    state_bytes = _train(int(sys.argv[1]), sys.argv[2], sys.argv[3], snapshots=sys.argv[4] == "snapshots")
    print(_peak(), state_bytes)
