"""The data stage: runs `prepare` once, keeps its tables as artifacts, and finds them again while nothing changed."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from blake3 import blake3

from pipeline.errors import ThawError
from pipeline.experiment import ExperimentFile, to_params, users_code
from pipeline.tracking import runs
from pipeline.tracking.tables import Tables, save_tables


def prepare(file: ExperimentFile, options: Any, experiment_id: str) -> Tables | None:
    """The tables of an experiment, prepared now or before; None for an experiment without `prepare`.

    They are prepared anew when the code, the options or the bytes of an input file have changed. An option is
    an input file if it names one.

    Raises:
        ThawError: `prepare` returned something else than tables.
    """
    if file.experiment.prepare is None:
        return None
    params = {} if options is None else to_params(options)
    key = _key(file.code_digest, params)
    tags = {"kind": "prepare", "experiment": file.name, "prepare_key": key}
    done = runs.find_run(experiment_id, {**tags, "state": "complete"})
    if done is not None:
        return Tables(done.info.run_id, json.loads(done.data.tags["tables"]))
    # The run is created when there is something to keep: bad input leaves none behind.
    with users_code(file, "prepare"):
        tables = checked(file.experiment.prepare(options))
    run_id = runs.ensure_run(experiment_id, name=f"prepare {file.name}", key=tags, params=params, source=str(file.path))
    digests = save_tables(run_id, tables)
    runs.set_state(run_id, "complete", tables=json.dumps(digests))
    return Tables(run_id, digests)


def data_digest(tables: Tables | None) -> str | None:
    """One digest of all tables."""
    return None if tables is None else blake3(json.dumps(tables.digests, sort_keys=True).encode()).hexdigest()


def _key(code: str, params: dict[str, Any]) -> str:
    digest = blake3(json.dumps([code, params], sort_keys=True).encode())
    for name, value in sorted(params.items()):
        if isinstance(value, str) and value and Path(value).is_file():
            digest.update(name.encode())
            digest.update_mmap(Path(value))
    return digest.hexdigest()


def checked(tables: Any) -> dict[str, pd.DataFrame]:
    """What `prepare` returned, as a dictionary. Raises ThawError for something else than tables."""
    if not hasattr(tables, "items"):
        raise ThawError(f"prepare returned {type(tables).__name__}; expected a mapping of names to DataFrames")
    for name, table in tables.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise ThawError(f"prepare returned a table named {name!r}; expected an identifier such as 'train'")
        if not isinstance(table, pd.DataFrame):
            raise ThawError(f"prepare returned a {type(table).__name__} as {name!r}; expected a DataFrame")
    return dict(tables)
