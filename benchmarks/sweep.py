"""One sweep by us and by others: what it takes, and what a kill in the middle costs.

`python -m benchmarks.sweep` runs each method twice on the same configurations: undisturbed, and with every one of its
processes killed half-way and gone on with as its documentation says. Start, steps and ends are those that the training
itself has logged, which is the same for all.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.sweep_training import CONFIGURATIONS, EPOCHS, ETA, FOLDER, WORKERS, points, workers

ROOT = Path(__file__).parents[1]
OURS, BARE, LEAST = "thaw", "bare", "least"
PEERS = ("optuna", "ray", "syne-tune")
LOOK_S = 0.02
MARK = "SWEEP_MARK"  # in the environment of every process of a method: some leave the process group
LIMIT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of the log."""

    lr: float
    epoch: int
    part: str
    began_s: float
    ended_s: float
    val_loss: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a method has come to.

    Attributes:
        wall_s: from the command to its end.
        start_s: from the command to the first step.
        epochs: trained, all configurations together.
        bare_ms: what these epochs take in the bare loop, each.
        beside_ms: what comes on top of it from one epoch to the next of the same training.
        overall_ms: what comes on top of it from the first step to the last, all between two trainings included.
        again: epochs that were trained again after the kill.
        restarted: configurations that began at epoch 0 again.
        dropped: configurations that were being trained at the kill, not at a rung, and never were again.
        next_step_s: from the kill, at which the next command is started, to its first step.
    """

    method: str
    wall_s: float
    start_s: float
    epochs: int
    bare_ms: float
    beside_ms: float
    overall_ms: float
    best: float
    again: int | None = None
    restarted: int | None = None
    dropped: int | None = None
    next_step_s: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--configurations", type=int, default=36)
    parser.add_argument("--epochs", type=int, default=27, help="epochs a configuration gets at most")
    parser.add_argument("--workers", type=int, default=2, help="configurations that are trained at the same time")
    parser.add_argument("--only", choices=(LEAST, OURS, *PEERS), help="this method alone, beside the bare loop")
    parser.add_argument("--no-kill", action="store_true", help="leave out the second run of each")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    os.environ |= {
        EPOCHS: str(arguments.epochs),
        CONFIGURATIONS: str(arguments.configurations),
        WORKERS: str(arguments.workers),
    }
    load = os.getloadavg()[0]
    print(
        f"{arguments.configurations} configurations, at most {arguments.epochs} epochs, {arguments.workers} workers,",
        end=" ",
    )
    print(f"{os.cpu_count()} cores, load before the start {load:.1f}\n", flush=True)

    before, wall_s, start_s = undisturbed(BARE)
    rows = [row_of(BARE, before, wall_s, start_s, costs(before))]
    for method in (LEAST, OURS, *PEERS) if arguments.only is None else (arguments.only,):
        log, wall_s, start_s = undisturbed(method)
        after = undisturbed(BARE)[0]  # the machine is not as quick at all times
        row = asdict(row_of(method, log, wall_s, start_s, costs(before + after)))
        if method != LEAST and not arguments.no_kill:
            row |= killed(method, len(log) // 2)
        rows.append(Row(**row))
        before = after
        print(f"{table(rows[-1:])}\n", file=sys.stderr, flush=True)
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="ascii")


def undisturbed(method: str) -> tuple[list[Epoch], float, float]:
    """The log, and the seconds from the command to its end and to the first step."""
    with scratch() as folder:
        began_s = time.time()
        with started(method, folder) as process:
            assert process.wait(LIMIT_S) == 0, f"{method} has failed: {(folder / 'output.txt').read_text()[-2000:]}"
        wall_s = time.time() - began_s
        log = read(folder)
        return log, wall_s, min(one.began_s for one in log) - began_s


def killed(method: str, after: int) -> dict[str, Any]:
    """What it costs to kill everything after so many epochs, and to give the command again at once."""
    with scratch() as folder:
        with started(method, folder) as process:
            while len(before := read(folder)) < after:
                assert process.poll() is None, f"{method} has ended: {(folder / 'output.txt').read_text()[-2000:]}"
                time.sleep(LOOK_S)
            kill_all(folder)
        killed_s = time.time()
        before = read(folder)
        with started(method, folder) as process:
            code = process.wait(LIMIT_S)
        if code:
            print(f"{method}, resumed, has failed: {(folder / 'output.txt').read_text()[-2000:]}", file=sys.stderr)
        everything = read(folder)
    later = everything[len(before) :]
    trained, resumed = {(one.lr, one.epoch) for one in before}, {(one.lr, one.epoch) for one in later}
    reached = {lr: 1 + max(epoch for of, epoch in trained if of == lr) for lr, _ in trained}
    stops = rungs(int(os.environ[EPOCHS]))
    continued = {lr for lr, _ in resumed}
    return {
        "again": len(trained & resumed),
        "restarted": sum(epoch == 0 for _, epoch in trained & resumed),
        "dropped": sum(epochs not in stops and lr not in continued for lr, epochs in reached.items()),
        "next_step_s": min(one.began_s for one in later) - killed_s if later else None,
    }


def costs(log: list[Epoch]) -> dict[float, float]:
    """Seconds that an epoch takes in the bare loop, by the configuration's learning rate."""
    return {lr: mean(one.ended_s - one.began_s for one in log if one.lr == lr) for lr in {one.lr for one in log}}


