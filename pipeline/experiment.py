"""What a user declares: an `Experiment`, and how its file is found, loaded and identified."""

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_type_hints

from blake3 import blake3

from pipeline.errors import ThawError, UsageError

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Stage:
    """One of several trainings of a configuration, one after the other, each with its own objects.

    Attributes:
        name: shown to people.
        train: the stage's loop, as `Experiment.train`; `run.previous` is what the stage before ended with.
        max_epochs: epochs of this stage.
    """

    name: str
    train: Callable[[Any, Any], None]
    max_epochs: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise UsageError(f"Stage({self.name!r}, max_epochs={self.max_epochs}): expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One file's worth of an experiment: what is varied, how it is trained, by what it is judged.

    Attributes:
        config: frozen dataclass; one instance is one configuration.
        train: the training loop, `train(config, run) -> None`, or a tuple of stages.
        monitor: name of the reported metric by which epochs and configurations are compared. Several names make several
            objectives; the first decides which epoch of a configuration is its best.
        direction: whether less or more of the monitored metric is better; one for each of several.
        max_epochs: epochs a configuration gets at most; with stages it is their sum, and left out.
        suggest: draws a configuration, `suggest(trial: optuna.Trial) -> config`; needed to sweep.
        data: frozen dataclass of the options of `prepare`. Its fields of type `Path` are input files.
        prepare: loads and splits, `prepare(data) -> {name: DataFrame}`; runs once per study.
        evaluate: judges the best weights on data that `train` never saw, `evaluate(config, run) -> {name: float}`.
        patience: a configuration (with stages, a stage) is complete early, after so many epochs in a row in which the
            monitored metric has not improved; None trains all of them.
        min_delta: by how much it has to get better to have improved.
        constraints: names of reported metrics that are to be at most 0; what breaks one is worse than all others.
    """

    config: type[Any]
    train: Callable[[Any, Any], None] | tuple[Stage, ...]
    monitor: str | tuple[str, ...]
    direction: Direction | tuple[Direction, ...]
    max_epochs: int = 0
    suggest: Callable[[Any], Any] | None = None
    data: type[Any] | None = None
    prepare: Callable[[Any], Mapping[str, Any]] | None = None
    evaluate: Callable[[Any, Any], Mapping[str, float]] | None = None
    patience: int | None = None
    min_delta: float = 0.0
    constraints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, cls in (("config", self.config), ("data", self.data)):
            if cls is not None and not (inspect.isclass(cls) and is_dataclass(cls)):
                raise UsageError(f"Experiment({name}=...): expected a dataclass, found {cls!r}")
        names, directions = _tuple(self.monitor), _tuple(self.direction)
        if not directions or not set(directions) <= {"minimize", "maximize"}:
            raise UsageError(f"Experiment(direction={self.direction!r}): expected 'minimize' or 'maximize'")
        if len(names) != len(directions) or len(set(names)) < len(names):
            raise UsageError(
                f"Experiment(monitor={self.monitor!r}, direction={self.direction!r}): expected different metrics, "
                "and a direction for each"
            )
        constraints: object = self.constraints
        if not isinstance(constraints, tuple) or set(constraints) & set(names):
            raise UsageError(
                f"Experiment(constraints={self.constraints!r}): expected a tuple of metrics that are not monitored"
            )
        if isinstance(self.train, tuple):
            self._check_stages(self.train)
            object.__setattr__(self, "max_epochs", sum(stage.max_epochs for stage in self.train))
        elif self.max_epochs < 1:
            raise UsageError(f"Experiment(max_epochs={self.max_epochs}): expected at least 1")
        if self.patience is not None and self.patience < 1:
            raise UsageError(f"Experiment(patience={self.patience}): expected at least 1, or None")
        if not self.min_delta >= 0 or (self.min_delta and self.patience is None):
            raise UsageError(f"Experiment(min_delta={self.min_delta}): expected at least 0, and `patience` with it")
        if self.data is not None and self.prepare is None:
            raise UsageError("Experiment(data=...): options of `prepare`, but `prepare` is missing")

    def _check_stages(self, stages: tuple[Any, ...]) -> None:
        names = [stage.name for stage in stages if isinstance(stage, Stage)]
        if len(names) < len(stages) or not names:
            raise UsageError("Experiment(train=(...)): expected one Stage or more, and nothing else")
        if len(set(names)) < len(names):
            raise UsageError(f"Experiment(train=(...)): two stages have the same name; found {', '.join(names)}")
        if self.max_epochs:
            raise UsageError("Experiment(max_epochs=...): with stages, each Stage says its own")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of training, in order; a plain `train` is the only one."""
        if isinstance(self.train, tuple):
            return self.train
        return (Stage("train", self.train, max_epochs=self.max_epochs),)

    @property
    def objectives(self) -> dict[str, Direction]:
        """The direction of each monitored metric."""
        return dict(zip(_tuple(self.monitor), _tuple(self.direction), strict=True))

    @property
    def leading(self) -> str:
        """The monitored metric; of several, the first."""
        return next(iter(self.objectives))

    def better(self, value: float, than: float) -> bool:
        """Whether one value of the leading metric beats another; nan beats nothing."""
        return value < than if self.objectives[self.leading] == "minimize" else value > than

    def is_feasible(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics break none of the constraints."""
        return all(metrics[name] <= 0 for name in self.constraints)

    def has_lost_patience(self, values: Sequence[float], *, since: int = 0) -> bool:
        """Whether a stage with these monitored values, one an epoch, ends early; epochs are counted from `since`."""
        if self.patience is None or not values:
            return False
        delta = self.min_delta if self.objectives[self.leading] == "minimize" else -self.min_delta
        best, improved = values[0], 1
        for epoch, value in enumerate(values[1:], start=2):
            if self.better(value + delta, best):
                best, improved = value, epoch
        return len(values) - max(improved, since) >= self.patience


@dataclass(frozen=True, kw_only=True)
class ExperimentFile:
    """An experiment with the file that declares it and the neighbours that file imports."""

    experiment: Experiment
    path: Path
    sources: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def code_digest(self) -> str:
        """blake3 of the source files, in the order of their names: equal while the code is."""
        digest = blake3()
        for source in self.sources:
            content = source.read_bytes()
            digest.update(f"{source.relative_to(self.path.parent)} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def load_experiment(file: str | Path, module_name: str | None = None) -> ExperimentFile:
    """Runs an experiment file and returns the `experiment` it declares.

    Its folder comes first on `sys.path`, so it may import its neighbours. It becomes the module of its own
    name, or `module_name`.

    Raises:
        UsageError: no such file, it raises while it is imported, or it declares no `experiment`.
    """
    path = Path(file).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(f"{file}: no such experiment file; give the path of a Python file")
    module = _run(path, file, module_name or path.stem)
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{file}: declares no experiment; end the file with `experiment = Experiment(...)`")
    return ExperimentFile(experiment=experiment, path=path, sources=tuple(sorted(_sources(path))))


def _run(path: Path, file: str | Path, name: str) -> ModuleType:
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        raise UsageError(f"{file}: the module {name!r} is loaded already from elsewhere; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module  # before it runs: dataclasses and pickled datasets look themselves up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UsageError):
            raise UsageError(f"{file}: {error}") from error
        if isinstance(error, Exception):
            raise UsageError(f"{file}{_line(error, path)}: {type(error).__name__}: {error}") from error
        raise
    return module


def _line(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


@contextmanager
def users_code(file: ExperimentFile, function: str) -> Iterator[None]:
    """What a user's function raises becomes an error of one line. Raises: ThawError."""
    try:
        yield
    except ThawError:
        raise
    except Exception as error:
        place = f"{file.path.name}{_line(error, file.path)}"
        raise ThawError(f"{place}, {function}: {type(error).__name__}: {error}") from error


def _sources(path: Path) -> set[Path]:
    """The file and, through its imports, the modules that lie in its folder."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        source = waiting.pop()
        if source in found:
            continue
        found.add(source)
        for name in _imported(source):
            stem = path.parent.joinpath(*name.split("."))
            waiting += [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return found


def _imported(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    names.discard("pipeline")
    return {name for name in names if not name.startswith("pipeline.")}


def to_params(options: Any) -> dict[str, Any]:
    """A dataclass instance as plain JSON values, nested as its fields are."""
    from pydantic import TypeAdapter  # slow to import, and the command line needs this module at once

    return TypeAdapter(type(options)).dump_python(options, mode="json")  # type: ignore[no-any-return]


def default_params(cls: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass's fields, as `to_params` gives them; a required field has none."""
    from pydantic import TypeAdapter

    found = {}
    for one in fields(cls):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if default is not MISSING:
            found[one.name] = TypeAdapter(get_type_hints(cls)[one.name]).dump_python(default, mode="json")
    return found


def from_params(cls: type[Any], params: Mapping[str, Any]) -> Any:
    """The inverse of `to_params`.

    Raises:
        UsageError: the values do not fit the dataclass, because it was changed.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(cls).validate_python(dict(params))
    except ValueError as error:
        reasons = "; ".join(str(error).splitlines()[1:3])
        raise UsageError(f"{cls.__name__}: stored values {dict(params)} do not fit: {reasons}") from error


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names: `{"optimizer": {"lr": 1}}` becomes `{"optimizer.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def seed_for(seed: int, number: int) -> int:
    """The seed of a configuration: a function of the study's seed and the configuration's number alone.

    Fits NumPy's legacy generators (32 bits), which every library's seeding accepts.
    """
    return int.from_bytes(blake3(f"{seed}/{number}".encode()).digest(4), "big")
