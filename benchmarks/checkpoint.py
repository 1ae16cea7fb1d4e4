"""What a checkpoint costs a training, beside its peers and beside what the machine can do.

`python -m benchmarks.checkpoint` measures everything in one run and in turns, so that whatever else the machine does
hits all alike.
"""

import argparse
import gc
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import mlflow
import torch

from benchmarks.limits import Limits, read_and_digest
from benchmarks.memory import peaks
from benchmarks.method import Method, Times, seconds
from benchmarks.ours import AT_ONCE, OVERLAPPED, Thaw, resume, tensor_file
from benchmarks.peers import load, peers, save
from benchmarks.result import LARGE, READ, RESUME, SMALL, Result, goals
from benchmarks.table import table, verdicts
from benchmarks.training import Training, fresh
from pipeline.tracking import server

SIZES = (SMALL, 1_000_000, LARGE)
WARM_UP = 2  # rounds: buffers are allocated, and the first snapshots show whether a copy may overlap


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="parameters of the models")
    parser.add_argument(
        "--rounds", type=int, help="how often each method is measured; by default the smaller, the more"
    )
    parser.add_argument("--device", default="cpu", help="where the models are trained: cpu or cuda")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    arguments = parser.parse_args()
    device: str = arguments.device
    name = f", {torch.cuda.get_device_name(device)}" if device != "cpu" else ""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores{name}")
    results = []
    for size in arguments.sizes:
        results.append(measure(size, arguments.rounds or (5 if size > 10_000_000 else 25), device))
        print(f"\n{table(results[-1])}", flush=True)
    print(f"\n{verdicts(goals(results))}")
    if arguments.json is not None:
        rows = [row for result in results for row in result.rows()]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="ascii")


def measure(size: int, rounds: int, device: str) -> Result:
    """Everything about one size; nothing of it stays."""
    peak = None
    if size == LARGE and device == "cpu":  # a device's driver takes more than any snapshot
        with _folder() as folder:
            peak = peaks(size, mlflow.get_tracking_uri(), _run(folder))
    with _folder() as folder, ExitStack() as stack:
        training = Training(size, device)
        run_id = _run(folder)
        thaw = stack.enter_context(closing(Thaw(training, run_id)))
        others, missing = peers(_run(folder), stack, device)
        for line in missing:
            print(line)
        methods = [*others, *thaw.methods()]
        samples = _in_turns(methods, training, folder, rounds)
        return Result(
            size=size,
            device=device,
            parameters=training.parameters,
            state_bytes=training.state_bytes,
            rounds=rounds,
            memcpy_s=samples["memcpy"],
            calls_s=samples["calls"],
            write_s=samples["write"],
            digest_s=samples["digest"],
            pass_s=samples["pass"],
            pass_beside_s=median(thaw.beside_s[WARM_UP:]),
            times={
                method.name: Times(stall_s=samples[f"{method.name} stall"], total_s=samples[f"{method.name} total"])
                for method in methods
            },
            unsynced=frozenset(method.name for method in methods if not method.is_synced),
            restore=_restore(training, run_id, folder, rounds),
            peaks=peak,
        )


def _in_turns(methods: list[Method], training: Training, folder: Path, rounds: int) -> dict[str, float]:
    """The medians of all that is measured, by name, in seconds."""
    limits = Limits(training.state_bytes, training.device)
    samples: dict[str, list[float]] = {}
    for index in range(-WARM_UP, rounds):
        found: dict[str, float] = {}
        for method in list(methods):
            training.epoch()
            with _scratch(folder) as scratch:
                try:
                    times = method.take(training, scratch)
                except Exception as error:  # a peer may fail as it likes; ours may not
                    if method.name in (AT_ONCE, OVERLAPPED):
                        raise
                    print(f"{method.name} is left out: {type(error).__name__}: {error}")
                    methods.remove(method)
                    continue
            found |= {f"{method.name} stall": times.stall_s, f"{method.name} total": times.total_s}
        with _scratch(folder) as scratch:
            found |= {
                "memcpy": limits.memcpy(),
                "calls": limits.calls(training),
                "write": limits.write(scratch),
                "digest": limits.digest(),
            }
        found["pass"] = seconds(training.pass_)
        training.step()
        if index >= 0:
            for name, value in found.items():
                samples.setdefault(name, []).append(value)
    return {name: median(values) for name, values in samples.items()}


def _restore(training: Training, run_id: str, folder: Path, rounds: int) -> dict[str, float]:
    """Medians, in seconds. All files are in the page cache, as they are where a process starts again at once."""
    samples: dict[str, list[float]] = {}
    with _scratch(folder) as scratch:
        file = scratch / "checkpoint.pt"
        save(training, file)
        for index in range(-WARM_UP, rounds):
            found: dict[str, float] = {}
            model, optimizer = fresh(training.size, training.device)
            objects = {"model": model, "optimizer": optimizer}
            found[RESUME] = seconds(partial(resume, run_id, objects))
            model, optimizer = fresh(training.size, training.device)
            found["torch.load"] = seconds(partial(load, file, model, optimizer))
            found[READ] = read_and_digest(tensor_file(run_id))
            if index >= 0:
                for name, value in found.items():
                    samples.setdefault(name, []).append(value)
    return {name: median(values) for name, values in samples.items()}


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder with a tracking database of its own."""
    with TemporaryDirectory(prefix="benchmark-") as name:
        mlflow.set_tracking_uri(f"sqlite:///{name}/mlflow.db")
        server.connect()
        yield Path(name)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder; nobody pays for the garbage of others, nor for what they left in the page cache."""
    scratch = folder / "scratch"
    scratch.mkdir()
    gc.collect()
    os.sync()
    yield scratch
    shutil.rmtree(scratch)


def _run(folder: Path) -> str:
    """The id of a new MLflow run, whose artifacts are in the folder."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("benchmark")
    artifacts = folder / "artifacts"
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("benchmark", str(artifacts))
    return str(client.create_run(experiment_id).info.run_id)


if __name__ == "__main__":
    main()
