"""How many workers one PostgreSQL carries.

`python -m benchmarks.scale` starts a server of its own, which waits for its disk as a real one does, and
takes three looks: sweeps of 1 to 8 real workers, whose epochs sleep; what each call takes, with 10 to 1,000 trials that
run; and 1,000 simulated workers, each with a connection of its own. What it can carry follows from its CPU time.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import psutil
import sqlalchemy

from benchmarks import scale_workers
from benchmarks.scale_sleeping import EPOCH_S, FOLDER, MAX_EPOCHS
from benchmarks.scale_workers import CLAIM, EPOCH, SEGMENT, WARM_UP, Times
from pipeline.sweep.storage import prepare_storage
from pipeline.sweep.study import Study
from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[1]
WORKERS = (1, 2, 4, 8)
OPEN = (10, 100, 1_000)
PROCESSES = 16
SEGMENT_EPOCHS = 27
TARGET, TARGET_EPOCH_S = 1_000, 10.0
PER_PROCESS = 3  # connections: training, its checkpoints, its heartbeats


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a database has done: CPU seconds of all its processes, and statements."""

    cpu_s: float
    statements: int

    def __sub__(self, other: "Used") -> "Used":
        return Used(cpu_s=self.cpu_s - other.cpu_s, statements=self.statements - other.statements)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one call: milliseconds of the worker, CPU milliseconds of the database, statements."""

    worker_ms: float
    database_ms: float
    statements: float


class Database:
    """A server with its counters, and one connection to look at them."""

    def __init__(self, workers: int) -> None:
        self.server = PostgresServer(
            fsync="on",
            max_connections=PER_PROCESS * workers + 50,
            shared_preload_libraries="pg_stat_statements",
        )
        self._engine = sqlalchemy.create_engine(self.server.database(), isolation_level="AUTOCOMMIT")
        self._look = self._engine.connect()
        self._look.execute(sqlalchemy.text("CREATE EXTENSION pg_stat_statements"))

    def study(self) -> str:
        """The URL of a new database for studies."""
        url = self.server.database()
        prepare_storage(url)
        return url

    def used(self) -> Used:
        """Since its start."""
        server = psutil.Process(self.server.pid)
        ended = server.cpu_times()
        times = [ended.children_user, ended.children_system]
        for one in (server, *server.children(recursive=True)):
            try:
                times += one.cpu_times()[:2]
            except psutil.NoSuchProcess:
                continue
        calls = self._look.execute(sqlalchemy.text("SELECT coalesce(sum(calls), 0) FROM pg_stat_statements"))
        return Used(cpu_s=sum(times), statements=int(calls.scalar_one()))

    def connections(self, url: str) -> int:
        text = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name"
        return int(self._look.execute(sqlalchemy.text(text), {"name": url.rpartition("/")[2]}).scalar_one())

    def close(self) -> None:
        self._engine.dispose()
        self.server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--workers", type=int, default=TARGET, help="simulated")
    parser.add_argument("--epoch-s", type=float, default=TARGET_EPOCH_S, help="of simulated workers")
    parser.add_argument("--run-s", type=float, default=60.0, help="of the simulation")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = Database(arguments.workers)
    try:
        print(f"PostgreSQL, fsync on; {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f} at the start\n", flush=True)
        _real(database)
        study, owned, costs = _calls(database, max(arguments.workers, *OPEN))
        _paper(costs)
        _simulated(database, study, owned[-arguments.workers :], arguments.epoch_s, arguments.run_s)
    finally:
        database.close()


def _real(database: Database) -> None:
    """Sweeps on this machine, two configurations a worker."""
    print("real workers         per epoch           per trial      connections")
    print("              seconds  statements  seconds  statements  a worker", flush=True)
    for workers in WORKERS:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            url = database.study()
            environment = {
                **os.environ,
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                "PIPELINE_STORAGE": url,
                "PYTHONPATH": str(ROOT),
                FOLDER: folder,
                EPOCH_S: "0.5",
            }
            flags = ["--study", "scale", "--configurations", str(2 * workers), "--workers", str(workers)]
            command = [
                sys.executable,
                "-m",
                "pipeline",
                "sweep",
                str(ROOT / "benchmarks" / "scale_sleeping.py"),
                *flags,
            ]
            sweep = subprocess.Popen(
                [*command, "--pruner", "none", "--sampler", "random"],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            most = 0
            while sweep.poll() is None:
                most = max(most, database.connections(url))
                time.sleep(0.2)
            assert sweep.stderr is not None
            assert sweep.returncode == 0, sweep.stderr.read().decode()
            trials = [trial for trial in Study.load("scale", url).trials() if trial.state.is_finished()]
            held, statements = _noted(Path(folder))
        epochs = len(trials) * MAX_EPOCHS
        behind = [name for name in held if name != "training"]
        print(
            f"{workers:>6} {sum(held[n] for n in behind) / epochs:>14.4f} "
            f"{sum(statements[n] for n in behind) / epochs:>11.1f} "
            f"{held['training'] / len(trials):>8.3f} {statements['training'] / len(trials):>11.1f} "
            f"{(most - 2) / workers:>9.1f}",  # the command itself has two
            flush=True,
        )


def _noted(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Seconds with a connection, and statements, by thread, of all workers."""
    held: Counter[str] = Counter()
    statements: Counter[str] = Counter()
    for file in folder.glob("*.json"):
        found = json.loads(file.read_text())
        held.update(found["held_s"])
        statements.update(found["statements"])
    return held, statements


