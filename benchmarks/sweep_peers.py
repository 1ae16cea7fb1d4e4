"""The other ways to run the sweep of `benchmarks.sweep`, each as its documentation recommends.

`python -m benchmarks.sweep_peers METHOD` does all of it, or goes on with what a kill has cut off.
"""

import argparse
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.sweep_training import ETA, Training, epochs, folder, points, workers
from experiments import digits


def bare() -> None:
    """No tracking, no checkpoints, no pruning; each worker has every second configuration."""
    count = workers()
    processes = [multiprocessing.Process(target=_bare, args=(points()[slot::count],)) for slot in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _bare(mine: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    tables = digits.prepare(digits.Data())
    for point in mine:
        training = Training.of(point, tables)
        for epoch in range(epochs()):
            training.epoch(epoch)


def least() -> None:
    """What no tool can do without whose trials are in Optuna and whose metrics are in MLflow: the recipe below, but
    without checkpoints and heartbeats."""
    optuna_recipe(saves=False)


def optuna_recipe(*, saves: bool = True) -> None:
    """The study and its points; then the same script once for each worker.

    Optuna's tutorial "Easy Parallelization", and `pytorch/pytorch_checkpoint.py` of optuna-examples.
    """
    import mlflow

    mlflow.set_experiment("sweep")  # two workers that create the database at once would crash
    study = _optuna_study(saves=saves)
    if not study.get_trials(deepcopy=False):
        for point in points():
            study.enqueue_trial(point)
    command = [sys.executable, "-m", "benchmarks.sweep_peers", "optuna-worker" if saves else "least-worker"]
    processes = [subprocess.Popen(command) for _ in range(workers())]
    for process in processes:
        process.wait()


def _optuna_study(*, saves: bool) -> Any:
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    storage = RDBStorage(
        f"sqlite:///{folder()}/optuna.db",
        heartbeat_interval=1 if saves else None,  # as in the example
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback() if saves else None,
    )
    return optuna.create_study(
        storage=storage,
        study_name="sweep",
        direction="minimize",
        load_if_exists=True,
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=ETA),
    )


def least_worker() -> None:
    optuna_worker(saves=False)


def optuna_worker(*, saves: bool = True) -> None:
    import mlflow
    import optuna
    from optuna.storages import RetryHeartbeatStaleTrialCallback
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    tables = digits.prepare(digits.Data())
    mlflow.set_experiment("sweep")

    def objective(trial: optuna.Trial) -> float:
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        if "fixed_params" not in frozen.system_attrs:  # the other worker has the last of the points
            trial.study.stop()
            raise optuna.TrialPruned
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
        own = folder() / "checkpoints" / str(trial.number if first is None else first)
        own.mkdir(parents=True, exist_ok=True)
        file = own / "model.pt"
        config = digits.suggest(trial)
        training = Training.of(vars(config), tables)
        begin = training.load(file) if file.exists() else 0
        best = float("inf")
        with mlflow.start_run(run_name=f"trial {trial.number}"):
            mlflow.log_params(trial.params)
            for epoch in range(begin, epochs()):
                metrics = training.epoch(epoch)
                best = min(best, metrics["val_loss"])
                if saves:
                    torch.save(training.state_dict(epoch), own / "tmp_model.pt")
                    (own / "tmp_model.pt").replace(file)
                    mlflow.log_artifact(str(file), "checkpoints")
                mlflow.log_metrics(metrics, step=epoch)
                trial.report(metrics["val_loss"], epoch + 1)
                if epoch + 1 < epochs() and trial.should_prune():
                    raise optuna.TrialPruned
        return best

    finished = (TrialState.COMPLETE, TrialState.PRUNED)
    _optuna_study(saves=saves).optimize(objective, callbacks=[MaxTrialsCallback(len(points()), states=finished)])


def ray_tune() -> None:
    """The user guides "How to Use MLflow with Tune", "How to Enable Fault Tolerance in Ray Tune" (`Tuner.restore`)."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    ray.init(
        num_cpus=workers(),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder() / "ray"),
        log_to_driver=False,
    )
    path = folder() / "results" / "sweep"
    if tune.Tuner.can_restore(str(path)):
        tuner = tune.Tuner.restore(str(path), ray_trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = tune.Tuner(
            ray_trainable,
            param_space={"point": tune.grid_search(points())},
            tune_config=tune.TuneConfig(
                metric="val_loss",
                mode="min",
                reuse_actors=True,
                scheduler=ASHAScheduler(
                    time_attr="training_iteration", max_t=epochs(), grace_period=1, reduction_factor=ETA
                ),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(path.parent),
                callbacks=[MLflowLoggerCallback(os.environ["MLFLOW_TRACKING_URI"], experiment_name="sweep")],
                verbose=0,
            ),
        )
    tuner.fit()
    ray.shutdown()


def ray_trainable(config: Mapping[str, Any]) -> None:
    from ray import tune

    torch.set_num_threads(1)
    training = Training.of(config["point"], digits.prepare(digits.Data()))
    checkpoint, begin = tune.get_checkpoint(), 0
    if checkpoint is not None:
        with checkpoint.as_directory() as saved:
            begin = training.load(Path(saved) / "model.pt")
    for epoch in range(begin, epochs()):
        metrics = training.epoch(epoch)
        with tempfile.TemporaryDirectory() as scratch:
            torch.save(training.state_dict(epoch), Path(scratch) / "model.pt")
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(scratch))


def syne_tune() -> None:
    """Its examples `launch_asha_...` (ASHA, LocalBackend) and `launch_resume_tuning.py` (`Tuner.load`)."""
    from syne_tune import StoppingCriterion, Tuner
    from syne_tune.backend import LocalBackend
    from syne_tune.config_space import loguniform, randint, uniform
    from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving

    logging.getLogger().setLevel(logging.ERROR)
    if (folder() / "sweep" / "tuner.dill").exists():
        tuner = Tuner.load(str(folder() / "sweep"))
    else:
        tuner = Tuner(
            trial_backend=LocalBackend(entry_point=str(Path(__file__).with_name("sweep_syne.py"))),
            scheduler=AsynchronousSuccessiveHalving(
                {
                    "lr": loguniform(1e-4, 3e-2),
                    "channels": randint(8, 32),
                    "dropout": uniform(0.0, 0.6),
                    "weight_decay": loguniform(1e-4, 1e-1),
                },
                metric="val_loss",
                time_attr="epoch",
                max_t=epochs(),
                grace_period=1,
                reduction_factor=ETA,
                searcher_kwargs={"points_to_evaluate": points()},
            ),
            stop_criterion=StoppingCriterion(max_num_trials_started=len(points()) - 1),  # "more than"
            wait_trial_completion_when_stopping=True,
            n_workers=workers(),
            sleep_time=0.1,  # by default it looks for results, and for who is to be stopped, every 5 s
            tuner_name="sweep",
            suffix_tuner_name=False,
        )
    tuner.run()


def syne_trial() -> None:
    """One trial of Syne Tune's, a process of its own."""
    from syne_tune import Reporter

    parser = argparse.ArgumentParser()
    for name, kind in (("lr", float), ("channels", int), ("dropout", float), ("weight_decay", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--st_checkpoint_dir", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training = Training.of(vars(arguments), digits.prepare(digits.Data()))
    file = arguments.st_checkpoint_dir / "model.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    begin = training.load(file) if file.exists() else 0
    report = Reporter()
    for epoch in range(begin, epochs()):
        metrics = training.epoch(epoch)
        torch.save(training.state_dict(epoch), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
        report(epoch=epoch + 1, **metrics)


METHODS = {
    "bare": bare,
    "least": least,
    "least-worker": least_worker,
    "optuna": optuna_recipe,
    "optuna-worker": optuna_worker,
    "ray": ray_tune,
    "syne-tune": syne_tune,
}

if __name__ == "__main__":
    METHODS[sys.argv[1]]()
