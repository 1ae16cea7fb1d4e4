"""Prepared tables as Parquet artifacts of a run, with digests, read when they are asked for."""

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd
from blake3 import blake3
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag

from pipeline.errors import ThawError

FOLDER = "tables"


class Tables(Mapping[str, pd.DataFrame]):
    """The tables of a `prepare` run, by name.

    Attributes:
        run_id: the run whose artifacts they are.
        digests: name -> blake3 of the Parquet file.
        tracking_uri: where the run is; None for where this process tracks.
        read: names that were asked for, in order.
    """

    def __init__(self, run_id: str, digests: Mapping[str, str], tracking_uri: str | None = None) -> None:
        self.run_id = run_id
        self.tracking_uri = tracking_uri
        self.digests = dict(digests)
        self.read: list[str] = []
        self._tables: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self.digests:
            raise ThawError(f"run.data[{name!r}]: prepare returned only {', '.join(self.digests) or 'nothing'}")
        if name not in self._tables:
            self._tables[name] = self._load(name)
            self.read.append(name)
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def file(self, name: str) -> Path:
        """A local copy of the table's Parquet file, verified."""
        artifact = f"{FOLDER}/{name}.parquet"
        path = Path(download_artifacts(run_id=self.run_id, artifact_path=artifact, tracking_uri=self.tracking_uri))
        found = blake3(path.read_bytes()).hexdigest()
        if found != self.digests[name]:
            raise ThawError(
                f"prepared table {name!r} of run {self.run_id} was altered: expected blake3 "
                f"{self.digests[name][:12]}, found {found[:12]}; delete that run to prepare the data anew"
            )
        return path

    def log_inputs(self, run_id: str) -> None:
        """Shows the tables as the datasets that a run uses."""
        MlflowClient().log_inputs(run_id, self._inputs)

    @cached_property
    def _inputs(self) -> list[DatasetInput]:
        return [self._input(name) for name in self]

    def _input(self, name: str) -> DatasetInput:
        with warnings.catch_warnings():
            # What MLflow has to say on whole numbers in a schema is for models, not for tables that are shown.
            warnings.filterwarnings("ignore", message=".*integer column")
            dataset = from_pandas(
                self._load(name),
                source=CodeDatasetSource({"prepared_by": self.run_id, "artifact": f"{FOLDER}/{name}.parquet"}),
                name=name,
                digest=self.digests[name][:36],  # MLflow's limit
            )
            entity = dataset._to_mlflow_entity()
        return DatasetInput(entity, [InputTag("mlflow.data.context", name)])

    def _load(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.file(name))


def save_tables(run_id: str, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Logs tables as artifacts and as MLflow datasets; returns their digests by name."""
    digests: dict[str, str] = {}
    client = MlflowClient()
    with tempfile.TemporaryDirectory() as scratch:
        for name, table in tables.items():
            path = Path(scratch) / f"{name}.parquet"
            table.to_parquet(path)
            digests[name] = blake3(path.read_bytes()).hexdigest()
            client.log_artifact(run_id, str(path), FOLDER)
    Tables(run_id, digests).log_inputs(run_id)
    return digests
