"""The direction of imports: cli, engines, sweep, stages, run, checkpoint and tracking, leaves."""

import ast
import graphlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (  # the highest first; a part imports its own layer and those below
    ("cli", "front", "__main__"),
    ("completion", "summary", "documents", "commands", "results"),
    ("checking",),
    ("session", "planning", "proving"),
    ("terminal",),
    ("engines",),
    ("report",),
    ("sweep",),
    ("stages",),
    ("run", "batches", "course", "local", "ranks", "segment"),
    ("checkpoint", "tracking"),
    ("experiment",),
)
LEAF = len(LAYERS)  # errors, signals and every other small module: they import leaves only
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


def imports(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Every module that the source names in an import, in a function or for type checking too.

    `from a import b` gives both `a` and `a.b`, as only the file system knows which it means.
    """
    package = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def known(names: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Of the names, the modules of `pipeline`; a name that is in a module counts as that module."""
    modules = set(modules)
    found = {name for name in names if name in modules}
    # `from pipeline.run import Run` names pipeline.run and pipeline.run.Run;
    # `from pipeline import run` names pipeline, and means pipeline.run alone.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def complaints(sources: Mapping[str, str], packages: Iterable[str] = ()) -> list[str]:
    """What is wrong with the imports of these modules (dotted name -> source), one line each."""
    packages = set(packages)
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        names = imports(source, module, is_package=module in packages)
        outside = {name.partition(".")[0] for name in names}
        top, _, rest = module.partition(".")
        if top == "experiments" or module == "pipeline.template":  # which users get as an experiment of theirs
            found += [
                f"{module} imports {name}; an experiment imports the names that `pipeline` exports"
                for name in known(names, sources)
                if name.startswith("pipeline.")
            ]
            continue
        part = rest.partition(".")[0]
        if "mlflow" in outside and part != "tracking" and module != "pipeline.checkpoint.store":
            found.append(f"{module} imports mlflow; only tracking/ and checkpoint/store.py know it")
        if "optuna" in outside and part == "checkpoint":
            found.append(f"{module} imports optuna; checkpoint/ knows torch, not Optuna")
        if "torch" in outside and part == "sweep":
            found.append(f"{module} imports torch; sweep/ knows Optuna, not torch")
        graph[module] = known(names, sources) - {module}
        if not part:
            continue  # pipeline/__init__.py gathers what users import
        for other in sorted(graph[module]):
            target = other.partition(".")[2].partition(".")[0]
            if other == "pipeline":
                found.append(f"{module} imports pipeline itself; import the module that has the name")
            elif part == "experiment" and target != "errors":
                found.append(f"{module} imports {other}; experiment.py knows only the errors")
            elif target != part and RANK.get(target, LEAF) < RANK.get(part, LEAF):
                found.append(f"{module} imports {other}, which lies above it")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import cycle: " + " -> ".join(reversed(error.args[1])))
    return found


def test_the_code_imports_one_way():
    paths = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("experiments/*.py")])
    sources = {name_of(path): path.read_text() for path in paths}
    packages = {name_of(path) for path in paths if path.name == "__init__.py"}
    assert sources
    found = complaints(sources, packages)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("pipeline.run", "from pipeline.sweep.study import open_study", "which lies above it"),
        ("pipeline.run", "from pipeline.sweep import study", "which lies above it"),
        ("pipeline.run", "from .sweep.study import open_study", "which lies above it"),
        ("pipeline.run", "def f():\n    import pipeline.cli", "which lies above it"),
        ("pipeline.checkpoint.state", "from pipeline.run import Run", "which lies above it"),
        ("pipeline.checkpoint.state", "from ..run import Run", "which lies above it"),
        ("pipeline.errors", "from pipeline.experiment import Experiment", "which lies above it"),
        ("pipeline.unheard_of", "from pipeline.checkpoint import state", "which lies above it"),
        ("pipeline.run", "from pipeline import Experiment", "imports pipeline itself"),
        ("pipeline.experiment", "from pipeline.signals import stop", "knows only the errors"),
        ("pipeline.run", "import mlflow.pytorch", "only tracking/ and checkpoint/store.py"),
        ("pipeline.checkpoint.state", "import mlflow", "only tracking/ and checkpoint/store.py"),
        ("pipeline.checkpoint.store", "from optuna import Trial", "not Optuna"),
        ("pipeline.sweep.study", "from torch import nn", "not torch"),
        ("experiments.mine", "from pipeline.run import Run", "the names that `pipeline` exports"),
    ],
)
def test_an_import_the_wrong_way_is_found(module: str, source: str, complaint: str):
    names = ["", ".cli", ".sweep", ".sweep.study", ".run", ".checkpoint", ".checkpoint.state", ".experiment"]
    tree = dict.fromkeys([f"pipeline{name}" for name in [*names, ".signals"]], "")
    found = complaints(tree | {module: source}, packages=["pipeline", "pipeline.sweep", "pipeline.checkpoint"])
    assert len(found) == 1
    assert complaint in found[0]


def test_a_circle_is_found():
    tree = {"pipeline.run": "from pipeline import batches", "pipeline.batches": "import pipeline.run"}
    assert [line.partition(":")[0] for line in complaints({"pipeline": ""} | tree)] == ["import cycle"]


def test_imports_the_right_way_pass():
    tree = {
        "pipeline": "from pipeline.run import Run",
        "pipeline.cli": "from pipeline.sweep.study import open_study\nimport torch",
        "pipeline.sweep": "",
        "pipeline.sweep.study": "import optuna\nfrom pipeline.sweep import lineage\nfrom pipeline import run",
        "pipeline.sweep.lineage": "from pipeline import errors",
        "pipeline.run": "from pipeline.checkpoint.store import Store",
        "pipeline.checkpoint": "",
        "pipeline.checkpoint.store": "import mlflow",
        "pipeline.experiment": "from pipeline.errors import UsageError",
        "pipeline.errors": "",
        "experiments.mine": "from pipeline import Experiment, Run\nimport mlflow, torch, optuna",
    }
    assert complaints(tree, packages=["pipeline", "pipeline.sweep", "pipeline.checkpoint"]) == []
