"""Models in MLflow: logged as code and data, never as pickle, and registered."""

import ast
import contextlib
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

EXAMPLE_ROWS = 5
# What building and asking a model needs, whatever the experiment imports besides.
ALWAYS = ("mlflow", "torch", "numpy", "pandas", "pyarrow", "safetensors", "blake3", "pydantic")

# MLflow stores this text with the model and runs it when the model is loaded. INPUT is a table's or an array's type.
CODE = """\
from pathlib import Path

import numpy
import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from pipeline.stages.register import load_served


class Served(PythonModel):
    def load_context(self, context):
        self._answer = load_served(Path(context.artifacts["model"]))

    def predict(self, context, model_input: INPUT, params=None):
        return self._answer(model_input)


set_model(Served())
"""


def log_and_register(
    run_id: str,
    name: str,
    *,
    folder: Path,
    example: Any,
    output: Any,
    sources: Iterable[Path],
    tags: Mapping[str, str],
    description: str,
) -> str:
    """Logs the model in `folder` to a run and registers it under `name`; returns the version.

    `description` is what the UI shows of the version, in Markdown.

    A version of this run that is registered already is returned as it is.
    """
    client = MlflowClient()
    with contextlib.suppress(MlflowException):  # no such model yet
        for known in client.search_model_versions(f"name = '{name}'"):
            if known.run_id == run_id:
                return str(known.version)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # Whole numbers in a table are no mistake.
        warnings.filterwarnings("ignore", message=".*integer column")
        code = Path(scratch) / "served.py"
        kind = f"{type(example).__module__.partition('.')[0]}.{type(example).__name__}"
        code.write_text(CODE.replace("INPUT", kind), encoding="utf-8")
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            artifacts={"model": str(folder)},
            code_paths=[str(Path(__file__).parents[1])],
            signature=infer_signature(example, output),
            input_example=example[:EXAMPLE_ROWS],
            pip_requirements=requirements(sources),
        )
    made = str(mlflow.register_model(logged.model_uri, name, tags=dict(tags)).version)
    client.update_model_version(name, made, description)
    return made


def point(name: str, *, best: str | None) -> None:
    """Brings the aliases of a registered model in line: `challenger` is the newest version, `champion` the `best` one.

    None for a `best` that has no version: the champion stays who it was.
    """
    client = MlflowClient()
    newest = max(client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))
    wanted = {"challenger": str(newest.version)} | ({"champion": best} if best is not None else {})
    now = client.get_registered_model(name).aliases
    for alias, wished in wanted.items():
        if str(now.get(alias)) != wished:
            client.set_registered_model_alias(name, alias, wished)


def requirements(sources: Iterable[Path]) -> list[str]:
    """The installed versions of what serving and the experiment's sources import."""
    installed = packages_distributions()
    imported = {
        name.split(".")[0]
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        for name in _names(node)
    }
    needed = {installed[name][0] for name in imported if name in installed and name != "pipeline"}
    return sorted(f"{name}=={version(name)}" for name in {*ALWAYS, *needed})


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    return []
