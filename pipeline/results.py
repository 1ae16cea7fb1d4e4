"""A study as data: what its configurations have come to, in pandas, for a notebook or a script.

study = Study.load("digits")
study.dataframe().sort_values("best.val_loss")
study.plot.curves()
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
from pipeline.report import frames
from pipeline.report.found import Found
from pipeline.session import Session
from pipeline.signals import STOPPING, StopRequest
from pipeline.sweep.finish import front
from pipeline.sweep.lineage import Lineage
from pipeline.sweep.schedule import is_search_over
from pipeline.sweep.study import Study as StoredStudy
from pipeline.sweep.worker import Site
from pipeline.tracking import runs

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from pipeline.checkpoint import Checkpoint


class Study:
    """What a study has come to. Each call reads it anew, also while it runs.

    Attributes:
        name: the study's.
        plot: its plots, interactive.
    """

    def __init__(self, session: Session, name: str, storage: str | None) -> None:
        self.name = name
        self._session, self._storage = session, storage
        self._study = session.load(name)
        self.plot = Plots(self._study)

    def __repr__(self) -> str:
        from pipeline.report.cells import line

        return line(Found.of(self._study))

    def _repr_html_(self) -> str:
        from pipeline.report.cells import cell

        return cell(Found.of(self._study))

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
        return frames.configurations(self._lineages, self._runs(), over=is_search_over(self._study))

    def segments(self) -> pd.DataFrame:
        """A row for each segment, by the number of its Optuna trial: who trained what, from where to where."""
        return frames.segments(self._lineages)

    def history(self, *metrics: str) -> pd.DataFrame:
        """Every reported value, or those of some metrics: `configuration`, `epoch` (from 1), `metric`, `value`."""
        return frames.history(self._lineages, self._runs(), metrics)

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


class Plots:
    """A study's plots as plotly figures, of what it has come to when they are asked for.

    Raises:
        UsageError: there is nothing to show in one of them yet.
    """

    def __init__(self, study: StoredStudy) -> None:
        self._study = study

    def curves(self) -> "go.Figure":
        """The monitored metric after each epoch, of all configurations."""
        return self._figure("curves")

    def timeline(self) -> "go.Figure":
        """The segments by worker, with every kill and what went on from it."""
        return self._figure("timeline")

    def rungs(self) -> "go.Figure":
        """How many configurations have reached each epoch of comparison."""
        return self._figure("rungs")

    def history(self) -> "go.Figure":
        """The best value of each configuration, in the order they were drawn."""
        return self._figure("history")

    def importances(self) -> "go.Figure":
        """How much each parameter decides whether a configuration is among the best."""
        return self._figure("importances")

    def parallel(self) -> "go.Figure":
        """A line for each configuration through its parameters and its best value."""
        return self._figure("parallel")

    def slice(self) -> "go.Figure":
        """The best value of each configuration against each parameter."""
        return self._figure("slice")

    def _figure(self, name: str) -> "go.Figure":
        from pipeline.report.plots import figure

        return figure(Found.of(self._study), name)


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
