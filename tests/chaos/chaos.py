"""What happens to a sweep at random: its processes are killed, or stopped until they have lost their trial."""

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import psutil
import psycopg
from optuna.trial import FrozenTrial, TrialState

from pipeline.databases import sqlite_file
from pipeline.sweep.lineage import LOST
from pipeline.sweep.study import Fenced, Study
from tests.integration.commands import Command, wait_until, wait_until_gone
from tests.integration.sweeps import BATCHES, Sweep

LINES = 6  # at most so many batches between two events, and while a server is away
MORE = 5  # configurations
QUIET_S = 1.0  # a server is not away for longer once nobody can train any more without it

Victim = Literal["worker", "supervisor", "session"]


class Server(Protocol):
    """What a sweep keeps its databases in."""

    def stop(self) -> None:
        """At once, whatever it is doing."""

    def start(self) -> None:
        """Returns when it answers again."""


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A trial as it was when it was taken away from a process that did not know of it.

    Attributes:
        how: what the test did to that process.
    """

    how: str
    trial: FrozenTrial


class Chaos:
    """A sweep and what is done to it; each event is printed, with its time.

    Moments are counted in batches that somebody has trained since the event before, so that the machine's speed
    decides nothing but what the processes are doing just then.
    """

    def __init__(self, sweep: Sweep, chance: random.Random, name: str, configurations: int) -> None:
        """The sweep's command has yet to be told how many `configurations`."""
        self._sweep, self._chance, self._name, self.configurations = sweep, chance, name, configurations
        self._began_s = time.monotonic()
        self._zombies: list[psutil.Process] = []
        self.fences: list[Fence] = []
        self.kills = 0
        self.commands: list[Command] = []
        self._start()

    @property
    def command(self) -> Command:
        """The newest: the others are ended, or about to."""
        return self.commands[-1]

    @cached_property
    def _study(self) -> Study:
        return self._sweep.workplace.study(self._name)

    def kill_worker(self) -> None:
        """One worker, whether it trains, starts or looks for work."""
        self._wait()
        self._kill_worker()

    def kill_supervisor(self) -> None:
        """The supervisor alone: the next command starts while the workers of this one still take their checkpoints."""
        self._wait()
        self._kill_supervisor()
        self._start()

    def kill_session(self) -> None:
        """All processes at once, as a machine that goes away."""
        self._wait()
        self._kill_session()
        self._start()

    def take_away(self, server: Server, victim: Victim) -> None:
        """A server is away while a few batches are trained, and one of those who miss it is killed meanwhile.

        A command that finds it away when it starts says so and ends: so the next one starts when it is back.
        """
        self._wait()
        self._trainers()  # it has found its databases
        server.stop()
        self._say(f"{type(server).__name__} is away")
        trained = self._sweep.progress.wait_while_it_moves(self._chance.randint(1, LINES), QUIET_S)
        if victim == "worker":
            self._kill_worker()
        elif victim == "supervisor":
            self._kill_supervisor()
        else:
            self._kill_session()
        server.start()
        self._say(f"{type(server).__name__} is back, after {trained} batches")
        if victim != "worker":
            self._start()

    def make_orphan_a_zombie(self) -> None:
        """A worker is stopped, its supervisor killed, and its trial ended, as who has seen no heartbeat for long does.

        The next command would do so after the grace that it gives a storage which may have been away: minutes.
        """
        zombie, trial = self._stop_one()
        self._kill_supervisor()
        self._start()
        with suppress(Fenced):
            self._study.end(trial._trial_id, TrialState.FAIL, LOST)
        self._wake_when_fenced(zombie, trial, "orphan")

    def make_hung_a_zombie(self) -> None:
        """A worker is stopped for longer than training may stand still; once in a run, for twice is final."""
        zombie, trial = self._stop_one(to_be_seen=True)
        self._wake_when_fenced(zombie, trial, "hung")

    def finish(self) -> None:
        """Returns when all is trained and every process of it has ended."""
        code = self.command.wait()
        self._say(f"ended with {code}")
        assert code == 0, self.command.output
        wait_until_gone(self._zombies)
        for command in self.commands:
            command.wait()
            assert "Traceback" not in command.output, command.output

    def _start(self) -> None:
        flags = ("--configurations", str(self.configurations))
        self.commands.append(self._sweep.start(*self._sweep.arguments, *flags))

    def _go_on(self) -> None:
        """Asks for more configurations, of a sweep that was quicker than what happens to it."""
        assert self.command.wait() == 0, self.command.output
        self.configurations += MORE
        self._say(f"all is trained; {self.configurations} configurations from now on")
        self._start()

    def _trainers(self) -> list[psutil.Process]:
        """Those who train now."""
        while True:
            found = wait_until(lambda: self.command.trainers() or self.command.has_ended, "there is a worker")
            if found is not True:
                return found
            self._go_on()

    def _wait(self) -> str:
        """Returns the last of a few lines that are trained from now on."""
        self._sweep.progress.skip()
        count = self._chance.randint(1, LINES)
        while not self._sweep.progress.wait_for_count(count, self.command):
            self._go_on()
        return self._sweep.progress.lines[-1]

    def _kill_worker(self) -> None:
        victim = self._chance.choice(self._trainers())
        self._kill(f"worker {victim.pid}", [victim], lambda: os.kill(victim.pid, signal.SIGKILL))

    def _kill_supervisor(self) -> None:
        supervisor = self.command.process.pid
        self._kill(f"supervisor {supervisor}", [], lambda: os.kill(supervisor, signal.SIGKILL))
        self.command.process.wait()

    def _kill_session(self) -> None:
        self._kill("session", [], self.command.kill)

    def _kill(self, what: str, victims: list[psutil.Process], kill: Callable[[], None]) -> None:
        self._say(f"kill {self.kills + 1}: {what}")
        kill()
        wait_until_gone(victims)
        self.kills += 1

    def _stop_one(self, *, to_be_seen: bool = False) -> tuple[psutil.Process, FrozenTrial]:
        """A worker, stopped while it has a trial; `to_be_seen`: inside an epoch, and by a supervisor that lives."""
        while True:
            number = int(self._wait().split()[1])
            trial = self._study.trials()[number]
            owner = trial.user_attrs["worker"]
            if trial.state.is_finished() or (to_be_seen and owner["supervisor"]["pid"] != self.command.process.pid):
                continue
            try:
                worker = psutil.Process(owner["pid"])
                worker.suspend()
            except psutil.NoSuchProcess:  # an orphan, which has left since it trained that line
                continue
            wait_until(lambda worker=worker: worker.status() == psutil.STATUS_STOPPED, "the worker has stopped")
            is_there = not to_be_seen or self._last_step(number) % BATCHES != BATCHES - 1
            # The lock comes first: who holds it keeps this process from the study too.
            if is_there and not self._holds_a_lock(worker) and not self._trial(trial).state.is_finished():
                self._say(f"stopped worker {worker.pid} in trial {number}")
                return worker, trial
            worker.resume()

    def _last_step(self, number: int) -> int:
        (steps,) = [steps for (_, trial), steps in self._sweep.trained().items() if trial == number]
        return steps[-1]

    def _holds_a_lock(self, worker: psutil.Process) -> bool:
        """Whether a worker that was stopped keeps others from a database, which then nobody but itself can help."""
        urls = (self._sweep.workplace.tracking_uri, self._sweep.workplace.storage_url)
        return any(_is_locked(file) for file in filter(None, map(sqlite_file, urls))) or any(
            _is_in_transaction(url, worker) for url in urls if url.startswith("postgresql:")
        )

    def _wake_when_fenced(self, zombie: psutil.Process, trial: FrozenTrial, how: str) -> None:
        fenced = wait_until(lambda: (one := self._trial(trial)).state.is_finished() and one, "its trial is taken away")
        self.fences.append(Fence(how=how, trial=fenced))
        zombie.resume()
        self._zombies.append(zombie)
        self._say(f"trial {trial.number} ended as {fenced.user_attrs['ended']}; worker {zombie.pid} wakes up")

    def _trial(self, trial: FrozenTrial) -> FrozenTrial:
        return self._study.storage.get_trial(trial._trial_id)

    def _say(self, event: str) -> None:
        print(f"{time.monotonic() - self._began_s:6.2f} s  {event}", flush=True)


def _is_locked(file: Path) -> bool:
    """Whether somebody keeps all others from a SQLite database."""
    connection = sqlite3.connect(file, timeout=1.0, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


def _is_in_transaction(url: str, worker: psutil.Process) -> bool:
    """Whether PostgreSQL has begun for a process what it has not ended yet: it may hold rows that others wait for."""
    ports = [connection.laddr.port for connection in worker.net_connections("tcp")]
    with psycopg.connect(url, autocommit=True) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE client_port = ANY(%s) AND state <> 'idle'"
        found = connection.execute(query, [ports]).fetchone()
    assert found is not None
    return bool(found[0])
