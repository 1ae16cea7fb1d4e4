"""Reaching MLflow, and the addresses that are shown."""

import http.server
import threading
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest

from pipeline.databases import sqlite_url
from pipeline.errors import ThawError
from pipeline.tracking import links, server


@pytest.fixture
def uri():
    """Sets the tracking address for one test."""
    before = mlflow.get_tracking_uri()
    yield mlflow.set_tracking_uri
    mlflow.set_tracking_uri(before)


def test_connecting_twice_gives_the_same_experiment(tracking):
    assert server.connect() == server.connect()
    assert server.folder() == tracking


def test_the_experiment_that_a_project_was_given_is_used(tracking, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    named = server.connect()
    assert mlflow.MlflowClient().get_experiment_by_name("mine").experiment_id == named
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "17")
    assert server.connect() == "17"


def test_a_fresh_database_is_created_with_its_folder(tmp_path, uri):
    uri(sqlite_url(tmp_path / "new é 5%20" / "mlflow.db"))
    server.connect()
    assert (tmp_path / "new é 5%20" / "mlflow.db").is_file()


def test_a_database_in_the_working_directory_is_the_one_that_mlflow_takes_by_itself(tmp_path, uri, monkeypatch):
    place = tmp_path / "à b"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri(None)
    server.connect()
    assert server.folder() == place
    assert (place / "mlflow.db").is_file()


def test_a_server_that_does_not_answer_is_named_without_its_password(uri):
    uri("http://me:secret@127.0.0.1:1")
    with pytest.raises(ThawError, match=r"tracking server http://127\.0\.0\.1:1 does not answer") as raised:
        server.connect()
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_server_that_refuses_is_an_error_of_one_line(uri, monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"who are you?\nreally?")

        def log_message(self, *args):
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        thread = threading.Thread(target=refusing.serve_forever)
        thread.start()
        try:
            uri(f"http://127.0.0.1:{refusing.server_port}")
            with pytest.raises(ThawError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as raised:
                server.connect()
        finally:
            refusing.shutdown()
            thread.join()
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_database_is_an_error_of_one_line(tmp_path, uri):
    (tmp_path / "mlflow.db").write_text("no database at all, however long one looks " * 99)
    uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(ThawError, match="tracking server sqlite") as raised:
        server.connect()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://me:secret@host/path", "https://host/path"),
        ("https://token@host", "https://host"),
        ("sqlite:////a b/mlflow.db", "sqlite:////a b/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_user_and_password(given, shown):
    assert server.shown(given) == shown


def test_links_open_the_training_view_and_filter_by_the_study(tracking):
    address = links.configurations("7", "étude.v-1", "val_loss", ascending=True)
    assert address.startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    query = parse_qs(urlsplit(urlsplit(address).fragment).query)
    assert query == {
        "compareRunsMode": ["CHART"],
        "workflowType": ["machine_learning"],
        "searchFilter": ["tags.kind = 'configuration' and tags.study = 'étude.v-1'"],
        "orderByKey": ["metrics.`val_loss`"],
        "orderByAsc": ["true"],
    }
    assert links.run("7", "abc") == "http://127.0.0.1:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert "/#/models/%C3%A9tude/versions/2" in links.model("étude", "2")


def test_links_lead_to_the_server_that_is_used(uri):
    uri("https://me:secret@mlflow.example/base/")
    assert links.run("7", "abc").startswith("https://mlflow.example/base/#/experiments/7/runs/abc")
