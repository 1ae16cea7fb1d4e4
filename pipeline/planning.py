"""What a sweep is to search: the user's plan, and the spec of the study that it makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.experiment import ExperimentFile, to_params
from pipeline.stages.prepare import data_digest
from pipeline.sweep.points import enqueued, grid
from pipeline.sweep.spec import StudySpec
from pipeline.tracking.tables import Tables

CONFIGURATIONS = 24


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The search of a sweep: the part of its spec that the user sets. See `StudySpec`.

    Attributes:
        configurations: how many; None for all points of a grid, else 24.
        enqueue, enqueue_file: known points, as texts and as a table.
        grid: values of parameters, for the sampler `grid`.
    """

    configurations: int | None
    max_epochs: int | None
    min_epochs: int
    eta: int
    pruner: str
    sampler: str
    seed: int
    pruner_args: Mapping[str, Any] = field(default_factory=dict)
    enqueue: Sequence[str] = ()
    enqueue_file: Path | None = None
    grid: Mapping[str, Any] = field(default_factory=dict)
    warm_start: str | None = None


def spec_of(
    file: ExperimentFile, data: Any, tables: Tables | None, plan: Plan, config: dict[str, Any] | None
) -> StudySpec:
    """The spec of the study that a plan makes; `config` is that of a study of one. Raises: UsageError."""
    experiment = file.experiment
    assert plan.max_epochs is not None
    if len(experiment.stages) > 1 and plan.max_epochs != experiment.max_epochs:
        raise UsageError(f"--max-epochs {plan.max_epochs}: {file.path.name} has stages, and each Stage says its own")
    points = _points(file, plan)
    configurations = plan.configurations
    if configurations is None:
        configurations = len(points) if plan.sampler == "grid" else CONFIGURATIONS
    if plan.sampler == "grid":
        configurations = min(configurations, len(points))
    elif len(points) > configurations:
        raise UsageError(f"--configurations {configurations}: {len(points)} points are enqueued")
    return StudySpec(
        experiment=file.path.name,
        code=file.code_digest,
        data=data_digest(tables),
        data_options={} if data is None else to_params(data),
        config=config,
        monitor=experiment.leading,
        direction=experiment.objectives[experiment.leading],
        configurations=configurations,
        max_epochs=plan.max_epochs,
        min_epochs=min(plan.min_epochs, plan.max_epochs),
        eta=plan.eta,
        pruner=plan.pruner,
        sampler=plan.sampler,
        seed=plan.seed,
        others={name: one for name, one in experiment.objectives.items() if name != experiment.leading},
        constraints=experiment.constraints,
        pruner_args=dict(plan.pruner_args),
        points=points,
        warm_start=plan.warm_start,
    )


def _points(file: ExperimentFile, plan: Plan) -> list[dict[str, Any]]:
    """The configurations that are given."""
    enqueues = bool(plan.enqueue) or plan.enqueue_file is not None
    if plan.sampler != "grid":
        if plan.grid:
            raise UsageError(f"--grid: says the values of --sampler grid; the sampler is {plan.sampler}")
        return enqueued(file, plan.enqueue, plan.enqueue_file) if enqueues else []
    if enqueues:
        raise UsageError("--enqueue: a grid has its points; give it more values with --grid")
    return grid(file, plan.grid, plan.seed)
