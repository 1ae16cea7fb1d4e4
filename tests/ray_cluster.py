"""A Ray cluster of the tests' own: a head that trains nothing, and nodes that come and go."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.integration.commands import ROOT, wait_until_gone

RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
STORE_BYTES = 80_000_000
SLOW = {"PYTHONUNBUFFERED": "1", "RAY_raylet_start_wait_time_s": "120"}  # what it says is waited for


class RayCluster:
    """Every process of it is a child of `ray start`, which waits for it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is what tasks find in theirs, beside that of this process."""
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
        self._environment = {**os.environ, **self.login, **SLOW, "PYTHONPATH": str(ROOT), **environment}
        self._nodes: list[subprocess.Popen[str]] = []
        port = self.address.rpartition(":")[2]
        self._start(
            "--head", f"--port={port}", f"--temp-dir={self._folder}", "--include-dashboard=false", "--num-cpus=0"
        )

    def add_nodes(self, count: int) -> None:
        """Each with one CPU, one after the other: two that start at once on one machine take each other's places."""
        for _ in range(count):
            self._start(f"--address={self.address}", "--num-cpus=1")

    def raylet_above(self, pid: int) -> psutil.Process:
        """The raylet of the node that has started a process."""
        return next(one for one in psutil.Process(pid).parents() if one.name() == "raylet")

    def kill(self, raylet: psutil.Process) -> None:
        """One raylet; returns when what has started it has reaped it."""
        os.kill(raylet.pid, signal.SIGKILL)
        wait_until_gone([raylet])

    def close(self) -> None:
        """Ends all of it: nothing is left that could be ended in order."""
        members = [one for node in self._nodes if node.poll() is None for one in _family(node.pid)]
        for process in members:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_gone(members)
        for node in self._nodes:
            node.wait()
            assert node.stdout is not None
            node.stdout.close()
        shutil.rmtree(self._folder)

    def _start(self, *arguments: str) -> None:
        """Returns when it has joined."""
        flags = ("--block", "--disable-usage-stats", f"--object-store-memory={STORE_BYTES}")
        node = subprocess.Popen(
            [*RAY, "start", *arguments, *flags],
            env=self._environment,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._nodes.append(node)
        assert node.stdout is not None
        said: list[str] = []
        while not said or "Ray runtime started" not in said[-1]:
            line = node.stdout.readline()
            assert line, f"a node has not started:\n{''.join(said)}"
            said.append(line)


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
