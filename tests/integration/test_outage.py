"""A store that fails: training goes on while it may come back, and stops resumably when it does not."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.sweep.lineage import Lineage
from tests.integration.commands import (
    Command,
    Progress,
    Trained,
    Workplace,
    assert_each_step_once,
    assert_same_training,
    wait_until,
)
from tests.integration.sweeps import BATCHES, QUICK, Sweep, assert_sound
from tests.postgres import PostgresServer
from tests.tracking_server import TrackingServer

EPOCHS = 9  # of quick.py
TRAIN = ("train", QUICK, "--study", "one")


class Disk:
    """A small file system where the artifacts of a workplace are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def empty(self) -> None:
        self._filler.unlink()

    def forbid(self) -> None:
        command = ["mount", "-o", "remount,ro", self.folder]
        # Refused while a file is open there for writing: training stands still, but its writer may be at work.
        wait_until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, "nobody writes")

    def allow(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


WAYS = {
    "full": (Disk.fill, Disk.empty, "No space left on device"),
    "read-only": (Disk.forbid, Disk.allow, "Read-only file system"),
}


@pytest.fixture
def disk(workplace: Workplace) -> Iterator[Disk]:
    folder = workplace.folder / "mlruns"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "thaw-test", folder]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield Disk(folder)
    workplace.close()
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def undisturbed(new_workplace) -> Trained:
    place = new_workplace("undisturbed")
    place.run(*TRAIN)
    return place.trained()


def environment(progress: Progress, gate: str = "") -> dict[str, str]:
    return {**progress.environment(gate), "HISTORY": os.devnull}


def at_the_gate(workplace: Workplace, *flags: str) -> tuple[Command, Progress]:
    """A training that waits in the middle of its third epoch."""
    progress = workplace.progress()
    command = workplace.start(*TRAIN, *flags, environment=environment(progress, gate="2 2"))
    progress.wait_for_end_of(" 2 2", command)
    return command, progress


@pytest.mark.parametrize("way", WAYS)
def test_while_a_store_fails_training_goes_on_and_nothing_is_lost(workplace, disk, undisturbed, way):
    fail, recover, reason = WAYS[way]
    command, progress = at_the_gate(workplace)
    fail(disk)
    progress.open_gate()
    command.wait_for_output("cannot be saved")
    progress.wait_for_end_of(" 3 5", command)
    recover(disk)
    assert command.wait() == 0, command.output
    assert reason in command.output
    assert "#00 goes on, but checkpoint s0-e0000" in command.output
    assert_same_training(workplace.trained(), undisturbed)
    assert_each_step_once(workplace.trained(), EPOCHS)
    assert [trial.user_attrs["ended"] for trial in workplace.trials()] == ["complete"]


@pytest.mark.parametrize("way", WAYS)
def test_a_store_that_does_not_come_back_stops_training_resumably(workplace, disk, undisturbed, way):
    fail, recover, reason = WAYS[way]
    command, progress = at_the_gate(workplace, "--outage-s", "0.5")
    fail(disk)
    progress.open_gate()
    assert command.wait() == 75, command.output
    assert f"{reason}" in command.output
    assert "run the same command again" in command.output
    assert "Traceback" not in command.output
    (run,) = workplace.runs(kind="configuration")
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "interrupted")
    recover(disk)
    workplace.run(*TRAIN)
    assert_same_training(workplace.trained(), undisturbed)
    assert_each_step_once(workplace.trained(), EPOCHS)
    assert [trial.user_attrs["ended"] for trial in workplace.trials()] == ["preempted", "complete"]
    assert run.info.run_id == workplace.trained().run.info.run_id


def batches(progress: Progress, command: Command) -> list[tuple[int, int]]:
    """Epoch and batch of all that is trained from here on."""
    found = []
    while (line := progress.next(command)) is not None:
        found.append((int(line.split()[2]), int(line.split()[3])))
    return found


def test_what_a_store_that_is_away_could_not_take_survives_a_kill_and_is_not_trained_again(
    workplace, disk, undisturbed
):
    command, progress = at_the_gate(workplace)
    disk.forbid()
    progress.open_gate()
    spool = workplace.folder / "spool"
    wait_until(lambda: list(spool.glob("*/s*/manifest.json")), "a checkpoint is on this machine's disk")
    command.kill()
    newest = max(path.parent.name for path in spool.glob("*/s*/manifest.json"))
    epoch, batch = int(newest[4:9]), int(newest[11:17])
    disk.allow()
    progress = workplace.progress()
    command = workplace.start(*TRAIN, environment=environment(progress))
    again = batches(progress, command)
    assert command.wait() == 0, command.output
    assert f"goes on from {newest}, which was left on this disk" in command.output
    assert again[:1] == [(epoch, batch)] * (epoch < EPOCHS)
    assert_same_training(workplace.trained(), undisturbed)
    assert_each_step_once(workplace.trained(), EPOCHS)
    assert not list(spool.glob("*/s*")), "what was taken from there is gone"
    assert "0 of them do not verify" in workplace.run("verify", "--study", "one")


