"""The command line in a folder of its own: started, watched, killed and read afterwards, all for real."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial
from torch import Tensor

from pipeline.checkpoint import Manifest, MlflowStore, load
from pipeline.sweep.study import Study
from pipeline.tracking.runs import EPOCH_S, is_reported
from tests.integration.preloaded import Forked

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
# Nothing here may take as long; it only ends a test that would hang.
PATIENCE_S = 240.0


class Command:
    """One `python -m pipeline ...`, the leader of a process group of its own.

    Attributes:
        process: its first process, the supervisor.
        ended_fd: a file descriptor that is readable once that has ended.
    """

    def __init__(self, process: "subprocess.Popen[str] | Forked") -> None:
        self.process = process
        self.ended_fd = os.pidfd_open(process.pid)
        self._lines: list[str] = []
        self._grown = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self._lines.append(line)
                self._grown.notify_all()
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    @property
    def output(self) -> str:
        """What it has printed so far, to stdout and stderr."""
        return "".join(self._lines)

    @property
    def has_ended(self) -> bool:
        return bool(select.select([self.ended_fd], [], [], 0)[0])

    def wait_for_output(self, text: str) -> None:
        """Waits until `text` was printed."""
        with self._grown:
            seen = self._grown.wait_for(lambda: text in self.output or self._ended, PATIENCE_S)
        assert seen, f"{text!r} was not printed, but:\n{self.output}"
        assert text in self.output, f"it ended without {text!r}:\n{self.output}"

    def signal_group(self, number: signal.Signals) -> None:
        """To every process of the group at once, as a terminal or Slurm does."""
        os.killpg(self.process.pid, number)

    def wait(self) -> int:
        """The exit code, once it has ended and every process that wrote to its output as well."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive(), f"something of it lives on:\n{self.output}"
        return code

    def kill(self) -> None:
        """SIGKILL to every process of the group; returns when all of them are gone."""
        members = self.members()
        self.signal_group(signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        wait_until_gone(members)
        self._reader.join(PATIENCE_S)

    def members(self) -> list[psutil.Process]:
        """The processes of its group."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self.process.pid:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found

    def trainers(self) -> list[psutil.Process]:
        """The processes that train, or will once they have started: children of the forkserver."""
        try:
            children = psutil.Process(self.process.pid).children()
            servers = [child for child in children if "forkserver" in " ".join(child.cmdline())]
            return [trainer for server in servers for trainer in server.children()]
        except psutil.NoSuchProcess:
            return []


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """Returns when all have ended; those that nobody waits for (zombies) count as ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    for process in processes:
        try:
            fd = os.pidfd_open(process.pid)  # readable when it ends
        except ProcessLookupError:
            continue
        try:
            if process.is_running():
                ended, _, _ = select.select([fd], [], [], max(0.0, deadline_s - time.monotonic()))
                assert ended, f"{process} lives on"
        finally:
            os.close(fd)


class Progress:
    """The lines that an experiment under test writes to a named pipe, and a gate that it waits at.

    The experiment finds them through the environment: see `voice.py`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        os.mkfifo(folder / "progress")
        os.mkfifo(folder / "gate")
        # Open in both directions: a writer never waits for a reader, a reader never finds the end.
        self._fd = os.open(folder / "progress", os.O_RDWR | os.O_NONBLOCK)
        self._gate_fd = os.open(folder / "gate", os.O_RDWR)
        self._rest = b""
        self.lines: list[str] = []

    def environment(self, gate: str = "") -> dict[str, str]:
        """What the command needs to know; at the line `gate` (each, if `*`) it waits until `open_gate`."""
        return {"PROGRESS": str(self._folder), "PROGRESS_GATE": gate}

    def next(self, command: Command) -> str | None:
        """The next line; None when the command has ended without another."""
        while b"\n" not in self._rest:
            readable, _, _ = select.select([self._fd, command.ended_fd], [], [], PATIENCE_S)
            assert readable, f"nothing happened:\n{command.output}"
            if self._fd not in readable:
                return None
            self._rest += os.read(self._fd, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        self.lines.append(line.decode())
        return self.lines[-1]

    def wait_for(self, line: str, command: Command) -> None:
        """Waits until the experiment has written this line."""
        while (found := self.next(command)) != line:
            assert found is not None, f"it ended before {line!r}, after {self.lines[-3:]}:\n{command.output}"

    def wait_for_end_of(self, line: str, command: Command) -> None:
        """Waits until the experiment has written a line that ends so."""
        while not (found := self.next(command) or "").endswith(line):
            assert found, f"it ended before {line!r}, after {self.lines[-3:]}:\n{command.output}"

    def wait_for_count(self, count: int, command: Command) -> bool:
        """Waits for so many lines; False when the command ended before."""
        return all(self.next(command) is not None for _ in range(count))

    def wait_while_it_moves(self, count: int, quiet_s: float) -> int:
        """Waits for so many lines, or until none has come for that long; returns how many came."""
        for found in range(count):
            while b"\n" not in self._rest:
                readable, _, _ = select.select([self._fd], [], [], quiet_s)
                if not readable:
                    return found
                self._rest += os.read(self._fd, 65536)
            self._rest = self._rest.partition(b"\n")[2]
        return count

    def skip(self) -> None:
        """Forgets the lines that are there: the next is one that is written after this."""
        with suppress(BlockingIOError):
            while os.read(self._fd, 65536):
                pass
        self._rest = b""

    def open_gate(self) -> None:
        """Lets one pass, once: who waits there, or whoever comes first."""
        os.write(self._gate_fd, b".")

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._gate_fd)


def signal_all_and_open(command: Command, number: signal.Signals, progress: Progress) -> None:
    """Sends it to the whole group, and opens the gate when the trainer has taken it."""
    (trainer,) = command.trainers()
    command.signal_group(number)
    wait_until(lambda: not pending(trainer.pid, number), "the trainer takes the signal")
    progress.open_gate()


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether this signal was sent to a process that has not taken it yet."""
    return bool(signal_mask(pid, "ShdPnd") >> (number - 1) & 1)


def signal_mask(pid: int, field: str) -> int:
    """A set of signals in what the operating system says of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    (found,) = [line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(found, 16)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a configuration has come to, as its MLflow run shows it.

    Attributes:
        state: of its last checkpoint.
        text: the file `state.json` of that checkpoint.
        curves: each metric's history, as MLflow has it: pairs of step and value.
        reported: those of them that the training itself has reported.
    """

    run: Run
    manifest: Manifest
    state: dict[str, Any]
    text: str
    curves: dict[str, list[tuple[int, float]]]
    checkpoints: list[str]

    @property
    def reported(self) -> dict[str, list[tuple[int, float]]]:
        return {name: points for name, points in self.curves.items() if is_reported(name)}


class Workplace:
    """A folder with databases of its own, and the commands that were started in it.

    Given other databases, the commands find them through the environment; `environment` is what else is in theirs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tracking_uri: str | None = None,
        storage_url: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tracking_uri = tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        self.storage_url = storage_url or f"sqlite:///{folder / 'optuna.db'}"
        given = {"MLFLOW_TRACKING_URI": tracking_uri, "PIPELINE_STORAGE": storage_url}
        self._given = {**(environment or {}), **{name: value for name, value in given.items() if value is not None}}
        self._commands: list[Command] = []
        self._progress: list[Progress] = []
        self._stores: dict[str, MlflowStore] = {}

    def start(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None, fresh: bool = False
    ) -> Command:
        """Starts `python -m pipeline ARGUMENTS` and returns at once.

        `fresh`: as a new interpreter. Without it, all that it imports is there already.
        """
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "PIPELINE_", "PROGRESS"))}
        told = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PIPELINE_SPOOL": str(self.folder / "spool"),
            "PIPELINE_REPORT_EVERY_S": "0",  # else each command would draw pictures that no test looks at
            **self._given,
            **(environment or {}),
        }
        words = [str(argument) for argument in arguments]
        process = self._fresh(words, told) if fresh else Forked(self.folder, words, told)
        command = Command(process)
        self._commands.append(command)
        return command

    def _fresh(self, arguments: list[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str | Path, code: int = 0, environment: Mapping[str, str] | None = None) -> str:
        """Runs a command to its end, which must be `code`. Returns what it printed."""
        command = self.start(*arguments, environment=environment)
        found = command.wait()
        assert found == code, f"exit code {found}, expected {code}:\n{command.output}"
        return command.output

    def progress(self) -> Progress:
        """A new channel to an experiment under test."""
        progress = Progress(self.folder / f"progress-{len(self._progress)}")
        self._progress.append(progress)
        return progress

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def runs(self, **tags: str) -> list[Run]:
        """The MLflow runs that bear all these tags."""
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return list(self.client.search_runs(ids, query, order_by=["attributes.start_time ASC"]))

    def store(self, run_id: str) -> MlflowStore:
        """The checkpoints of a run; what was downloaded once is there the next time."""
        if run_id not in self._stores:
            self._stores[run_id] = MlflowStore(run_id, self.tracking_uri)
        return self._stores[run_id]

    def study_names(self) -> list[str]:
        return sorted({run.data.tags["study"] for run in self.runs(kind="study")})

    def study(self, name: str | None = None) -> Study:
        """A study, by default the only one."""
        if name is None:
            (name,) = self.study_names()
        return Study.load(name, self.storage_url)

    def trials(self, name: str | None = None) -> list[FrozenTrial]:
        return self.study(name).trials()

    def trained(self, **tags: str) -> Trained:
        """The only configuration with these tags."""
        (run,) = self.runs(kind="configuration", **tags)
        store = MlflowStore(run.info.run_id, self.tracking_uri)
        names = store.names()
        manifest, state = load(store, names[-1])
        curves = {
            name: [(m.step, m.value) for m in self.client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        text = (store.get(names[-1]) / "state.json").read_text(encoding="utf-8")
        return Trained(run=run, manifest=manifest, state=state, text=text, curves=curves, checkpoints=names)

    def close(self) -> None:
        """Ends whatever was started here and still runs."""
        for command in self._commands:
            members = command.members()
            if members:
                command.signal_group(signal.SIGKILL)
                wait_until_gone(members)
            command.process.wait(PATIENCE_S)
            command.wait()
            assert command.process.stdout is not None
            command.process.stdout.close()
            os.close(command.ended_fd)
        for progress in self._progress:
            progress.close()
        self._commands, self._progress = [], []


def assert_same_training(left: Trained, right: Trained) -> None:
    """Fails at the first bit in which the two ended differently; times and trial numbers may."""
    assert_same_tensors(left.state, right.state)
    assert left.text == right.text
    assert left.manifest.position == right.manifest.position
    assert left.manifest.step == right.manifest.step
    assert _reports(left) == _reports(right)
    assert left.manifest.best is not None
    assert right.manifest.best is not None
    assert (left.manifest.best.epoch, left.manifest.best.value) == (
        right.manifest.best.epoch,
        right.manifest.best.value,
    )
    assert left.reported == right.reported


def assert_each_step_once(trained: Trained, epochs: int) -> None:
    """Every metric has one point an epoch, in order."""
    for name, points in trained.curves.items():
        assert [step for step, _ in points] == list(range(1, epochs + 1)), name
    assert {EPOCH_S, *trained.manifest.history[0].metrics} == set(trained.curves)


def assert_same_tensors(left: Any, right: Any, path: str = "state") -> None:
    from tests.checkpoint.comparing import assert_same

    assert_same(left, right, path)


def tensors(state: Any, path: str = "state") -> dict[str, Tensor]:
    """Every tensor in a state, by its path."""
    if isinstance(state, Tensor):
        return {path: state}
    items: Any = state.items() if isinstance(state, Mapping) else enumerate(state) if _is_list(state) else ()
    return {name: tensor for key, item in items for name, tensor in tensors(item, f"{path}.{key}").items()}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _reports(trained: Trained) -> list[tuple[int, dict[str, float]]]:
    return [(report.epoch, dict(report.metrics)) for report in trained.manifest.history]


def _best(trained: Trained) -> tuple[int, float]:
    assert trained.manifest.best is not None
    return trained.manifest.best.epoch, trained.manifest.best.value


def wait_until(true: Callable[[], Any], what: str) -> Any:
    """For what the operating system tells no other way: asks until the answer is true, and returns it."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (answer := true()):
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.01)
    return answer
