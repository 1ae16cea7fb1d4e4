"""A sweep on Ray that loses a worker, a node, its driver and its servers; run by test_ray.py where nothing else is."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState

from tests.chaos.checker import assert_survived, endings
from tests.integration.commands import Command, Workplace
from tests.integration.sweeps import Sweep
from tests.integration.test_services import Bucket
from tests.postgres import PostgresServer
from tests.ray_cluster import RayCluster
from tests.tracking_server import TrackingServer

CONFIGURATIONS = 12
FLAGS = (
    *("--engine", "ray", "--configurations", str(CONFIGURATIONS), "--workers", "2", "--sampler", "random"),
    *("--max-retries", "1000"),
)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    bucket = Bucket()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)  # for what the test itself reads
    yield bucket
    bucket.close()


@pytest.fixture
def server(postgres: PostgresServer, bucket: Bucket) -> Iterator[TrackingServer]:
    server = TrackingServer(store=postgres.database(), artifacts=bucket.url, environment=bucket.environment)
    yield server
    server.close()


@pytest.fixture
def sweep(tmp_path: Path, postgres: PostgresServer, bucket: Bucket, server: TrackingServer) -> Iterator[Sweep]:
    told = {**bucket.environment, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    place = Workplace(tmp_path / "work", tracking_uri=server.uri, storage_url=postgres.database(), environment=told)
    yield Sweep.of(place, *FLAGS, experiment=Path(__file__).with_name("handwritten.py"))
    place.close()


@pytest.fixture
def cluster(sweep: Sweep, bucket: Bucket) -> Iterator[RayCluster]:
    cluster = RayCluster(
        {
            **bucket.environment,
            **sweep.environment(),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "PIPELINE_SPOOL": str(sweep.workplace.folder / "spool"),
        }
    )
    yield cluster
    cluster.close()


def owner_of_next(sweep: Sweep, command: Command) -> dict[str, Any]:
    """The process that has trained the last of a few batches from now on, and has more of them before it."""
    sweep.progress.skip()
    assert sweep.progress.wait_for_count(10, command), command.output
    number = int(sweep.progress.lines[-1].split()[1])
    return sweep.workplace.study("handwritten").trials()[number].user_attrs["worker"]


def stopped_in_training(sweep: Sweep, command: Command) -> tuple[psutil.Process, int]:
    """A process that stands still in a segment, which so cannot come to its end, and the one above it."""
    while True:
        owner = owner_of_next(sweep, command)
        with suppress(psutil.NoSuchProcess):
            worker = psutil.Process(owner["pid"])
            worker.suspend()
            running = [one for one in sweep.workplace.trials("handwritten") if one.state == TrialState.RUNNING]
            if owner in [one.user_attrs.get("worker") for one in running]:
                return worker, owner["supervisor"]["pid"]
            worker.resume()


def test_a_sweep_on_ray_survives_the_end_of_a_worker_a_node_its_driver_and_its_servers(
    tmp_path: Path, postgres: PostgresServer, server: TrackingServer, sweep: Sweep, cluster: RayCluster
):
    place = sweep.workplace
    cluster.add_nodes(2)
    driver = {**sweep.environment(), **cluster.login, "RAY_ADDRESS": cluster.address}

    command = place.start(*sweep.arguments, environment=driver)
    worker = owner_of_next(sweep, command)["pid"]
    with suppress(ProcessLookupError):  # it may have come to the end of its segment
        os.kill(worker, signal.SIGKILL)

    owner_of_next(sweep, command)
    server.stop()
    server.start()
    owner_of_next(sweep, command)
    postgres.stop()
    postgres.start()

    owner_of_next(sweep, command)
    command.signal_group(signal.SIGTERM)
    assert command.wait() == 75, command.output
    assert "Traceback" not in command.output
    assert all(trial.state.is_finished() for trial in place.trials("handwritten")), "every task has left its trial"

    command = place.start(*sweep.arguments, environment=driver)
    worker, supervisor = stopped_in_training(sweep, command)
    cluster.kill(cluster.raylet_above(supervisor))
    command.wait_for_output("a task was lost")
    worker.resume()

    owner_of_next(sweep, command)
    command.kill()
    assert "Traceback" not in command.output

    command = place.start(*sweep.arguments, environment=driver)
    assert command.wait() == 0, command.output
    assert "Traceback" not in command.output
    lineages = assert_survived(
        sweep, configurations=CONFIGURATIONS, fences=(), folder=tmp_path / "undisturbed", name="handwritten"
    )
    print(dict(endings(lineages)))
