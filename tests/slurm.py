"""The README's job array on a real Slurm of two nodes, on this machine's loopback; by hand, as root: it takes long.

`apt-get install --no-install-recommends slurmctld slurmd slurm-client munge`, then `python -m tests.slurm`. Two workers
train six configurations. A node is killed with all that runs on it, they are stopped before their time is up, one is
requeued by hand. Then the study must have come to what undisturbed training comes to, bit for bit.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from optuna.trial import TrialState

from tests.chaos.checker import assert_survived
from tests.integration.commands import ROOT, Workplace, wait_until, wait_until_gone
from tests.integration.sweeps import Sweep
from tests.postgres import PostgresServer
from tests.tracking_server import TrackingServer

NODES = ("one", "two")
CONFIGURATIONS = 6
BATCH_S = 2.5
LIMITS = ("--array=0-1", "--time=00:02:30", "--cpus-per-task=1", "--gpus=0")  # instead of the README's
LOOK_S, LONGEST_S = 1.0, 1800.0
CONFIG = """
ClusterName=thaw
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A cluster of this machine: every daemon is a child of this process, and listens on loopback."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._folder.chmod(0o711)  # munge's socket is for all
        (self._folder / "state").mkdir()
        key = self._folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        config = self._folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        config.write_text(CONFIG.format(host=host, ports=_free_ports(3), folder=self._folder))
        self.environment = {**os.environ, "SLURM_CONF": str(config)}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        paths = [f"--{name}={self._folder}/{file}" for name, file in _MUNGE.items()]
        self._start("munged", "munged", "--foreground", *paths)
        wait_until(lambda: self._lives("munged") and (self._folder / "munge.socket").exists(), "munged listens")
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start(node)

    def start(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def call(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def kill(self, node: str) -> None:
        """A node with all that runs on it, as if its machine had lost its power."""
        steps = [one for one in psutil.process_iter(["cmdline"]) if "slurmstepd" in " ".join(one.info["cmdline"] or ())]
        # The environment of a step's processes says which node is meant, and slurmstepd's own does not.
        mine = [step for step in steps if any(_node_of(child) == node for child in step.children(recursive=True))]
        family = [*mine, *(child for step in mine for child in step.children(recursive=True))]
        self._daemons.pop(node).kill()
        for process in family:
            process.kill()
        wait_until_gone(family)

    def close(self) -> None:
        subprocess.run(["scancel", "--state=RUNNING", "--full", "--signal=KILL"], env=self.environment, check=False)
        for daemon in self._daemons.values():
            daemon.terminate()
            daemon.wait()
        shutil.rmtree(self._folder)

    def _lives(self, name: str) -> bool:
        log = (self._folder / f"{name}.log").read_text
        assert self._daemons[name].poll() is None, log()
        return True

    def _start(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)


_MUNGE = {"socket": "munge.socket", "key-file": "key", "pid-file": "munge.pid", "seed-file": "seed"}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _node_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("SLURMD_NODENAME")
    except psutil.NoSuchProcess:
        return None


def script(study: str) -> str:
    """The README's, for this study."""
    (found,) = re.findall(r"^```bash\n(#!/bin/bash\n#SBATCH.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    return found.replace("--study digits", f"--study {study}")


def await_(what: str, is_so: Callable[[], object], cluster: Slurm) -> None:
    """Waits until it is so, and prints what the queue says whenever that changes."""
    began_s, shown = time.monotonic(), ""
    while not is_so():
        assert time.monotonic() - began_s < LONGEST_S, f"never: {what}"
        queue = cluster.call("squeue", "--noheader", "--array", "--format=%K %T %r").strip()
        assert queue, f"the queue is empty before {what}"
        if queue != shown:
            print(f"{time.strftime('%T')} {' | '.join(queue.splitlines())}", flush=True)
            shown = queue
        time.sleep(LOOK_S)
    print(f"{time.strftime('%T')} {what}", flush=True)


def endings(place: Workplace) -> list[str]:
    return [why for trial in place.trials("unhurried") if (why := trial.user_attrs.get("ended"))]


def homely(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """What a user has: thaw.env at home, and `python` on the path."""
    exports = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
    file = folder / "thaw.env"
    file.touch(mode=0o600)
    file.write_text(exports)
    return {"HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="thaw-slurm-"))
    postgres, tracking = PostgresServer(), TrackingServer()
    cluster = Slurm()
    try:
        place = Workplace(folder / "work", tracking_uri=tracking.uri, storage_url=postgres.database())
        sweep = Sweep.of(
            place,
            *("--configurations", str(CONFIGURATIONS), "--workers", "0", "--sampler", "random"),
            experiment=ROOT / "tests" / "integration" / "unhurried.py",
        )
        sweep.finish()  # of opening it
        told = {
            "PIPELINE_STORAGE": place.storage_url,
            "MLFLOW_TRACKING_URI": tracking.uri,
            "PYTHONPATH": str(ROOT),
            "BATCH_S": str(BATCH_S),
            **sweep.environment(),
        }
        cluster.environment |= homely(folder, told)
        batch = place.folder / "array.sh"
        batch.write_text(script("unhurried"))
        print(cluster.call("sbatch", f"--chdir={place.folder}", *LIMITS, str(batch)).strip(), flush=True)

        def jobs(state: str) -> list[str]:
            return cluster.call("squeue", "--noheader", "--array", f"--states={state}", "--format=%i %N").splitlines()

        def trained() -> int:
            """How many trials are trained now."""
            return sum(trial.state is TrialState.RUNNING for trial in place.trials("unhurried"))

        await_("two train", lambda: trained() == 2, cluster)
        job, node = jobs("RUNNING")[0].split()
        cluster.kill(node)
        await_(f"node {node} was killed, and {job} is queued", lambda: job in " ".join(jobs("PENDING")), cluster)
        cluster.start(node)
        await_("the other is stopped before its time is up, and queued", lambda: len(jobs("PENDING")) == 2, cluster)
        await_("one trains", lambda: trained() >= 1 and jobs("RUNNING"), cluster)
        moved = jobs("RUNNING")[0].split()[0]
        cluster.call("scontrol", "requeue", moved)
        await_(f"{moved} is requeued by hand", lambda: moved in " ".join(jobs("PENDING")), cluster)
        await_("the queue is empty", lambda: not cluster.call("squeue", "--noheader").strip(), cluster)
        assert endings(place).count("preempted") >= 2, endings(place)
        for file in sorted(place.folder.glob("slurm-*.out")):
            assert "Traceback" not in file.read_text(), file.read_text()
        print(place.run("status", "--study", "unhurried"))
        assert_survived(
            sweep, configurations=CONFIGURATIONS, fences=[], folder=folder / "undisturbed", name="unhurried"
        )
        print("each configuration has come to what undisturbed training comes to, bit for bit")
        place.close()
    finally:
        cluster.close()
        tracking.close()
        postgres.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
