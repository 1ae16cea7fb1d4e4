"""A study as data: what its configurations have come to, in pandas, for a notebook or a script.

study = Study.load("digits")
study.dataframe().sort_values("best.val_loss")
study.checkpoint(study.best.name).load_into(model=model)
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.commands import ResumeOptions
from pipeline.engines import local
from pipeline.errors import UsageError
from pipeline.experiment import flatten
from pipeline.session import Session
from pipeline.signals import STOPPING, StopRequest
from pipeline.sweep.finish import front, state_of
from pipeline.sweep.lineage import Lineage, progress_of
from pipeline.sweep.schedule import is_search_over
from pipeline.sweep.worker import Site
from pipeline.tracking import runs

if TYPE_CHECKING:
    from pipeline.checkpoint import Checkpoint

# Columns and their types, in order; a configuration's fields keep the types they have.
COLUMNS = {
    "state": "str",
    "params.": "",
    "epochs": "int64",
    "metrics.": "float64",
    "best_epoch": "Int64",
    "best.": "float64",
    "segments": "int64",
    "seconds": "float64",
    "checkpoint": "str",
    "run_id": "str",
}
SEGMENT_COLUMNS = {
    "configuration": "int64",
    "parent": "Int64",
    "host": "str",
    "pid": "Int64",
    "start": "datetime64[us]",
    "end": "datetime64[us]",
    "from_checkpoint": "str",
    "to_checkpoint": "str",
    "ended": "str",
    "resumed": "str",
}


class Study:
    """What a study has come to. Each call reads it anew, also while it runs.

    Attributes:
        name: the study's.
    """

    def __init__(self, session: Session, name: str, storage: str | None) -> None:
        self.name = name
        self._session, self._storage = session, storage
        self._study = session.load(name)

    @classmethod
    def load(cls, name: str, storage: str | None = None) -> "Study":
        """The study of this name.

        `storage` is the URL of the study database; PIPELINE_STORAGE, else optuna.db beside mlflow.db.

        Raises:
            UsageError: there is none; the names there are come with it.
        """
        return cls(Session(storage, StopRequest(), None), name, storage)

    def dataframe(self) -> pd.DataFrame:
        """A row for each configuration, by its number.

        Columns: `state` (as the tag of its MLflow run), `params.*`, `epochs` (trained), `metrics.*` (the last
        reported), `best.*` (those of the epoch `best_epoch`, the best by the monitored metric), `segments`, `seconds`
        (that they took), `checkpoint` (the last), `run_id`.
        """
        over = is_search_over(self._study)
        last = {run.info.run_id: run.data.metrics for run in self._runs()}
        rows = {}
        for number, one in self._lineages.items():
            best = one.best or {}
            rows[number] = {
                "state": state_of(one, over=over),
                **_prefixed("params", flatten(one.config or {})),
                "epochs": one.epochs,
                **_prefixed("metrics", last.get(one.run_id, {})),
                "best_epoch": best.get("epoch"),
                **_prefixed("best", best.get("metrics", {})),
                "segments": len(one.segments),
                "seconds": _seconds(one),
                "checkpoint": one.progress["checkpoint"],
                "run_id": one.run_id,
            }
        return _table(rows, "configuration", COLUMNS)

    def segments(self) -> pd.DataFrame:
        """A row for each segment, by the number of its Optuna trial: who trained what, from where to where."""
        rows = {}
        for number, one in self._lineages.items():
            for trial in one.segments:
                attrs = trial.user_attrs
                worker = attrs.get("worker", {})
                rows[trial.number] = {
                    "configuration": number,
                    "parent": attrs["parent"],
                    "host": worker.get("host", "").partition(" ")[0] or None,
                    "pid": worker.get("pid"),
                    "start": trial.datetime_start,
                    "end": trial.datetime_complete,
                    "from_checkpoint": attrs["start"],
                    "to_checkpoint": progress_of(trial)["checkpoint"],
                    "ended": attrs.get("ended") if trial.state.is_finished() else None,
                    "resumed": attrs.get("resumed"),
                }
        return _table(rows, "trial", SEGMENT_COLUMNS)

    def history(self, *metrics: str) -> pd.DataFrame:
        """Every reported value, or those of some metrics: `configuration`, `epoch` (from 1), `metric`, `value`."""
        numbers = {one.run_id: number for number, one in self._lineages.items()}
        found = [run for run in self._runs() if run.info.run_id in numbers]
        rows = [
            (numbers[run_id], epoch, metric, value) for run_id, metric, epoch, value in runs.histories(found, metrics)
        ]
        table = pd.DataFrame(rows, columns=["configuration", "epoch", "metric", "value"])
        typed = table.astype({"configuration": "int64", "epoch": "int64", "metric": "str", "value": "float64"})
        return typed.sort_values(["configuration", "metric", "epoch"], ignore_index=True)

    @property
    def best(self) -> pd.Series:
        """The row of the best configuration; its `name` is the configuration's number.

        Raises:
            UsageError: no configuration has a result yet, or several objectives leave several best ones: see `pareto`.
        """
        best = front(self._study)
        if not best:
            raise UsageError(f"study {self.name!r}: no configuration has a result yet")
        if len(best) > 1:
            raise UsageError(f"study {self.name!r}: several objectives leave {len(best)} best ones; see .pareto")
        return self.dataframe().loc[best[0].number]

    @property
    def pareto(self) -> pd.DataFrame:
        """The rows of the configurations that no other one beats in all objectives; of one objective, the best."""
        return self.dataframe().loc[[one.number for one in front(self._study)]]

    def checkpoint(self, number: int, which: str = "best") -> "Checkpoint":
        """A checkpoint of a configuration: "best", "latest" or one by its name.

        Raises:
            UsageError: there is no such configuration or checkpoint; --keep-gb may have deleted it.
        """
        one = self._lineages.get(number)
        if one is None or one.run_id is None:
            raise UsageError(f"study {self.name!r} has no configuration {number} with an MLflow run")
        names = {"best": (one.best or {}).get("checkpoint"), "latest": one.progress["checkpoint"]}
        name = names.get(which, which)
        if name is None:
            raise UsageError(f"study {self.name!r}: configuration {number} has no checkpoint yet")
        return self._session.checkpoint(one.run_id, name)

    def resume(self, **options: Any) -> "Study":
        """Goes on, in worker processes, until nothing is left to do; returns this study.

        `options` are the command's: `workers=4`, `top=3, max_epochs=81, schedule="stretch"` ... In a script, call it
        below `if __name__ == "__main__":`, as everything that starts processes. Ctrl-C stops resumably, and is then
        passed on.

        Raises:
            UsageError: an option that the command `resume` would refuse.
        """
        try:
            told = ResumeOptions(study=self.name, storage=self._storage, **options)
        except TypeError as error:
            raise UsageError(f"Study.resume: {error}") from error
        with _stoppable() as stop:
            session = Session(self._storage, stop, local.start_forkserver())
            study, file = session.reopen_study(self.name, accept_change=told.accept_change)
            session.work(study, file, told.how(), reopening=told.reopening())
        return self

    def _runs(self) -> list[Any]:
        site = Site.of(self._study)
        return runs.find_runs(site.experiment_id, {"study_run": site.run_id, "kind": "configuration"})

    @property
    def _lineages(self) -> dict[int, Lineage]:
        return self._study.lineages()


@contextmanager
def _stoppable() -> Iterator[StopRequest]:
    """In this block SIGINT and SIGTERM stop the work; afterwards they do what they would have done at once."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python lets only that one take signals
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        stop.interrupt()
        with stop.deferred():
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in STOPPING:
        if stop.reason == number.name:
            signal.raise_signal(number)


def _table(rows: dict[int, dict[str, Any]], index: str, types: dict[str, str]) -> pd.DataFrame:
    """Rows under their numbers; a name that ends with a dot stands for the columns that begin with it."""
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index).sort_index()
    columns = {
        name: kind
        for wanted, kind in types.items()
        for name in ([one for one in table if one.startswith(wanted)] if wanted.endswith(".") else [wanted])
    }
    return table.reindex(columns=list(columns)).astype({name: kind for name, kind in columns.items() if kind})


def _prefixed(prefix: str, values: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in sorted(values.items())}


def _seconds(one: Lineage) -> float:
    """What its segments took that have ended."""
    return sum(
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in one.segments
        if trial.datetime_start is not None and trial.datetime_complete is not None
    )
