"""Who works on a trial, and whether that process still lives."""

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil


def identity(supervisor: int | None = None) -> dict[str, Any]:
    """This process, such that no other process ever has the same: a process id alone is used again.

    `supervisor` is the number of the one that watches it, and closes its trials when it dies.
    """
    return {**_process(os.getpid()), "supervisor": None if supervisor is None else _process(supervisor)}


def is_watched(process: Mapping[str, Any]) -> bool:
    """Whether its supervisor, another process than this one, still lives."""
    supervisor = process.get("supervisor")
    return supervisor is not None and supervisor != _process(os.getpid()) and not is_dead(supervisor)


def is_orphan(process: Mapping[str, Any]) -> bool:
    """Whether the supervisor that watched it has ended."""
    supervisor = process.get("supervisor")
    return supervisor is not None and is_dead(supervisor)


def is_here(process: Mapping[str, Any], pid: int) -> bool:
    """Whether it is the process of this number, of this host."""
    return not is_elsewhere(process) and bool(process["pid"] == pid)


def is_elsewhere(process: Mapping[str, Any]) -> bool:
    """Whether it is another host's, of whose life only a heartbeat can tell."""
    return bool(process["host"] != _host())


def is_dead(process: Mapping[str, Any]) -> bool:
    """Whether a process of this host has ended."""
    if is_elsewhere(process):
        return False
    try:
        other = psutil.Process(process["pid"])
        return bool(_started_s(other) != process["started_s"] or other.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _process(pid: int) -> dict[str, Any]:
    try:
        started_s = _started_s(psutil.Process(pid))
    except psutil.NoSuchProcess:
        started_s = 0.0  # it has ended: no process has started so early
    return {"host": _host(), "pid": pid, "started_s": started_s}


def _started_s(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: unlike a time of day it stays when the clock is set."""
    return float(round(process.create_time() - psutil.boot_time(), 2))


@cache  # it is asked for each trial that runs
def _host() -> str:
    """The host's name and, where there is one, the namespace its process ids are counted in."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.exists() else ''}".strip()
