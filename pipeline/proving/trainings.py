"""The trainings of a proof, each in processes of its own, because a kill must be a real one."""

import logging
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import psutil

from pipeline import signals
from pipeline.checkpoint import Position
from pipeline.errors import ThawError
from pipeline.proving.plan import Kill, describe
from pipeline.proving.record import Moment, read_record
from pipeline.proving.trainer import CHECKPOINTS, Task, work

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class Strike:
    """A kill that came.

    Attributes:
        signal: its name.
        at: the position it came at.
    """

    signal: str
    at: Position

    def describe(self, *, stages: bool) -> str:
        """`SIGKILL after 3 batches of epoch 1`."""
        return f"{self.signal} {describe(self.at, stages=stages)}"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What one process of the killed training did.

    Attributes:
        begun: the position it resumed from; None for the start.
        moments: all of it; what is lost by the kill is there again in the next stretch.
        strike: the kill that ended it, if one did.
    """

    begun: Position | None
    moments: tuple[Moment, ...]
    strike: Strike | None


class Trainings:
    """Runs trainings of one experiment in the folder that `task` names."""

    def __init__(self, task: Task, context: ForkServerContext, *, show_traceback: bool) -> None:
        self._task = task
        self._context = context
        self._show_traceback = show_traceback

    def checkpoints(self, name: str) -> Path:
        return self._task.scratch / name / CHECKPOINTS

    def prepare(self) -> None:
        """Raises ThawError: `prepare` failed."""
        with _Process(self._task, self._context) as process:
            self._end(process, "prepare", process.receive())

    def undisturbed(self, name: str, look_at: tuple[Position, ...] = ()) -> dict[Position, Moment]:
        """Trains in one process, started from nothing. Returns its moments by their positions.

        From nothing, so that it differs from the others in all that a new command may differ in: the order of
        sets, for instance. Raises ThawError: training failed.
        """
        task = replace(self._task, name=name, number=0, look_at=look_at)
        with _Process(task, get_context("spawn")) as process:
            self._end(process, "training", process.receive())
        return {moment.at: moment for moment in read_record(task.record)}

    def killed(self, name: str, plan: Sequence[Kill], *, stages: bool) -> list[Stretch]:
        """Trains, is killed as planned, and goes on each time.

        Raises ThawError: training failed.
        """
        stretches: list[Stretch] = []
        finished = False
        while not finished:
            number = len(stretches)
            kill = plan[number] if number < len(plan) else None
            task = replace(self._task, name=name, number=number, kill=kill)
            strike = stretches[-1].strike if stretches else None
            after = strike.describe(stages=stages) if strike is not None else None
            what = "training" if after is None else f"training, killed by {after} and begun again,"
            begun: Position | None = None
            with _Process(task, self._context) as process:
                message = process.receive()
                if message[0] == "resumed":
                    begun = message[1]
                if after is not None:
                    whence = "the start" if begun is None else f"the checkpoint {describe(begun, stages=stages)}"
                    log.info("killed by %s; goes on from %s", after, whence)
                strike, finished = self._end(process, what, message)
            stretches.append(Stretch(begun=begun, moments=tuple(read_record(task.record)), strike=strike))
        return stretches

    def _end(self, process: "_Process", what: str, message: tuple[Any, ...]) -> tuple[Strike | None, bool]:
        """Waits until the process ends or is killed. Returns the kill, if one came, and whether all is done."""
        struck: Strike | None = None
        while True:
            match message:
                case ("strike", at):
                    struck = process.strike(at)
                    if struck.signal == signal.SIGKILL.name:
                        return struck, False
                case ("ended", how):
                    return struck, how == "complete"
                case ("failed", reason, trace):
                    if self._show_traceback:
                        print(trace, file=sys.stderr)
                    raise ThawError(f"{what} failed: {reason}")
            message = process.receive()


class _Process:
    """A process of a task; ended with all that it started when the block is left."""

    def __init__(self, task: Task, context: ForkServerContext | SpawnContext) -> None:
        self._task = task
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(task, theirs))
        with signals.blocked():  # its first moments must not be its last when the whole group is signalled
            self._process.start()
        theirs.close()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *exc: object) -> None:
        self._kill()
        self._pipe.close()

    def receive(self) -> tuple[Any, ...]:
        """What it says next. Raises ThawError if it ends without a word."""
        multiprocessing.connection.wait([self._pipe, self._process.sentinel])
        try:
            if self._pipe.poll():
                return self._pipe.recv()  # type: ignore[no-any-return]
        except EOFError:
            pass
        self._process.join()
        output = self._task.folder / "output.txt"
        lines = output.read_text(encoding="utf-8", errors="replace").split("\n") if output.exists() else []
        last = next((f"; it last said: {line.strip()}" for line in reversed(lines) if line.strip()), "")
        raise ThawError(f"training ended by itself, exit code {self._process.exitcode}{last}")

    def strike(self, at: Position) -> Strike:
        """Sends the signal that the process waits for at this position."""
        assert self._task.kill is not None and self._process.pid is not None
        number = self._task.kill.signal
        if number == signal.SIGKILL:
            self._kill()
        else:
            os.kill(self._process.pid, number)
        return Strike(signal=number.name, at=at)

    def _kill(self) -> None:
        """SIGKILL, first to the process; its loader's workers would notice only some seconds later."""
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self._process.kill()
        self._process.join()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
