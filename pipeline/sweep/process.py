"""Who works on a trial, and whether that process still lives."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def identity() -> dict[str, Any]:
    """This process, such that no other process ever has the same: a process id alone is used again."""
    return {"host": _host(), "pid": os.getpid(), "started_s": _started_s(psutil.Process())}


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


def _started_s(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's: unlike a time of day it stays when the clock is set."""
    return float(round(process.create_time() - psutil.boot_time(), 2))


def _host() -> str:
    """The host's name and, where there is one, the namespace its process ids are counted in."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.exists() else ''}".strip()
