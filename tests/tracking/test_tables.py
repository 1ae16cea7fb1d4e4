"""Prepared tables: kept as artifacts, read when asked for, and never altered unnoticed."""

from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from pipeline.errors import ThawError
from pipeline.tracking.runs import ensure_run
from pipeline.tracking.tables import Tables, save_tables


@pytest.fixture
def given():
    return {
        "train": pd.DataFrame({"x": [0.1, 0.2], "kind": ["é", "b"]}, index=[5, 7]),
        "columns": pd.DataFrame({"minimum": [0.0], "count": [3]}),
    }


@pytest.fixture
def saved(experiment_id, given):
    run_id = ensure_run(experiment_id, name="prepare", key={"kind": "prepare"}, params={})
    return run_id, save_tables(run_id, given)


def test_tables_come_back_as_they_were(saved, given):
    run_id, digests = saved
    tables = Tables(run_id, digests)
    assert list(tables) == ["train", "columns"]
    for name, table in given.items():
        pd.testing.assert_frame_equal(tables[name], table)
    assert tables.read == ["train", "columns"]


def test_a_table_is_read_once_and_only_when_it_is_asked_for(saved):
    tables = Tables(*saved)
    assert tables.read == []
    assert tables["train"] is tables["train"]
    assert tables.read == ["train"]


def test_equal_tables_have_equal_digests(saved, given, experiment_id):
    other = ensure_run(experiment_id, name="again", key={"kind": "again"}, params={})
    assert save_tables(other, given) == saved[1]
    given["train"].loc[5, "x"] = 0.3
    assert save_tables(other, given)["train"] != saved[1]["train"]


def test_a_table_that_prepare_did_not_return_is_named_with_those_it_did(saved):
    with pytest.raises(ThawError, match=r"run\.data\['test'\]: prepare returned only train, columns"):
        _ = Tables(*saved)["test"]


def test_an_altered_table_is_noticed(saved):
    run_id, digests = saved
    file = Path(MlflowClient().get_run(run_id).info.artifact_uri) / "tables" / "train.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ThawError, match=f"prepared table 'train' of run {run_id} was altered"):
        _ = Tables(run_id, digests)["train"]


def test_tables_are_shown_as_the_datasets_of_a_run(saved):
    run_id, digests = saved
    inputs = MlflowClient().get_run(run_id).inputs.dataset_inputs
    assert {one.dataset.name: one.dataset.digest for one in inputs} == {n: d[:36] for n, d in digests.items()}
    Tables(run_id, digests).log_inputs(run_id)
    assert len(MlflowClient().get_run(run_id).inputs.dataset_inputs) == 2