def test_what_a_stop_leaves_on_this_machines_disk_is_where_training_goes_on(workplace, disk, undisturbed):
    command, progress = at_the_gate(workplace, "--outage-s", "0")
    disk.forbid()
    progress.open_gate()
    trained = batches(progress, command)
    assert command.wait() == 75, command.output
    disk.allow()
    progress = workplace.progress()
    command = workplace.start(*TRAIN, environment=environment(progress))
    again = batches(progress, command)
    assert command.wait() == 0, command.output
    assert sorted({*trained, *again}) == trained + again, "no batch was trained twice"
    assert_same_training(workplace.trained(), undisturbed)
    assert_each_step_once(workplace.trained(), EPOCHS)


def test_what_was_left_and_does_not_verify_is_trained_again(workplace, disk, undisturbed):
    command, progress = at_the_gate(workplace, "--outage-s", "0")
    disk.forbid()
    progress.open_gate()
    assert command.wait() == 75, command.output
    disk.allow()
    for file in (workplace.folder / "spool").glob("*/s*/state.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    assert "does not verify" in workplace.run(*TRAIN)
    assert_same_training(workplace.trained(), undisturbed)
    assert_each_step_once(workplace.trained(), EPOCHS)


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """For a study, on a server that a test may stop."""
    yield postgres.database()
    postgres.ensure_running()


def assert_nobodys_fault(lineages: dict[int, Lineage]) -> None:
    assert {why for lineage in lineages.values() for why in lineage.endings} <= {"paused", "complete", "preempted"}


def two_workers(workplace: Workplace, database: str, *flags: str) -> tuple[Sweep, Command]:
    """A sweep that has begun to train, with its study on the server."""
    sweep = Sweep.of(workplace, "--configurations", "6", "--sampler", "random", "--storage", database, *flags)
    command = sweep.start()
    sweep.progress.wait_for_count(3, command)
    return sweep, command


def test_while_the_study_database_is_away_training_goes_on_and_then_so_does_the_search(workplace, database, postgres):
    sweep, command = two_workers(workplace, database)
    postgres.stop()
    command.wait_for_output("next tries for 60 s")
    postgres.start()
    assert command.wait() == 0, command.output
    workplace.storage_url = database
    lineages = assert_sound(sweep, configurations=6)
    assert_nobodys_fault(lineages)


def test_a_study_database_that_does_not_come_back_stops_everything_resumably(workplace, database, postgres):
    sweep, command = two_workers(workplace, database, "--outage-s", "0.5")
    postgres.stop()
    assert command.wait() == 75, command.output
    assert "Traceback" not in command.output, command.output
    (line,) = [line for line in command.output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the study database cannot be reached, for 0.5 s by now: connection")
    assert line.endswith("run the same command again")
    postgres.start()
    sweep.finish()
    workplace.storage_url = database
    trained = [(run, step) for (run, _), steps in sweep.trained().items() for step in steps]
    assert len(trained) == len(set(trained)), "no batch was trained twice"
    lineages = workplace.study("quick").lineages()
    assert_nobodys_fault(lineages)
    assert sum(lineage.epochs for lineage in lineages.values()) * BATCHES == len(trained), "and none was lost"
    assert "0 of them do not verify" in workplace.run("verify", "--study", "quick", "--storage", database)


@pytest.fixture
def tracking_server() -> Iterator[TrackingServer]:
    server = TrackingServer()
    yield server
    server.close()


def test_a_tracking_server_that_does_not_come_back_stops_training_resumably(tmp_path, tracking_server, undisturbed):
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    place = Workplace(tmp_path / "work", tracking_uri=tracking_server.uri, environment=quick)
    command, progress = at_the_gate(place, "--outage-s", "0.5", "--traceback", "true")
    tracking_server.stop()
    progress.open_gate()
    trained = batches(progress, command)
    assert command.wait() == 75, command.output
    assert "run the same command again" in command.output
    assert "Traceback" not in command.output
    tracking_server.start()
    progress = place.progress()
    command = place.start(*TRAIN, environment=environment(progress))
    again = batches(progress, command)
    assert command.wait() == 0, command.output
    assert sorted({*trained, *again}) == trained + again, "no batch was trained twice"
    assert_same_training(place.trained(), undisturbed)
    assert_each_step_once(place.trained(), EPOCHS)
    assert [trial.user_attrs["ended"] for trial in place.trials()] == ["preempted", "complete"]
    place.close()


def test_what_was_saved_before_a_store_failed_stays_good(workplace, disk):
    command, progress = at_the_gate(workplace, "--outage-s", "0")
    disk.fill()
    progress.open_gate()
    assert command.wait() == 75, command.output
    assert "0 of them do not verify" in workplace.run("verify", "--study", "one")
