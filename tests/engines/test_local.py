"""The supervisor, where the study's database is away just when a worker needs it."""

import logging
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from sqlalchemy.exc import OperationalError

from pipeline.engines import local
from pipeline.signals import StopRequest
from pipeline.sweep.lineage import LOST
from tests.integration.commands import wait_until, wait_until_gone


class AwayOnce:
    """A study that cannot be told the first time."""

    def __init__(self):
        self.told = []
        self.calls = 0

    def trials(self):
        raise OperationalError("a statement", {}, Exception("nobody listens"))

    def close_dead(self, ended):
        self.calls += 1
        if self.calls == 1:
            self.trials()
        self.told.append(ended)


def worker_of(process):
    return local._Worker(processes=[process], slot=0, pulse=None, stacks=[Path(os.devnull)])


@pytest.fixture
def supervisor():
    """One without a study of its own and without workers."""
    found = object.__new__(local._Supervisor)
    found.workers, found._stop, found._stopping = [], StopRequest(), False
    found._study, found._unclosed, found._grace_ends_s = AwayOnce(), None, None
    return found


def test_what_the_study_could_not_be_told_of_a_worker_is_told_at_a_later_turn(supervisor, monkeypatch):
    monkeypatch.setattr(local, "TICK_S", 0)
    supervisor._unclosed = LOST
    supervisor.turn()
    assert supervisor._study.told == []
    supervisor.turn()
    supervisor.turn()
    assert supervisor._study.told == [LOST]


@pytest.mark.parametrize(("grace_s", "over"), [(25.0, [False, False, True, False]), (None, [False] * 4)])
def test_workers_that_are_stopped_are_killed_once_when_their_grace_is_over(supervisor, monkeypatch, grace_s, over):
    clock = iter([100.0, 124.0, 125.0, 126.0])
    monkeypatch.setattr(local.time, "monotonic", lambda: next(clock))
    supervisor._job = SimpleNamespace(grace_s=grace_s)
    found = [supervisor._is_grace_over()]
    for _ in range(3):
        supervisor.stop()  # the grace begins with the first of these
        found.append(supervisor._is_grace_over())
    assert found == over


def test_what_stands_still_has_lost_its_trial_before_it_is_killed(supervisor, monkeypatch):
    done = []
    monkeypatch.setattr(local, "end_hung", lambda study, pid, still_s: done.append("trial ended"))
    monkeypatch.setattr(local, "_stacks", lambda pid, file: done.append("stacks written") or "")
    monkeypatch.setattr(local, "_kill_all", lambda worker: done.append("killed"))
    supervisor._end_hung(worker_of(SimpleNamespace(pid=1)), 9.0)
    assert done == ["trial ended", "stacks written", "killed"]


def test_what_stands_still_is_killed_with_all_it_has_started_although_the_study_cannot_be_told(supervisor, caplog):
    # It does not end by itself when its child is gone, but waits for a word.
    process = subprocess.Popen(["sh", "-c", "sleep 1000 & wait; read word"], stdin=subprocess.PIPE)
    try:
        (child,) = wait_until(lambda: psutil.Process(process.pid).children(), "it has started another")
        process.is_alive = lambda: process.poll() is None
        with caplog.at_level(logging.WARNING):
            supervisor._end_hung(worker_of(process), 9.0)
        assert process.wait() == -signal.SIGKILL
        wait_until_gone([child])
    finally:
        process.kill()
        process.stdin.close()
    assert "what stands still cannot be recorded: (builtins.Exception) nobody listens" in caplog.text
