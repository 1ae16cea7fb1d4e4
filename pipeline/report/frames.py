"""A study's configurations and segments as tables."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.experiment import flatten
from pipeline.sweep.finish import state_of
from pipeline.sweep.lineage import Lineage, progress_of
from pipeline.tracking import runs

# Columns and their types, in order; a configuration's fields keep the types they have.
COLUMNS = {
    "state": "str",
    "params.": "",
    "epochs": "int64",
    "metrics.": "float64",
    "best_epoch": "Int64",
    "best.": "float64",
    "segments": "int64",
    "seconds": "float64",
    "checkpoint": "str",
    "run_id": "str",
}
SEGMENT_COLUMNS = {
    "configuration": "int64",
    "parent": "Int64",
    "host": "str",
    "pid": "Int64",
    "start": "datetime64[us]",
    "end": "datetime64[us]",
    "from_checkpoint": "str",
    "to_checkpoint": "str",
    "ended": "str",
    "resumed": "str",
}


def configurations(lineages: Mapping[int, Lineage], found: Iterable[Any], *, over: bool) -> pd.DataFrame:
    """A row for each configuration, by its number. `found` are their MLflow runs; `over`: the search is."""
    last = {
        run.info.run_id: {name: value for name, value in run.data.metrics.items() if runs.is_reported(name)}
        for run in found
    }
    rows = {}
    for number, one in lineages.items():
        best = one.best or {}
        rows[number] = {
            "state": state_of(one, over=over),
            **_prefixed("params", flatten(one.config or {})),
            "epochs": one.epochs,
            **_prefixed("metrics", last.get(one.run_id, {})),
            "best_epoch": best.get("epoch"),
            **_prefixed("best", best.get("metrics", {})),
            "segments": len(one.segments),
            "seconds": seconds_of(one),
            "checkpoint": one.progress["checkpoint"],
            "run_id": one.run_id,
        }
    return _table(rows, "configuration", COLUMNS)


def segments(lineages: Mapping[int, Lineage]) -> pd.DataFrame:
    """A row for each segment, by the number of its Optuna trial: who trained what, from where to where."""
    rows = {}
    for number, one in lineages.items():
        for trial in one.segments:
            attrs = trial.user_attrs
            worker = attrs.get("worker", {})
            rows[trial.number] = {
                "configuration": number,
                "parent": attrs["parent"],
                "host": worker.get("host", "").partition(" ")[0] or None,
                "pid": worker.get("pid"),
                "start": trial.datetime_start,
                "end": trial.datetime_complete,
                "from_checkpoint": attrs["start"],
                "to_checkpoint": progress_of(trial)["checkpoint"],
                "ended": attrs.get("ended") if trial.state.is_finished() else None,
                "resumed": attrs.get("resumed"),
            }
    return _table(rows, "trial", SEGMENT_COLUMNS)


def history(lineages: Mapping[int, Lineage], found: Iterable[Any], metrics: tuple[str, ...]) -> pd.DataFrame:
    """Every reported value, or those of some metrics: `configuration`, `epoch` (from 1), `metric`, `value`."""
    numbers = {one.run_id: number for number, one in lineages.items()}
    known = [run for run in found if run.info.run_id in numbers]
    rows = [(numbers[run_id], epoch, metric, value) for run_id, metric, epoch, value in runs.histories(known, metrics)]
    table = pd.DataFrame(rows, columns=["configuration", "epoch", "metric", "value"])
    typed = table.astype({"configuration": "int64", "epoch": "int64", "metric": "str", "value": "float64"})
    return typed.sort_values(["configuration", "metric", "epoch"], ignore_index=True)


def _table(rows: dict[int, dict[str, Any]], index: str, types: dict[str, str]) -> pd.DataFrame:
    """Rows under their numbers; a name that ends with a dot stands for the columns that begin with it."""
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index).sort_index()
    columns = {
        name: kind
        for wanted, kind in types.items()
        for name in ([one for one in table if one.startswith(wanted)] if wanted.endswith(".") else [wanted])
    }
    return table.reindex(columns=list(columns)).astype({name: kind for name, kind in columns.items() if kind})


def _prefixed(prefix: str, values: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in sorted(values.items())}


def seconds_of(one: Lineage) -> float:
    """What its segments took that have ended."""
    return sum(
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in one.segments
        if trial.datetime_start is not None and trial.datetime_complete is not None
    )
