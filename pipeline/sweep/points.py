"""Points of the search space that are given, not drawn: enqueued ones, and those of a grid.

`suggest` defines the search space by running. So it is run, without a study, to find out what it asks for.
"""

import csv
import random
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from pipeline.errors import UsageError
from pipeline.experiment import ExperimentFile, users_code

LARGEST_GRID = 10_000

Choose = Callable[[str, BaseDistribution], Any]


class _Asked(FixedTrial):
    """A trial without a study, which answers what it is told to, and remembers what it was asked."""

    def __init__(self, choose: Choose) -> None:
        super().__init__({})
        self._choose = choose

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self._params:
            self._params[name] = self._choose(name, distribution)
        return super()._suggest(name, distribution)


def ask(file: ExperimentFile, choose: Choose) -> FixedTrial:
    """What `suggest` asks for, when it is told what `choose` says. Raises what that raises; ThawError."""
    trial = _Asked(choose)
    assert file.experiment.suggest is not None
    with users_code(file, "suggest"):
        file.experiment.suggest(trial)
    return trial


def enqueued(file: ExperimentFile, texts: Sequence[str], table: Path | None) -> list[dict[str, Any]]:
    """The points of `--enqueue` and `--enqueue-file`, in their order.

    Raises:
        UsageError: one names what `suggest` does not ask for, or lies outside of the search space, or is given twice.
    """
    named = [(f"--enqueue {text}", _parsed(text)) for text in texts]
    if table is not None:
        named += [(f"--enqueue-file {table.name}, row {row}", given) for row, given in enumerate(_rows(table), start=1)]
    points: list[dict[str, Any]] = []
    for where, given in named:
        point = _point(file, where, given)
        if point in points:
            raise UsageError(f"{where}: this point is given twice")
        points.append(point)
    return points


def _parsed(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and equals and value.strip() for name, equals, value in pairs):
        raise UsageError(f"--enqueue {text}: expected for instance lr=0.01,width=64")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            found = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"--enqueue-file {table}: {error}; expected a CSV table with a column for each parameter"
        ) from error
    if not found or any(None in row or None in row.values() for row in found):
        raise UsageError(f"--enqueue-file {table}: expected a row of names, and as many values in each row below")
    return [{name: value for name, value in row.items() if value} for row in found]  # an empty cell is drawn


def _point(file: ExperimentFile, where: str, given: Mapping[str, str]) -> dict[str, Any]:
    point: dict[str, Any] = {}

    def choose(name: str, distribution: BaseDistribution) -> Any:
        if name not in given:
            return _first(distribution)
        point[name] = _value(where, name, given[name], distribution)
        return point[name]

    asked = ask(file, choose).distributions
    for name in given:
        if name not in asked:
            raise UsageError(
                f"{where}: {file.path.name}, suggest asks for no {name!r}, but for {', '.join(asked)}; if it does so "
                "for some configurations only, give what that depends on as well"
            )
    return point


def grid(file: ExperimentFile, given: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Every point of the grid, in an order that the seed says.

    `given` has the values of parameters; of the others those that are categories, or steps, are taken as they are. A
    parameter that is asked for in some configurations only has its values in those.

    Raises:
        UsageError: a parameter is continuous, or `given` names what `suggest` does not ask for.
    """
    path: dict[str, list[Any]] = {}  # of each parameter, in the order they are asked for, the values that are left

    def choose(name: str, distribution: BaseDistribution) -> Any:
        if name not in path:
            path[name] = _values(name, given, distribution)
        return path[name][0]

    points: list[dict[str, Any]] = []
    while not points or path:
        points.append(dict(ask(file, choose).params))
        if len(points) > LARGEST_GRID:
            raise UsageError(f"--sampler grid: more than {LARGEST_GRID} points; give fewer values with --grid")
        while path and len(next(reversed(path.values()))) == 1:
            path.popitem()
        if path:
            next(reversed(path.values())).pop(0)
    asked = {name for point in points for name in point}
    for name in given:
        if name not in asked:
            known = ", ".join(sorted(asked))
            raise UsageError(f"--grid: {file.path.name}, suggest asks for no {name!r}, but for {known}")
    random.Random(seed).shuffle(points)
    return points


def _values(name: str, given: Mapping[str, Any], distribution: BaseDistribution) -> list[Any]:
    """The values that a grid has of a parameter."""
    if name in given:
        values = given[name] if isinstance(given[name], list) else [given[name]]
        found = [_value("--grid", name, str(value), distribution) for value in values]
        if not found or len(set(found)) < len(found):
            raise UsageError(f"--grid: {name} has no value, or one twice")
        return found
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        steps = round((distribution.high - distribution.low) / distribution.step)
        low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))  # 0.3 three times is 0.9
        return [float(low + place * step) for place in range(steps + 1)]
    if distribution.single():
        return [_first(distribution)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    ends = f"{distribution.low}, {distribution.high}"
    raise UsageError(
        f"--sampler grid: {name} has no steps between {ends.replace(', ', ' and ')}; say which values, "
        f"for instance --grid '{{{name}: [{ends}]}}'"
    )


def _value(where: str, name: str, text: str, distribution: BaseDistribution) -> Any:
    """The parameter's value as `suggest` returns it. Raises: UsageError, if it is none of the distribution's."""
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if str(choice).lower() == text.lower() or (isinstance(choice, float) and choice == _number(text)):
                return choice
        expected = f"one of {', '.join(map(str, distribution.choices))}"
        raise UsageError(f"{where}: {name} is {text}, expected {expected}")
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    value = _number(text)
    if value is None or not distribution._contains(value):
        step = f" in steps of {distribution.step}" if distribution.step not in (None, 1) else ""
        kind = "a whole number" if isinstance(distribution, IntDistribution) else "a number"
        raise UsageError(
            f"{where}: {name} is {text}, expected {kind} from {distribution.low} to {distribution.high}{step}"
        )
    return distribution.to_external_repr(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _first(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low