def _calls(database: Database, most: int) -> tuple[Study, list[tuple[int, int]], dict[int, dict[str, Cost]]]:
    """What each call takes while others run; returns the study as well, and its trials with their epochs."""
    study = Study.open("scale", database.study(), scale_workers.spec(SEGMENT_EPOCHS), accept_change=False)
    owned: list[tuple[int, int]] = []
    costs: dict[int, dict[str, Cost]] = {}
    print("\ntrials that run       epoch                         segment")
    print("            worker ms  database ms  statements  worker ms  database ms  statements", flush=True)
    for size in sorted({*OPEN, most}):
        for number in range(len(study.lineages()), len(study.lineages()) + size - len(owned)):
            done = number * 7 % SEGMENT_EPOCHS
            owned.append((scale_workers.begun(study, number, done), done))
        study.lineages()
        if size in OPEN:
            costs[size] = _costs(database, study)
            shown = "  ".join(
                f"{one.worker_ms:>9.1f}  {one.database_ms:>11.2f}  {one.statements:>10.1f}"
                for one in (costs[size][EPOCH], costs[size][SEGMENT])
            )
            print(f"{size:>10} {shown}", flush=True)
    return study, owned, costs


def _costs(database: Database, study: Study) -> dict[str, Cost]:
    """Of an epoch, and of a segment without its epochs, by one worker. CPU time is counted in steps of 10 ms."""
    times = Times()

    def segments() -> None:
        for _ in range(5):
            found = times.timed(SEGMENT, lambda: scale_workers.segment(study, times))
            times.timed("end", lambda found=found: scale_workers.end(study, found.head._trial_id))

    def epochs() -> None:
        for done in range(1, 101):
            times.timed(EPOCH, lambda done=done: scale_workers.epoch(study, trial_id, done))

    by_segments = _used(database, segments)
    found = scale_workers.segment(study, Times())
    trial_id = found.head._trial_id
    by_epochs = _used(database, epochs)
    scale_workers.end(study, trial_id)
    whole = [one + other for one, other in zip(times.calls[SEGMENT], times.calls["end"], strict=True)]
    return {
        SEGMENT: Cost(
            worker_ms=1e3 * median(whole),
            database_ms=1e3 * by_segments.cpu_s / 5,
            statements=by_segments.statements / 5,
        ),
        EPOCH: Cost(
            worker_ms=1e3 * median(times.calls[EPOCH]),
            database_ms=1e3 * by_epochs.cpu_s / 100,
            statements=by_epochs.statements / 100,
        ),
    }


def _used(database: Database, call: Callable[[], Any]) -> Used:
    before = database.used()
    call()
    return database.used() - before


def cores(
    workers: int, *, epoch_s: float, segment_epochs: int, per_epoch_s: float, per_segment_s: float, per_open_s: float
) -> float:
    """CPU seconds a second that workers take of their database.

    Each epoch takes `per_epoch_s`; each segment `per_segment_s`, and `per_open_s` for each trial that runs.
    """
    return workers / epoch_s * (per_epoch_s + (per_segment_s + per_open_s * workers) / segment_epochs)


