"""`python -m pipeline` in a process that has its modules loaded already, which is most of what a command takes."""

import io
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.engines import local

if TYPE_CHECKING:
    from tests.integration.commands import Workplace

PRELOADED = [*local.PRELOADED, "sklearn.datasets", "pipeline.cli", "tests.integration.preloaded"]


class Forked:
    """A command as `subprocess.Popen` gives one: the leader of a session of its own, with a pipe for what it says."""

    def __init__(self, folder: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_main, args=(folder, arguments, dict(environment), theirs))
        self._process.start()
        theirs.close()
        assert os.read(ours.fileno(), 1) == b"\n"  # from here on it leads its session
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout = io.TextIOWrapper(io.FileIO(os.dup(ours.fileno())), encoding="utf-8", errors="replace")
        ours.close()

    def wait(self, timeout_s: float | None = None) -> int:
        self._process.join(timeout_s)
        code = self._process.exitcode
        assert code is not None, "it does not end"
        return code

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _main(folder: Path, arguments: list[str], environment: dict[str, str], pipe: Connection) -> None:
    os.setsid()
    os.write(pipe.fileno(), b"\n")
    util.spawnv_passfds = _fork_forkserver
    _become(folder, arguments, environment, pipe.fileno(), pipe.fileno())
    pipe.close()
    from pipeline.__main__ import main

    sys.exit(main())


_spawn = util.spawnv_passfds


def _fork_forkserver(path: bytes, arguments: list[str], passed: list[int]) -> int:
    """Starts a forkserver as multiprocessing does, but by a fork: what it would import is here already."""
    if "multiprocessing.forkserver" not in arguments[-1]:
        return _spawn(path, arguments, passed)
    pid = os.fork()
    if pid == 0:
        for opened in list(Path("/proc/self/fd").iterdir()):
            if int(opened.name) not in (0, 1, 2, *passed):
                with suppress(OSError):  # the listing's own is closed already
                    os.close(int(opened.name))
        try:
            exec(arguments[-1], {})  # which is how the new interpreter would have been told
        finally:
            os._exit(0)  # whatever stands above in this stack is the command's
    return pid


def _become(folder: Path, arguments: list[str], environment: dict[str, str], out: int, err: int) -> None:
    for number, opened in ((1, out), (2, err)):
        os.dup2(opened, number)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", write_through=True)
        for number in (1, 2)
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["pipeline", *arguments]
    tempfile.tempdir = None  # which the environment may name


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str


def ask(workplace: "Workplace", *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Answer:
    """Runs a command to its end, with standard streams of its own, and without a forkserver: one that would start
    workers fails here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    out, err = (workplace.folder.parent / name for name in ("out", "err"))
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "PIPELINE_", "PROGRESS"))}
    given = (workplace.folder, [str(a) for a in arguments], {**clean, **(environment or {})}, out, err)
    process = context.Process(target=_answer, args=given)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return Answer(code=code, out=out.read_text(encoding="utf-8"), err=err.read_text(encoding="utf-8"))


def _answer(folder: Path, arguments: list[str], environment: dict[str, str], *files: Path) -> None:
    out, err = (os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for file in files)
    _become(folder, arguments, environment, out, err)
    from pipeline.__main__ import main

    local.start_forkserver = lambda: None  # type: ignore[assignment,return-value]
    sys.exit(main())
