"""A run that only trains: the experiments' own code is under test here, not how it is resumed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch

from pipeline import Experiment


class PlainRun:
    """What an experiment calls on its run, without checkpoints.

    Attributes:
        tracked: what `track` was given.
        reports: the metrics of each epoch, averages included.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        data: Mapping[str, Any] | None = None,
        max_epochs: int | None = None,
        best: Mapping[str, Any] | None = None,
    ) -> None:
        self.data = data or {}
        self.max_epochs = max_epochs or experiment.max_epochs
        self.device = torch.device("cpu")
        self.tracked: dict[str, Any] = {}
        self.reports: list[dict[str, float]] = []
        self._best = best
        self._means: dict[str, list[float]] = {}
        torch.manual_seed(0)

    def track(self, **objects: Any) -> None:
        self.tracked |= objects
        if self._best is not None:
            objects["model"].load_state_dict(self._best)

    def epochs(self) -> Iterator[int]:
        for epoch in range(self.max_epochs):
            self._means = {}
            yield epoch

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        return iter(loader)

    def mean(self, **values: float) -> None:
        for name, value in values.items():
            self._means.setdefault(name, []).append(value)

    def report(self, **metrics: float) -> None:
        means = {name: sum(values) / len(values) for name, values in self._means.items()}
        self.reports.append(means | metrics)


@pytest.fixture
def plain_run() -> type[PlainRun]:
    return PlainRun