def most_workers(of_cores: float, **costs: Any) -> int:
    """How many workers take no more than so many cores of their database; see `cores`."""
    least, most = 0, 10**6
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if cores(middle, **costs) <= of_cores else (least, middle)
    return least


def _paper(costs: Mapping[int, Mapping[str, Cost]]) -> None:
    few, many = min(costs), max(costs)
    per_open_s = (costs[many][SEGMENT].database_ms - costs[few][SEGMENT].database_ms) / (many - few) / 1e3
    per_segment_s = costs[few][SEGMENT].database_ms / 1e3 - few * per_open_s
    per_epoch_s = median(one[EPOCH].database_ms for one in costs.values()) / 1e3
    print(f"\non paper, at {TARGET_EPOCH_S:.0f} s an epoch: workers that keep so many cores of the database busy")
    print("epochs a segment     1 core  4 cores  16 cores")
    for segment_epochs in (1, 3, 9, 27, 81):
        found = [
            most_workers(
                count,
                epoch_s=TARGET_EPOCH_S,
                segment_epochs=segment_epochs,
                per_epoch_s=per_epoch_s,
                per_segment_s=max(0.0, per_segment_s),
                per_open_s=max(0.0, per_open_s),
            )
            for count in (1, 4, 16)
        ]
        print(f"{segment_epochs:>16} {found[0]:>10,} {found[1]:>8,} {found[2]:>9,}")


def _simulated(database: Database, study: Study, owned: list[tuple[int, int]], epoch_s: float, run_s: float) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.scale_workers", "optuna.storages._rdb.storage", "psycopg"])
    start = context.Barrier(PROCESSES + 1)
    pipes, processes = [], []
    for place in range(PROCESSES):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (study.url, study.name, owned[place::PROCESSES], epoch_s, run_s, start, theirs)
        processes.append(context.Process(target=scale_workers.work, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    start.wait()
    time.sleep(WARM_UP * run_s)
    before, began_s, connections = database.used(), time.monotonic(), database.connections(study.url)
    time.sleep((1 - WARM_UP) * run_s)
    used, wall_s = database.used() - before, time.monotonic() - began_s
    lives: list[Times] = []
    for pipe in pipes:
        times, errors = pipe.recv()
        lives += times
        for error in errors:
            print(f"a worker ended: {error}")
    for process in processes:
        process.join()
    calls = {name: [s for one in lives for s in one.calls.get(name, [])] for name in (EPOCH, CLAIM, SEGMENT)}
    trained, due = len(calls[EPOCH]), len(owned) * (1 - WARM_UP) * run_s / epoch_s
    print(f"\n{len(owned):,} simulated workers, {epoch_s:g} s an epoch, {SEGMENT_EPOCHS} epochs a segment")
    print(f"{wall_s:.0f} s; load {os.getloadavg()[0]:.0f}; {connections:,} connections")
    for name, seconds in calls.items():
        if seconds:
            ordered = sorted(seconds)
            print(
                f"{name:<10} {len(seconds):>7,}: median {median(seconds):.3f} s, "
                f"95% within {ordered[int(0.95 * (len(ordered) - 1))]:.3f} s, longest {ordered[-1]:.3f} s"
            )
    print(f"{trained / wall_s:.1f} epochs a second, {len(calls[SEGMENT]) / wall_s:.2f} segments a second")
    print(
        f"database: {used.cpu_s / wall_s:.2f} cores, {1e3 * used.cpu_s / trained:.2f} ms CPU and "
        f"{used.statements / trained:.1f} statements an epoch, all in; "
        f"{TARGET / TARGET_EPOCH_S * used.cpu_s / trained:.2f} cores at {TARGET / TARGET_EPOCH_S:.0f} epochs a second"
    )
    rate = len(owned) / epoch_s
    target = TARGET / TARGET_EPOCH_S
    verdict = "reached    " if trained >= 0.98 * due and rate >= target else "NOT REACHED"
    print(
        f"\n{verdict} one database carries {TARGET:,} workers at {TARGET_EPOCH_S:.0f} s an epoch: "
        f"{trained:,} of {due:,.0f} epochs that were due at {rate:.0f} a second ({target:.0f} are asked for)"
    )


if __name__ == "__main__":
    main()