def rungs(max_epochs: int) -> set[int]:
    return {max_epochs} | {ETA**power for power in range(10) if ETA**power < max_epochs}


@contextmanager
def scratch() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it."""
    with TemporaryDirectory(prefix="s-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def started(method: str, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The method's command, in a session of its own; nothing of it is left afterwards."""
    if method == OURS:
        flags = {
            "study": "sweep",
            "configurations": os.environ[CONFIGURATIONS],
            "max-epochs": os.environ[EPOCHS],
            "eta": ETA,
            "sampler": "random",  # with the seed 0 it draws the points of all
            "workers": workers(),
        }
        command = ["-m", "pipeline", "sweep", str(ROOT / "benchmarks" / "sweep_digits.py")]
        command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    else:
        command = ["-m", "benchmarks.sweep_peers", method]
    environment = {
        **os.environ,
        FOLDER: str(folder),
        MARK: str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PIPELINE_STORAGE": f"sqlite:///{folder}/optuna.db",
        "PIPELINE_SPOOL": str(folder / "spool"),
        "SYNETUNE_FOLDER": str(folder),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "PYTHONWARNINGS": "ignore",
    }
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_all(folder)
        process.wait()


def kill_all(folder: Path) -> None:
    """SIGKILL to all of them at once: stopped first, so that none sees another die and acts on it."""
    while victims := list(marked(folder)):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                try:
                    victim.send_signal(number)
                except psutil.NoSuchProcess:
                    continue
        psutil.wait_procs(victims, timeout=5)


def marked(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(folder):
                yield process
        except psutil.Error:
            continue


def read(folder: Path) -> list[Epoch]:
    """In the order in which they ended; a line that is being written is not read."""
    file = folder / "epochs.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return sorted((Epoch(**json.loads(line)) for line in lines), key=lambda one: one.ended_s)


def row_of(method: str, log: list[Epoch], wall_s: float, start_s: float, costs: Mapping[float, float]) -> Row:
    strangers = {one.lr for one in log} - {point["lr"] for point in points()}
    assert not strangers, f"{method} has trained other configurations: {strangers}"
    bare_s = mean(costs[one.lr] for one in log)
    span_s = max(one.ended_s for one in log) - min(one.began_s for one in log)
    parts = defaultdict(list)
    for one in log:
        parts[one.part].append(one)
    beside_s = [
        after.began_s - before.began_s - costs[before.lr]
        for epochs in parts.values()
        for before, after in pairwise(epochs)
    ]
    return Row(
        method=method,
        wall_s=wall_s,
        start_s=start_s,
        epochs=len(log),
        bare_ms=1000 * bare_s,
        beside_ms=1000 * mean(beside_s),
        overall_ms=1000 * (span_s * workers() / len(log) - bare_s),
        best=min(one.val_loss for one in log),
    )


def table(rows: list[Row]) -> str:
    head = (
        f"{'':10} {'wall':>7} {'start':>6} {'epochs':>6} {'bare':>7} {'beside':>13} {'overall':>13} {'best':>7}"
        f" {'again':>5} {'restarted':>9} {'dropped':>7} {'next step':>9}\n"
        f"{'':10} {'s':>7} {'s':>6} {'':6} {'ms':>7} {'ms':>7} {'%':>5} {'ms':>7} {'%':>5}"
    )
    lines = [
        f"{row.method:10} {row.wall_s:7.1f} {row.start_s:6.1f} {row.epochs:6} {row.bare_ms:7.1f}"
        f" {row.beside_ms:7.1f} {100 * row.beside_ms / row.bare_ms:5.0f}"
        f" {row.overall_ms:7.1f} {100 * row.overall_ms / row.bare_ms:5.0f} {row.best:7.4f}"
        f" {shown(row.again):>5} {shown(row.restarted):>9} {shown(row.dropped):>7} {shown(row.next_step_s):>9}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
