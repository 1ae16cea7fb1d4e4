"""A study of quick.py, opened and worked on in processes that have the heavy modules loaded and die where told."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from tests.integration.preloaded import PRELOADED
from tests.integration.sweeps import QUICK


def open_quick(folder: Path, names: Sequence[str], configurations: int, pruner: str, results: Connection) -> None:
    """Creates studies of this experiment."""
    from pipeline.experiment import load_experiment
    from pipeline.planning import Plan
    from pipeline.session import Session
    from pipeline.signals import StopRequest

    session = enter(folder, lambda: Session(None, StopRequest(), None))
    plan = Plan(
        configurations=configurations, max_epochs=None, min_epochs=1, eta=3, pruner=pruner, sampler="tpe", seed=0
    )
    for name in names:
        session.open_sweep(load_experiment(QUICK), None, name=name, plan=plan, workers=1, accept_change=False)
    results.send(None)


def work_on(folder: Path, name: str) -> None:
    """Works on a study until nothing is left."""
    from pipeline.signals import StopRequest
    from pipeline.sweep.pulse import Pulse
    from pipeline.sweep.segment import Keeping
    from pipeline.sweep.study import Study
    from pipeline.sweep.worker import work

    study = enter(folder, lambda: Study.load(name, f"sqlite:///{folder / 'optuna.db'}"))
    pulse = Pulse(multiprocessing.get_context(), None)
    assert work(study, StopRequest(), pulse=pulse, keeping=Keeping()) == "done"


def enter(folder: Path, make: Callable):
    import mlflow

    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return make()


def in_process(target: Callable, *arguments, code: int = 0):
    """What `target` sends from a process of its own that ends with `code`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    process.join()
    found, exitcode = ours.recv() if ours.poll() and not code else None, process.exitcode
    ours.close()
    process.close()
    assert exitcode == code
    return found
