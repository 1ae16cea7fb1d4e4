"""The evaluation stage: the best weights, on data that training never saw."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.checkpoint import RESERVED, restore, seed_all
from pipeline.checkpoint.environment import default_device
from pipeline.errors import UsageError
from pipeline.experiment import Experiment
from pipeline.tracking.tables import Tables


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        metrics: what `evaluate` returned.
        tracked: the objects it tracked, with the best weights in them.
        tables: names of the tables it had read before it tracked them: what the model is built from.
        example: first input that the served model was given, or None.
        output: what it made of it.
    """

    metrics: dict[str, float]
    tracked: dict[str, Any]
    tables: tuple[str, ...]
    example: Any
    output: Any


class Evaluation:
    """The `run` that `evaluate` is given.

    Attributes:
        data, device, seed: as in training.
        rank, world_size, is_main: as in training by a process that is alone, which this one is.
        tracked: objects given to `track`.
    """

    rank, world_size, is_main = 0, 1, True

    def __init__(self, *, state: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> None:
        self.data = data
        self.device = default_device()
        self.seed = seed
        self.tracked: dict[str, Any] = {}
        self.tables: tuple[str, ...] = ()
        self.calls: list[tuple[Any, Any]] = []
        self._state = state

    def track(self, **objects: Any) -> None:
        """Loads the best weights of what is named; nothing else of the checkpoint is touched.

        Raises:
            UsageError: the checkpoint has nothing of this name.
        """
        for name in objects:
            if name not in self._state:
                there = ", ".join(n for n in self._state if n not in RESERVED)
                raise UsageError(f"evaluate: run.track({name}=...): training tracked only {there}")
        restore(objects, self._state)
        self.tracked |= objects
        self.tables = tuple(self.data.read) if isinstance(self.data, Tables) else tuple(self.data)


def evaluate(
    experiment: Experiment,
    config: Any,
    *,
    state: Mapping[str, Any],
    data: Mapping[str, Any],
    seed: int,
    threads: int,
) -> Evaluated:
    """Runs the user's `evaluate`.

    Raises:
        UsageError: there is none, it tracked nothing, or it returned something else than numbers.
    """
    if experiment.evaluate is None:
        raise UsageError("the experiment declares no `evaluate`; add Experiment(..., evaluate=evaluate)")
    torch.set_num_threads(threads)
    seed_all(seed)
    run = Evaluation(state=state, data=data, seed=seed)
    with _watched(run):
        returned = experiment.evaluate(config, run)
    if not run.tracked:
        raise UsageError("evaluate tracked nothing; it needs run.track(model=model) to have the best weights")
    example, output = run.calls[0] if run.calls else (None, None)
    return Evaluated(
        metrics=_numbers(returned),
        tracked=run.tracked,
        tables=run.tables,
        example=example,
        output=output,
    )


def _numbers(returned: Any) -> dict[str, float]:
    if not isinstance(returned, Mapping):
        raise UsageError(f"evaluate returned {type(returned).__name__}; expected a mapping of names to numbers")
    try:
        return {str(name): float(value) for name, value in returned.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(f"evaluate returned something else than numbers: {error}") from error


def served_name(tracked: Mapping[str, Any]) -> str | None:
    """Which of the tracked objects is the model to serve: the only module, or the one that can `predict`."""
    modules = [name for name, one in tracked.items() if isinstance(one, torch.nn.Module)]
    able = [name for name in modules if hasattr(tracked[name], "predict")]
    chosen = able or modules
    return chosen[0] if len(chosen) == 1 else None


def predictor(model: Any) -> Callable[[Any], Any]:
    """How a model is asked: its own `predict(table)`, else its forward pass over an array."""
    if hasattr(model, "predict"):
        return model.predict  # type: ignore[no-any-return]

    def forward(array: Any) -> Any:
        with torch.no_grad():
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            return model(torch.as_tensor(array, device=device)).cpu().numpy()

    return forward


@contextmanager
def _watched(run: Evaluation) -> Iterator[None]:
    """Notes what the tracked models are asked and answer: their signature and example."""
    track = run.track
    undo: list[Callable[[], None]] = []

    def track_and_watch(**objects: Any) -> None:
        track(**objects)
        name = served_name(run.tracked)
        if name is not None and name in objects:
            undo.append(_watch(run.tracked[name], run.calls))

    run.track = track_and_watch  # type: ignore[method-assign]
    try:
        yield
    finally:
        for one in undo:
            one()


def _watch(model: Any, calls: list[tuple[Any, Any]]) -> Callable[[], None]:
    if hasattr(model, "predict"):
        inner = model.predict

        def predict(table: Any) -> Any:
            answer = inner(table)
            calls.append((table, answer))
            return answer

        model.predict = predict
        return lambda: delattr(model, "predict")

    def hook(_: Any, args: tuple[Any, ...], answer: Any) -> None:
        if len(args) == 1 and isinstance(args[0], torch.Tensor) and isinstance(answer, torch.Tensor):
            calls.append((args[0].detach().cpu().numpy(), answer.detach().cpu().numpy()))

    return model.register_forward_hook(hook).remove  # type: ignore[no-any-return]
