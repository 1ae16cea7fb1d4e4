"""Several objectives: what can pursue them, and which configurations are the best then."""

from collections.abc import Collection, Mapping, Sequence

from pipeline.errors import UsageError
from pipeline.experiment import Direction
from pipeline.sweep.lineage import Lineage

ONE_METRIC = ("cmaes",)  # samplers that Optuna has for one objective only


def check_objectives(objectives: Collection[str], *, sampler: str, pruner: str) -> None:
    """Raises UsageError for a pruner, or a sampler, that several objectives are too many for."""
    if len(objectives) == 1:
        return
    names = ", ".join(objectives)
    if pruner != "none":
        raise UsageError(f"--pruner {pruner}: it compares one metric, and monitored are {names}; say --pruner none")
    if sampler in ONE_METRIC:
        raise UsageError(f"--sampler {sampler}: it is for one metric, and monitored are {names}; say --sampler tpe")


def pareto_front(ranking: Sequence[Lineage], objectives: Mapping[str, Direction]) -> list[Lineage]:
    """Of configurations with a result, in their order, those that no other one beats; the feasible, if there are any.

    One beats another that is as good in everything and better in something, at the best epoch of each.
    """
    judged = [one for one in ranking if one.is_feasible] or list(ranking)
    if len(objectives) == 1:
        return judged[:1]
    values = {
        one.number: tuple(
            (one.best or {})["metrics"][name] * (1.0 if direction == "minimize" else -1.0)
            for name, direction in objectives.items()
        )
        for one in judged
    }

    def is_beaten(mine: tuple[float, ...]) -> bool:
        return any(his != mine and all(h <= m for h, m in zip(his, mine, strict=True)) for his in values.values())

    return [one for one in judged if not is_beaten(values[one.number])]
