"""What it usually means that two trainings part."""

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.proving.compare import Difference
from pipeline.proving.record import Moment
from pipeline.proving.variables import Variable

MOST = 3  # variables that are named
# The likeliest first: what differs may follow from what stands before it.
RANKS = ("generator", "foreign generator", "scheduler", "object", "value")
CLOCK = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "now", "utcnow", "today"}
ENTROPY = {"urandom", "uuid1", "uuid4", "SystemRandom", "token_bytes", "randbits"}
UNSEEDED = {"default_rng", "RandomState"}  # without an argument
OWNERS = {"time", "datetime", "date", "os", "uuid", "secrets", "random", "np", "numpy"}


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A variable that is not tracked, and that had another value when training had resumed."""

    name: str
    where: str
    variable: Variable


def suspects(undisturbed: Iterable[Moment], killed: Iterable[Moment]) -> list[Suspect]:
    """The variables that differ at the same place, the likeliest first."""
    there = {moment.at: moment.variables for moment in undisturbed if moment.variables is not None}
    found: dict[str, Suspect] = {}
    for moment in killed:
        other = there.get(moment.at)
        if moment.variables is None or other is None:
            continue
        for key, variable in moment.variables.items():
            if key in other and other[key] != variable:
                name, _, where = key.partition(" ")
                found.setdefault(key, Suspect(name=name, where=where, variable=variable))
    ranked = sorted(found.values(), key=lambda one: RANKS.index(one.variable.kind))
    kind = ranked[0].variable.kind if ranked else None
    return [one for one in ranked if one.variable.kind == kind][:MOST]


def explain(
    first: Sequence[Difference], *, repeats: bool, found: Sequence[Suspect], sources: Collection[Path]
) -> list[str]:
    """Sentences, the likeliest first. `repeats`: whether two undisturbed runs agree."""
    chance = chances(sources)
    if not repeats:
        texts = ["two undisturbed runs differ as well: this training is not the same twice, killed or not"]
        if not chance:
            texts.append(
                "a nondeterministic operator (try torch.use_deterministic_algorithms(True)), a generator without a "
                "seed, the order of a set, or wall-clock time"
            )
        return texts + chance
    texts = [_advice(one) for one in found]
    if not texts:
        texts = [_guess(first)]
    return texts + chance


def chances(sources: Collection[Path]) -> list[str]:
    """The places where the code reads a clock or draws what no seed decides."""
    return [text for source in sorted(sources) for text in _chances_in(source)]


def _chances_in(source: Path) -> list[str]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported: Mapping[str, str] = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in OWNERS
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, call = _called(node.func, imported), ast.unparse(node.func)
        place = f"{source.name}, line {node.lineno}: {call}()"
        if name in CLOCK:
            found.append(f"{place} reads the clock; wall-clock time is another one after a kill")
        elif name in ENTROPY or (name in UNSEEDED and not node.args and not node.keywords):
            found.append(f"{place} draws from the system, which no seed decides; give it run.seed")
    return found


def _called(function: ast.expr, imported: Mapping[str, str]) -> str | None:
    """The name of a called function, if it is one of the modules that have clocks and chance."""
    if isinstance(function, ast.Name):
        return imported.get(function.id)
    if not isinstance(function, ast.Attribute):
        return None
    root: ast.expr = function.value
    while isinstance(root, ast.Attribute):
        root = root.value
    return function.attr if isinstance(root, ast.Name) and root.id in OWNERS | set(imported) else None


def _advice(one: Suspect) -> str:
    name, cls = one.name, one.variable.type
    plain = name if name.isidentifier() else name.rpartition(".")[2]
    track = f"run.track({plain if plain.isidentifier() else 'it'}={name})"
    where = f"`{name}` ({cls}) in {one.where}"
    match one.variable.kind:
        case "generator":
            return f"{where} is a random generator that is not tracked, and starts anew after a kill; {track}"
        case "foreign generator":
            return (
                f"{where} is a random generator that a checkpoint cannot hold; use a torch.Generator or "
                "numpy.random.default_rng(run.seed), and track it"
            )
        case "scheduler":
            return f"{where} is a scheduler that is not tracked, and starts anew after a kill; {track}"
        case "object":
            return f"{where} has a state and is not tracked, and starts anew after a kill; {track}"
    return (
        f"{where} is a plain variable, and a kill loses it; give it to run.mean, or keep it in an object with "
        "state_dict and load_state_dict, and track that"
    )


def _guess(first: Sequence[Difference]) -> str:
    names = [one.name for one in first if one.kind != "metric"]
    if any(".lr" in name or "param_groups" in name for name in names):
        return "a learning rate differs: a scheduler that is not tracked; give it to run.track"
    if not names:
        return (
            "only metrics differ: they depend on something that is not tracked, such as averaged weights (EMA) or a "
            "plain variable of the loop"
        )
    return (
        "the state differs after a resume: a plain variable of the loop that is not tracked, or a random generator "
        "that run.track was not given"
    )
