"""What is given for starting things elsewhere: read here, not run, which takes Docker, Slurm and Kubernetes."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pipeline.commands import WorkerOptions
from pipeline.options import parse

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
GIVEN = re.compile(r"\$\{(\w+):\?put it into \.env\}")  # without it, nothing starts


def environments() -> dict[str, str]:
    """All that is in any service's environment."""
    found = [one.get("environment", {}) for one in COMPOSE["services"].values()]
    return {name: value for one in found for name, value in one.items()}


def test_every_port_is_on_loopback_alone():
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_secret_comes_from_a_file_that_is_not_committed():
    secret = re.compile(r"PASSWORD|SECRET|MC_HOST")
    assert all(GIVEN.search(value) for name, value in environments().items() if secret.search(name))
    used = set(GIVEN.findall((ROOT / "compose.yaml").read_text()))
    example = dict(line.split("=") for line in (ROOT / ".env.example").read_text().splitlines() if line[0] != "#")
    assert example == dict.fromkeys(used, "")
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_is_named_is_there():
    services = COMPOSE["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert {one["source"] for one in service.get("configs", ())} <= set(COMPOSE["configs"])
        assert {one.partition(":")[0] for one in service.get("volumes", ())} <= set(COMPOSE["volumes"])
    text = "".join(one["content"] for one in COMPOSE["configs"].values())
    for url in re.findall(r"postgresql\S*@postgres/(\w+)", (ROOT / "compose.yaml").read_text()):
        assert f"CREATE DATABASE {url};" in text


def test_the_server_is_the_version_that_is_tested():
    pins = {
        line for name in ("requirements.txt", "requirements-test.txt") for line in (ROOT / name).read_text().split()
    }
    installed = re.findall(r"'([^']+)'", COMPOSE["services"]["mlflow"]["build"]["dockerfile_inline"])
    assert set(installed) <= pins
    assert len(installed) == 3


def blocks(language: str) -> list[str]:
    """The README's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_job_array_is_a_script_that_starts_a_worker():
    (script,) = blocks("bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    words = shlex.split(line)
    assert_worker(words[words.index("python") :])


def test_the_indexed_job_starts_a_worker_and_leaves_it_the_time_that_it_takes():
    (text,) = blocks("yaml")
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    options = assert_worker(pod["containers"][0]["command"])
    assert options.grace_s < pod["terminationGracePeriodSeconds"]


def assert_worker(command: list[str]) -> WorkerOptions:
    """What a command that starts a worker tells it."""
    assert command[:4] == ["python", "-m", "pipeline", "worker"]
    return parse("worker", "", {"": WorkerOptions}, command[4:])[""]
