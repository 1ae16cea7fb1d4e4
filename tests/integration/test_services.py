"""A study over the services of a team: PostgreSQL, an MLflow server that wants a password, and an S3 store."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.integration.commands import Command, Workplace
from tests.integration.sweeps import QUICK, Sweep, assert_sound
from tests.postgres import PASSWORD, QUOTED, PostgresServer
from tests.tracking_server import TrackingServer

USER, LOGIN = "somebody", "planted-tracking-secret"
KEY = "planted-bucket-secret"
STRANGE = "planted-strange-secret"
PLANTED = (PASSWORD, QUOTED, LOGIN, KEY, STRANGE)


class Bucket:
    """An S3 store of this process's own, with one bucket."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.url = "s3://thaw"
        self._client().create_bucket(Bucket="thaw")

    def contents(self) -> dict[str, bytes]:
        client = self._client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="thaw")
        names = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return {name: client.get_object(Bucket="thaw", Key=name)["Body"].read() for name in names}

    def close(self) -> None:
        self._server.stop()

    def _client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.environment["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id="somebody",
            aws_secret_access_key=KEY,
            region_name="us-east-1",
        )


@pytest.fixture
def bucket(monkeypatch) -> Iterator[Bucket]:
    bucket = Bucket()
    for name, value in {
        **bucket.environment,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": LOGIN,
    }.items():
        monkeypatch.setenv(name, value)  # for what the test itself reads
    yield bucket
    bucket.close()


@dataclass(frozen=True, kw_only=True)
class Services:
    """The three, and the databases of PostgreSQL that the other two parts use.

    Attributes:
        study, tracking: the URLs of the study's database and of the MLflow server's own.
    """

    postgres: PostgresServer
    bucket: Bucket
    mlflow: TrackingServer
    study: str
    tracking: str


@pytest.fixture
def services(postgres: PostgresServer, bucket: Bucket) -> Iterator[Services]:
    study, tracking = postgres.database(), postgres.database()
    mlflow = TrackingServer(store=tracking, artifacts=bucket.url, login=(USER, LOGIN), environment=bucket.environment)
    yield Services(postgres=postgres, bucket=bucket, mlflow=mlflow, study=study, tracking=tracking)
    mlflow.close()
    postgres.ensure_running()


@pytest.fixture
def place(tmp_path: Path, services: Services) -> Iterator[Workplace]:
    told = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    place = Workplace(tmp_path / "work", tracking_uri=services.mlflow.uri, storage_url=services.study, environment=told)
    yield place
    place.close()


def command_lines(command: Command) -> bytes:
    """Of all processes of a command."""
    return b"\n".join(Path(f"/proc/{one.pid}/cmdline").read_bytes() for one in command.members())


def test_a_study_over_postgresql_a_server_with_passwords_and_s3_is_killed_and_resumed_and_tells_no_secret(
    place: Workplace, services: Services
):
    sweep = Sweep.of(place, "--configurations", "2")
    shown = {"PIPELINE_REPORT_EVERY_S": "1"}  # pages and report as well: they name the commands that go on from there
    command = place.start(*sweep.arguments, environment={**sweep.environment("2 3"), **shown})
    sweep.progress.wait_for_end_of(" 2 3", command)
    lines = command_lines(command)
    command.kill()
    outputs = [command.output, place.run(*sweep.arguments, environment={**sweep.environment(), **shown})]
    assert_sound(sweep, configurations=2)

    before = set(services.bucket.contents())
    outputs.append(place.run("check", "--study", "quick"))
    assert "the tracking server asks for one; set: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD" in outputs[-1]
    assert f"{services.bucket.url}/1: 16.8 MB written at " in outputs[-1]
    assert set(services.bucket.contents()) == before
    assert [run.data.tags["kind"] for run in place.runs()].count("configuration") == 2

    poisoned = ("train", QUICK, "--config.poison", "0", "--traceback", "true", "--max-retries", "0")
    outputs.append(place.run(*poisoned, environment=sweep.environment(), code=1))
    stranger = {"MLFLOW_TRACKING_PASSWORD": STRANGE, "AWS_SECRET_ACCESS_KEY": STRANGE}
    outputs.append(place.run("status", "--traceback", "true", environment=stranger, code=1))
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in outputs[-1]
    services.mlflow.stop()
    services.postgres.stop()
    outputs.append(place.run("check", "--study", "quick", code=1))
    services.postgres.start()

    objects = services.bucket.contents()
    wanted = {"manifest.json", "state.safetensors", "report.html", "traceback.txt"}
    assert wanted <= {Path(name).name for name in objects}
    everywhere = {
        "output": "\n".join(outputs).encode(),
        "command lines": lines,
        "study": services.postgres.dump(services.study).encode(),
        "tracking": services.postgres.dump(services.tracking).encode(),
        "PostgreSQL's log": services.postgres.log.encode(),
        "MLflow's log": services.mlflow.log.encode(),
        **objects,
        **{str(file): file.read_bytes() for file in place.folder.rglob("*") if file.is_file()},
    }
    assert b"forkserver" in lines
    assert b"View run" not in everywhere["output"]
    assert b"ValueError: poisoned" in everywhere["output"]
    assert b"claimant" in everywhere["study"]
    assert b"python -m pipeline" in everywhere["tracking"]
    assert [
        (where, secret) for where, text in everywhere.items() for secret in PLANTED if secret.encode() in text
    ] == []
