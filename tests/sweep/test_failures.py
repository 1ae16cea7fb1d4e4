"""What an exception says about a segment."""

import socket

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.sweep.failures import class_of
from pipeline.sweep.lineage import BUG, LOST


def test_user_code_that_finds_mlflows_server_away_is_no_bug(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(MlflowException) as raised:
            MlflowClient(f"http://127.0.0.1:{taken.getsockname()[1]}").log_metric("run", "loss", 1.0)
    assert class_of(raised.value) == LOST


def test_user_code_that_mlflow_refuses_is_a_bug(tmp_path):
    with pytest.raises(MlflowException) as raised:
        MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").log_metric("run", "loss", 1.0)
    assert class_of(raised.value) == BUG
