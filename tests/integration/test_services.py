"""A study over the services of a team: PostgreSQL, an MLflow server that wants a password, and an S3 store."""

import os
from collections.abc import Iterator
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
PLANTED = (PASSWORD, QUOTED, LOGIN, KEY, "planted-wrong-secret")


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


def command_lines(command: Command) -> dict[int, bytes]:
    """Of all processes of a command."""
    return {one.pid: Path(f"/proc/{one.pid}/cmdline").read_bytes() for one in command.members()}


def test_a_study_over_postgresql_a_server_with_passwords_and_s3_is_killed_and_resumed_and_tells_no_secret(
    tmp_path: Path, postgres: PostgresServer, bucket: Bucket
):
    store, study = postgres.database(), postgres.database()
    server = TrackingServer(store=store, artifacts=bucket.url, login=(USER, LOGIN), environment=bucket.environment)
    told = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    place = Workplace(tmp_path / "work", tracking_uri=server.uri, storage_url=study, environment=told)
    sweep = Sweep.of(place, "--configurations", "2")
    outputs, lines = [], {}

    # Its pages and pictures, too: they name the commands that go on from there.
    command = place.start(*sweep.arguments, environment={**sweep.environment("2 3"), "PIPELINE_REPORT_EVERY_S": "1"})
    sweep.progress.wait_for_end_of(" 2 3", command)
    lines |= command_lines(command)
    command.kill()
    outputs.append(command.output)
    outputs.append(place.run(*sweep.arguments, environment={**sweep.environment(), "PIPELINE_REPORT_EVERY_S": "1"}))
    assert_sound(sweep, configurations=2)
    outputs.append(place.run("verify", "--study", "quick"))
    assert "0 of them do not verify" in outputs[-1]

    poisoned = ("train", QUICK, "--config.poison", "0", "--traceback", "true", "--max-retries", "0")
    outputs.append(place.run(*poisoned, environment=sweep.environment(), code=1))
    stranger = {"MLFLOW_TRACKING_PASSWORD": "planted-wrong-secret"}
    outputs.append(place.run("status", "--traceback", "true", environment=stranger, code=1))
    assert "not authenticated" in outputs[-1]
    server.stop()
    postgres.stop()
    outputs.append(place.run("status", "--traceback", "true", code=1))
    outputs.append(place.run("status", "--traceback", "true", environment={"MLFLOW_TRACKING_URI": ""}, code=2))
    postgres.start()

    objects = bucket.contents()
    assert {Path(name).name for name in objects} >= {
        "manifest.json",
        "state.safetensors",
        "report.html",
        "traceback.txt",
    }
    files = [file for file in place.folder.rglob("*") if file.is_file()]
    everywhere = {
        "output": "\n".join(outputs).encode(),
        "command lines": b"\n".join(lines.values()),
        "study": postgres.dump(study).encode(),
        "tracking": postgres.dump(store).encode(),
        "PostgreSQL's log": postgres.log.encode(),
        "MLflow's log": server.log.encode(),
        **objects,
        **{str(file): file.read_bytes() for file in files},
    }
    assert b"pipeline" in everywhere["command lines"]
    assert b"poisoned" in everywhere["output"]
    assert b"claimant" in everywhere["study"]
    assert b"python -m pipeline" in everywhere["tracking"]
    found = [(where, secret) for where, text in everywhere.items() for secret in PLANTED if secret.encode() in text]
    assert not found
    place.close()
    server.close()
