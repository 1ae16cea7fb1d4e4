"""Tests in network namespaces of their own: nothing outside is reached, or reaches in, and all of it ends with them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def run_alone(file: str) -> None:
    """Runs the tests of a file where there is loopback and nothing else; the shell reaps what is orphaned there."""
    missing = [program for program in ("unshare", "nsenter", "ip") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"there is no {missing[0]} to make a network namespace with: apt-get install util-linux iproute2")
    tried = subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"there is no network namespace to be had here: {tried.stderr.strip()}")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", str(Path(__file__).parent / file)]
    script = 'ip link set lo up || exit; "$@"; exit $?'
    # A worker of pytest-xdist tells its children that they are one, too.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(
        [*ALONE, "sh", "-c", script, "sh", *words],
        cwd=ROOT,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    print(found.stdout)
    assert found.returncode == 0, found.stdout
