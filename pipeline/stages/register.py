"""The registration stage: the evaluated model as a folder without pickle, logged and registered with MLflow.

The folder holds the experiment's source, the weights, and the tables that `evaluate` had read before it tracked
the model. Serving runs `evaluate` again, up to that point: it builds the model as the user builds it.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from blake3 import blake3

from pipeline.checkpoint import Manifest, Position, capture, read_manifest, read_state, save
from pipeline.errors import ThawError
from pipeline.experiment import ExperimentFile, from_params, load_experiment, to_params
from pipeline.stages.evaluate import Evaluated, Evaluation, predictor, served_name
from pipeline.tracking import models
from pipeline.tracking.tables import Tables


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the served model is built: stored as `model.json`."""

    file: str
    config: Mapping[str, Any]
    seed: int
    tracked: tuple[str, ...]
    tables: tuple[str, ...]


class _Built(BaseException):
    """Leaves `evaluate` once its model is built."""


def register(
    file: ExperimentFile,
    config: Any,
    evaluated: Evaluated,
    *,
    data: Tables | None,
    seed: int,
    run_id: str,
    name: str,
    tags: Mapping[str, str],
    description: str,
) -> str | None:
    """Logs the model to an evaluation's run and registers it; returns the version, or None without a model.

    There is none if `evaluate` tracked several modules and none of them, or more than one, can `predict`.
    """
    served = served_name(evaluated.tracked)
    if served is None or evaluated.example is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _write(folder, file, config, evaluated, data, seed)
        return models.log_and_register(
            run_id,
            name,
            folder=folder,
            example=evaluated.example,
            output=evaluated.output,
            sources=file.sources,
            tags=tags,
            description=description,
        )


def _write(
    folder: Path, file: ExperimentFile, config: Any, evaluated: Evaluated, data: Tables | None, seed: int
) -> None:
    for source in file.sources:
        target = folder / "experiment" / source.relative_to(file.path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (folder / "tables").mkdir()
    for table in evaluated.tables:
        assert data is not None
        shutil.copyfile(data.file(table), folder / "tables" / f"{table}.parquet")
    modules = {n: one for n, one in evaluated.tracked.items() if isinstance(one, torch.nn.Module)}
    manifest = Manifest(
        position=Position(),
        step=0,
        trial=0,
        parent=None,
        history=(),
        best=None,
        environment={},
        files={},
        tensors={},
    )
    save(folder / "weights", capture(modules), manifest)
    recipe = Recipe(
        file=file.path.name,
        config=to_params(config),
        seed=seed,
        tracked=tuple(evaluated.tracked),
        tables=evaluated.tables,
    )
    (folder / "model.json").write_text(json.dumps(asdict(recipe), indent=2), encoding="utf-8")


def load_served(folder: Path) -> Callable[[Any], Any]:
    """Builds a registered model again and returns what answers a request.

    Raises:
        ThawError: `evaluate` no longer tracks what it tracked.
    """
    recipe = Recipe(**json.loads((folder / "model.json").read_text(encoding="utf-8")))
    # A name of its own: the experiment may be loaded in this process already, from where it was written.
    name = f"served_{blake3(str(folder.resolve()).encode()).hexdigest(8)}"
    file = load_experiment(folder / "experiment" / recipe.file, name)
    tables = {name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in recipe.tables}
    state = read_state(folder / "weights", read_manifest(folder / "weights" / "manifest.json"))
    run = Evaluation(state=state, data=tables, seed=recipe.seed)
    track = run.track

    def track_and_leave(**objects: Any) -> None:
        track(**objects)
        if set(run.tracked) >= set(recipe.tracked):
            raise _Built

    run.track = track_and_leave  # type: ignore[method-assign]
    config = from_params(file.experiment.config, recipe.config)
    try:
        assert file.experiment.evaluate is not None
        file.experiment.evaluate(config, run)
    except _Built:
        served = served_name(run.tracked)
        assert served is not None
        run.tracked[served].eval()
        return predictor(run.tracked[served])
    raise ThawError(f"{recipe.file}: evaluate no longer tracks {', '.join(recipe.tracked)}")
