"""How training has gone so far: its reports, which epoch is the best, and whether patience is at its end."""

import math

from pipeline.checkpoint import Best, Manifest, Report
from pipeline.errors import ThawError
from pipeline.experiment import Experiment


class DivergedError(ThawError):
    """The monitored value is not a finite number."""


class Course:
    """The reports of one configuration, through all of its stages.

    Attributes:
        history: the reports of all finished epochs.
        best: the best epoch of the present stage.
        patience_from: finished epochs when one that had stopped early was given more.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.history: tuple[Report, ...] = ()
        self.best: Best | None = None
        self.patience_from = 0
        self._experiment = experiment
        self._best_before: Best | None = None

    def resume(self, manifest: Manifest) -> None:
        """Goes on from a checkpoint."""
        self.history, self.best = manifest.history, manifest.best

    def add(self, report: Report) -> None:
        """Raises: DivergedError."""
        self.history += (report,)
        for name in self._experiment.objectives:
            if not math.isfinite(report.metrics[name]):
                raise DivergedError(f"{name} is {report.metrics[name]} after epoch {report.epoch}")
        for name in self._experiment.constraints:
            if math.isnan(report.metrics[name]):
                raise DivergedError(f"{name}, a constraint, is nan after epoch {report.epoch}")

    def judge(self, report: Report, checkpoint: str) -> None:
        """Makes an epoch the best if it is; `checkpoint` has its weights."""
        if self._is_best(report):
            self._best_before = self.best
            value = report.metrics[self._experiment.leading]
            self.best = Best(epoch=report.epoch, value=value, checkpoint=checkpoint)

    def take_back(self, checkpoint: str) -> None:
        """This checkpoint has turned out to be none, so that the best weights are not there."""
        if self.best is not None and self.best.checkpoint == checkpoint:
            self.best = self._best_before

    def start_stage(self) -> None:
        """Another stage has its own best."""
        self.best = None

    def has_lost_patience(self, epochs: int) -> bool:
        """Whether the experiment's patience with this stage, which has had so many epochs, is at its end."""
        if self._experiment.patience is None:
            return False
        before = len(self.history) - epochs
        values = [report.metrics[self._experiment.leading] for report in self.history[before:]]
        return self._experiment.has_lost_patience(values, since=max(0, self.patience_from - before))

    def renew_patience(self) -> None:
        """Epochs count towards its end from here on."""
        self.patience_from = len(self.history)

    def _is_best(self, report: Report) -> bool:
        if self.best is None:
            return True
        is_feasible = self._experiment.is_feasible(report.metrics)
        if is_feasible is not self._experiment.is_feasible(self.history[self.best.epoch - 1].metrics):
            return is_feasible
        return self._experiment.better(report.metrics[self._experiment.leading], self.best.value)
