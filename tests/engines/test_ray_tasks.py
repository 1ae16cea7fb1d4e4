"""What tasks of Ray are told, and where they may run; without Ray."""

import signal
import socket
from pathlib import Path

import pytest

from pipeline.commands import SweepOptions
from pipeline.engines import local, ray_tasks
from pipeline.engines.child import Job
from pipeline.engines.ray_tasks import Resources
from pipeline.errors import ThawError, UsageError
from pipeline.signals import StopRequest
from pipeline.sweep.segment import Keeping

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    """Neither in the environment nor at home; what is set there is undone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (*NAMES, "RAY_DEDUP_LOGS", "RAY_COLOR_PREFIX", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def settings() -> dict[str, str | None]:
    import os

    return {name: os.environ.get(name) for name in NAMES}


def test_a_cluster_elsewhere_is_refused_without_a_token(monkeypatch):
    with pytest.raises(UsageError, match="ray get-auth-token --generate"):
        ray_tasks._prepare("10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token")
    ray_tasks._prepare("10.0.0.1:6379")
    assert settings()["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UsageError, match="start Ray there with RAY_AUTH_MODE=token"):
        ray_tasks._prepare("10.0.0.1:6379")


def test_a_token_may_be_a_file_at_home(tmp_path: Path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a token")
    ray_tasks._prepare("somewhere.else:6379")
    assert settings()["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_a_cluster_of_this_machine_is_used_as_it_is(address):
    ray_tasks._prepare(address)
    assert not any(settings().values())


def test_a_ray_of_its_own_has_a_token_and_listens_on_loopback():
    ray_tasks._prepare("local")
    assert settings()["RAY_AUTH_MODE"] == "token"
    assert settings()["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_a_client_of_ray_is_refused():
    with pytest.raises(UsageError, match="give the cluster's own address"):
        ray_tasks._prepare("ray://127.0.0.1:10001")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpus_per_trial": 1.0}, "--cpus-per-trial is for --engine ray"),
        ({"gpus_per_trial": 0.0}, "CUDA_VISIBLE_DEVICES= hides those of this machine"),
        ({"gpus_per_trial": 2.0, "processes_per_trial": 4}, "each of --processes-per-trial 4 has one"),
        ({"gpus_per_trial": 0.5, "workers_per_gpu": 2}, "leave --workers-per-gpu out"),
        ({"engine": "ray", "cpus_per_trial": -1.0}, "--cpus-per-trial -1: expected at least 0"),
        ({"engine": "ray", "gpus_per_trial": 1.5}, "--gpus-per-trial 1.5: expected a part of one, or whole ones"),
        ({"engine": "ray", "workers": 0}, "--workers 0: with --engine ray"),
    ],
)
def test_resources_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        SweepOptions(**options)


def test_what_a_task_is_given_is_what_was_said():
    assert SweepOptions().how().resources is None
    assert SweepOptions(engine="ray").how().resources == Resources()
    told = SweepOptions(engine="ray", cpus_per_trial=5.0, gpus_per_trial=0.25)
    assert told.how().resources == Resources(cpus=5.0, gpus=0.25)
    assert told.processes == 0, "it is not this machine's cores that they share"


def test_several_gpus_are_for_as_many_processes_unless_it_is_said_otherwise():
    assert SweepOptions(engine="ray", gpus_per_trial=2.0).how().processes == 2
    assert SweepOptions(engine="ray", gpus_per_trial=2.0, processes_per_trial=4).how().processes == 4
    assert SweepOptions(engine="ray", gpus_per_trial=0.5).how().processes is None


def test_gpus_of_this_machine_are_shared_out_as_was_said(monkeypatch):
    def shared(**options):
        how = SweepOptions(**options).how()
        return how.processes, how.workers_per_gpu

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert shared() == (None, 1)
    assert shared(gpus_per_trial=2.0) == (2, 1)
    assert shared(gpus_per_trial=1.0) == (None, 1)
    assert shared(gpus_per_trial=0.5) == (None, 2)
    assert shared(gpus_per_trial=0.33) == (None, 3)
    assert shared(processes_per_trial=2, gpus_per_trial=2.0) == (2, 1)
    with pytest.raises(UsageError, match="--gpus-per-trial 4: there are 2 GPUs here"):
        shared(gpus_per_trial=4.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match=r"--gpus-per-trial 0.5: there are no GPUs here"):
        shared(gpus_per_trial=0.5)


def test_what_was_not_said_follows_from_the_processes_and_what_is_there():
    assert Resources().cpus_for(2) == 2.0
    assert (Resources().threads(2), Resources(cpus=5.0).threads(2), Resources(cpus=0.5).threads(1)) == (1, 2, 1)
    gpus = Resources().gpus_for
    assert gpus(1, workers_per_gpu=4, there=True) == 0.25
    assert gpus(2, workers_per_gpu=1, there=True) == 2.0
    assert gpus(2, workers_per_gpu=1, there=False) == 0.0
    assert Resources(gpus=0.5).gpus_for(1, workers_per_gpu=1, there=False) == 0.5


def job(**given) -> Job:
    told = {"study": "s", "storage": "postgresql://server/db", "tracking_uri": "http://server", "workers": 1}
    return Job(**{**told, "keeping": Keeping(), "file": Path(__file__), **given})


def driver(host: str) -> ray_tasks._Driver:
    return ray_tasks._Driver(host=host, folder="/nowhere", log_level=0)


@pytest.mark.parametrize("file", [{"storage": "sqlite:///optuna.db"}, {"tracking_uri": "sqlite:///mlflow.db"}])
def test_a_task_on_another_machine_does_not_take_its_own_files_for_the_drivers(file):
    outcome = ray_tasks.work_as_task(job(**file), driver("another"))
    assert "cannot read the databases of another, which are files" in outcome.error


def test_a_task_answers_signals_with_a_stop_and_gives_rays_handlers_back(monkeypatch):
    def run(given: Job, context: str, stop: StopRequest) -> bool:
        signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGINT"
        assert (given.file, context) == (Path(__file__), "forkserver with ray")
        raise ThawError("it cannot go on")

    monkeypatch.setattr(local, "run", run)
    monkeypatch.setattr(local, "start_forkserver", lambda more: f"forkserver with {more}")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    outcome = ray_tasks.work_as_task(job(), driver(socket.gethostname()))
    assert outcome == ray_tasks._Outcome(stopped="SIGINT", error="it cannot go on")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
