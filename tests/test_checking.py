"""What is found out about a machine before a long sweep, and that nothing of it is left."""

import sqlite3
from pathlib import Path

import pytest
import torch

from pipeline import checking
from pipeline.errors import ThawError
from pipeline.sweep import trying
from pipeline.sweep.storage import prepare_storage
from pipeline.sweep.study import Study
from pipeline.tracking import server
from tests.integration.commands import Workplace
from tests.integration.in_process import in_process, open_quick
from tests.integration.preloaded import ask
from tests.integration.sweeps import QUICK
from tests.postgres import PASSWORD, PostgresServer

WHAT = ["study database", "claims", "clock", "tracking", "login", "artifacts", "devices", "disk"]


def rows(file: Path) -> dict[str, list[tuple]]:
    """Every row of a database."""
    with sqlite3.connect(file) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: database.execute(f'SELECT * FROM "{table}"').fetchall() for table in tables}


def files(folder: Path) -> set[Path]:
    """All that lies there but what SQLite keeps beside its databases while they are open."""
    return {path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm", ".lock"))}


def found(out: str) -> dict[str, str]:
    """What is said of each thing, and whether that is good, from the lines that are printed."""
    return {line[6:22].strip(): f"{line[:6].strip()} {line[22:]}" for line in out.splitlines()}


def test_a_machine_that_is_good_is_said_to_be_and_nothing_is_left_in_an_empty_folder(tmp_path: Path):
    place = Workplace(tmp_path / "à b")
    answer = ask(place, "check")
    assert answer.code == 0, answer.out + answer.err
    assert list(found(answer.out)) == WHAT
    assert all(says.startswith("ok ") for says in found(answer.out).values()), answer.out
    assert list(place.folder.iterdir()) == []


def test_nothing_is_left_in_databases_that_are_there_and_a_study_is_looked_at(tmp_path: Path):
    place = Workplace(tmp_path / "work")
    in_process(open_quick, place.folder, ["quick"], 2, "none")
    before = [rows(place.folder / name) for name in ("mlflow.db", "optuna.db")], files(place.folder)
    answer = ask(place, "check", QUICK, "--study", "quick")
    assert answer.code == 0, answer.out + answer.err
    assert found(answer.out)["experiment"].startswith(f"ok {QUICK}: 1 source files, code ")
    assert found(answer.out)["checkpoints"].startswith("ok none yet")
    now = [rows(place.folder / name) for name in ("mlflow.db", "optuna.db")], files(place.folder)
    assert now == before


def test_what_is_wrong_is_said_with_what_to_do_about_it(tmp_path: Path):
    place = Workplace(tmp_path / "work")
    away = {
        "MLFLOW_TRACKING_URI": "http://me:secret@127.0.0.1:1",
        "PIPELINE_STORAGE": "postgresql://me:secret@127.0.0.1:1/x",
    }
    answer = ask(place, "check", "--study", "quick", environment=away)
    assert answer.code == 1
    says = found(answer.out)
    assert "start it, let this machine reach its port, or name another by --storage" in says["study database"]
    assert "start it, or set MLFLOW_TRACKING_URI to one that runs" in says["tracking"]
    assert [what for what, text in says.items() if text.startswith("fails ")] == [
        *("study database", "claims", "clock", "tracking", "login", "artifacts", "experiment", "checkpoints", "disk")
    ]
    assert "secret" not in answer.out + answer.err


def test_a_database_that_gives_a_trial_to_two_is_found_out_and_keeps_nothing_of_it(tmp_path: Path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    prepare_storage(url)
    before = rows(tmp_path / "optuna.db")
    monkeypatch.setattr(Study, "claim", lambda study, trial: True)
    with pytest.raises(ThawError, match="2 of two connections got the same trial"):
        trying.race_for_claims(url)
    assert rows(tmp_path / "optuna.db") == before


def test_claims_are_exclusive_on_postgresql_and_its_clock_is_read(postgres: PostgresServer):
    url = postgres.database()
    prepare_storage(url)
    trying.race_for_claims(url)
    ahead_s = trying.ahead_s(url)
    assert ahead_s is not None
    assert abs(ahead_s) < 1, "both are on this machine"


def test_a_clock_that_is_wrong_is_said_to_be(monkeypatch):
    monkeypatch.setattr(trying, "ahead_s", lambda url: -31.0)
    with pytest.raises(ThawError, match=r"31\.0 s behind the database's: set both by NTP"):
        checking._clock("postgresql://")


def test_a_password_on_a_command_line_is_a_problem_and_is_not_repeated(postgres: PostgresServer):
    with pytest.raises(ThawError, match="give it by PIPELINE_STORAGE") as raised:
        checking._login(postgres.url("study"))
    assert PASSWORD not in str(raised.value)


def test_too_little_room_is_a_problem(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PIPELINE_SPOOL", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(server, "artifact_folder", lambda: tmp_path / "artifacts")
    nothing_yet, much = checking._Expected(), checking._Expected()
    much.to_come = 10**18
    assert "GB free" in checking._disk(tmp_path / "scratch" / "artifacts", nothing_yet)
    with pytest.raises(ThawError, match=r"artifacts: .* GB may be needed: make room, or --keep-gb less"):
        checking._disk(tmp_path / "scratch" / "artifacts", much)


def test_devices_are_listed_and_what_they_have_no_room_for_is_a_problem(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert checking._devices(0) == "no CUDA device: training runs on the CPU"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ThawError, match="CUDA_VISIBLE_DEVICES names 3, but torch cannot use them"):
        checking._devices(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    assert checking._devices(10**9) == "H100, 2.0 GB of 80.0 GB free"
    with pytest.raises(ThawError, match=r"device 0 \(H100, .*\) has no room for a checkpoint of 3\.0 GB"):
        checking._devices(3 * 10**9)
