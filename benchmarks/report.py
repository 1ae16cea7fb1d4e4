"""What it costs to show a large study: 1,000 configurations of 27 epochs, a third of them killed once and resumed.

`python -m benchmarks.report` writes the trials and the MLflow runs of such a study as workers leave them, and times
what `report --study` does, each part in turn; then once more what is refreshed while a sweep runs.
"""

import argparse
import math
import os
import random
import resource
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import optuna
from mlflow import MlflowClient
from mlflow.entities import RunTag
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from pipeline.report.keeping import SHARE
from pipeline.report.refresh import Refresher
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.storage import prepare_storage
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Site
from pipeline.tracking import runs, server

EPOCHS, KILLED_AT = 27, 11
MOST_S, MOST_BYTES, MOST_PAGE_BYTES = 20.0, 1e9, 6e6
SPACE = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "width": IntDistribution(4, 128),
    "dropout": FloatDistribution(0.0, 0.6),
    "act": CategoricalDistribution(["relu", "gelu", "tanh"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=1000)
    count = parser.parse_args().configurations
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with TemporaryDirectory(prefix="benchmark-") as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        study = synthetic(Path(folder), count)
        refresher = Refresher(study, storage=None)
        before = _peak_bytes()
        parts = {
            "pages, all new": _timed(refresher.pages),
            "pictures": _timed(refresher.pictures),
            "tables": _timed(refresher.tables),
            "report.html": _timed(refresher.report),
        }
        again = {"pages, nothing new": _timed(refresher.pages), "pictures, again": _timed(refresher.pictures)}
        page = next(Path(folder).rglob("report.html")).stat().st_size
        size = f"{count:,} configurations of {EPOCHS} epochs, {len(study.trials()):,} segments"
        print(f"{size}; SQLite; {os.cpu_count()} cores\n")
        print("                          wall s     CPU s")
        for name, (wall_s, cpu_s) in (parts | again).items():
            print(f"{name:<24}{wall_s:>8.2f}{cpu_s:>10.2f}")
        total_s, peak = sum(wall_s for wall_s, _ in parts.values()), _peak_bytes()
        print(f"\n{_reached(total_s <= MOST_S)} all of it takes at most {MOST_S:.0f} s: {total_s:.1f}")
        print(f"{_reached(peak <= MOST_BYTES)} and at most 1 GB: {peak / 1e9:.2f} ({before / 1e9:.2f} before)")
        print(f"{_reached(page <= MOST_PAGE_BYTES)} report.html has at most 6 MB: {page / 1e6:.2f}")
        print(f"a refresh of each is followed by {SHARE} times its CPU time: {100 / SHARE:.1f}% of the wall time each")


def synthetic(folder: Path, count: int) -> Study:
    """The study, as it is when all is done."""
    url = f"sqlite:///{folder / 'optuna.db'}"
    prepare_storage(url)
    spec = StudySpec(
        experiment="report.py",
        code="",
        data=None,
        data_options={},
        config=None,
        monitor="val_loss",
        direction="minimize",
        configurations=count,
        max_epochs=EPOCHS,
        min_epochs=1,
        eta=3,
        pruner="halving",
        sampler="tpe",
        seed=0,
    )
    study = Study.open("large", url, spec, accept_change=False)
    experiment_id = server.connect()
    run_id = runs.ensure_run(experiment_id, name="large", key={"kind": "study", "study": "large"}, params={})
    site = Site(file="report.py", experiment_id=experiment_id, run_id=run_id, tables_run_id=None, tables={}, threads=1)
    study.set_attr("site", site.to_json())
    drawn, at = random.Random(0), datetime(2026, 1, 1)  # noqa: DTZ001  as Optuna's own times
    for number in range(count):
        _configuration(study, site, number, drawn, at + timedelta(seconds=7 * (number // 4)))
    return study


def _configuration(study: Study, site: Site, number: int, drawn: random.Random, at: datetime) -> None:
    params = {
        "lr": 10 ** drawn.uniform(-4, 0),
        "width": drawn.randint(4, 128),
        "dropout": drawn.uniform(0, 0.6),
        "act": drawn.choice(["relu", "gelu", "tanh"]),
    }
    floor = 0.05 + (math.log10(params["lr"]) + 2) ** 2 / 4 + drawn.random() / 10
    curve = {epoch: floor + math.exp(-epoch / 5) + drawn.random() / 50 for epoch in range(1, EPOCHS + 1)}
    tags = {"kind": "configuration", "study_run": site.run_id, "configuration": str(number), "state": "complete"}
    client = MlflowClient()
    run = client.create_run(site.experiment_id, tags=tags, run_name=f"#{number:02d}")
    runs.log_history(run.info.run_id, [(epoch, epoch, {"val_loss": value}) for epoch, value in curve.items()])
    client.log_batch(run.info.run_id, tags=[RunTag("trials", str(number))])
    stops = [KILLED_AT, EPOCHS] if number % 3 == 0 else [EPOCHS]
    parent, start = None, None
    for epochs in stops:
        done = epochs == EPOCHS
        reported = {epoch: value for epoch, value in curve.items() if epoch <= epochs}
        best = min(reported, key=lambda epoch: reported[epoch])
        trial = create_trial(
            state=TrialState.COMPLETE if done else TrialState.FAIL,
            value=min(reported.values()) if done else None,
            params=params,
            distributions=SPACE,
            intermediate_values=reported,
        )
        checkpoint = f"s0-e{epochs:05d}-b000000-t{len(study.trials()):06d}"
        trial.datetime_start = at + timedelta(seconds=0.25 * (KILLED_AT if start else 0))
        trial.datetime_complete = at + timedelta(seconds=0.25 * epochs)
        trial.user_attrs = {
            "configuration": number,
            "parent": parent,
            "until": EPOCHS,
            "start": start,
            "config": params,
            "run_id": run.info.run_id,
            "ended": "complete" if done else "lost",
            "resumed": "exact",
            "worker": {"host": "host", "pid": number},
            "progress": {
                "checkpoint": checkpoint,
                "epochs": epochs,
                "best": {
                    "epoch": best,
                    "value": reported[best],
                    "checkpoint": checkpoint,
                    "metrics": {"val_loss": reported[best]},
                },
            },
        }
        trial_id = study.storage.create_new_trial(study.id, trial)
        parent, start = study.storage.get_trial(trial_id).number, checkpoint


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    began_s, cpu_s = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began_s, time.process_time() - cpu_s


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reached(is_so: bool) -> str:
    return "reached: " if is_so else "missed:  "


if __name__ == "__main__":
    main()
