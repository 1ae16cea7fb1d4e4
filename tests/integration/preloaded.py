"""`python -m pipeline` in a process that has its modules loaded already, for tests of many short commands.

It has no workers: a command that comes as far as to start some fails here.
"""

import io
import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.integration.commands import Workplace

PRELOADED = ["torch", "optuna", "mlflow", "pandas", "sklearn.datasets", "pipeline.cli", "tests.integration.preloaded"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str


def ask(workplace: Workplace, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Answer:
    """Runs a command to its end, in a process and a folder of its own, with its own standard streams."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    out, err = (workplace.folder.parent / name for name in ("out", "err"))
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "PIPELINE_", "PROGRESS"))}
    given = (workplace.folder, [str(a) for a in arguments], {**clean, **(environment or {})}, out, err)
    process = context.Process(target=_main, args=given)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return Answer(code=code, out=out.read_text(encoding="utf-8"), err=err.read_text(encoding="utf-8"))


def _main(folder: Path, arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    for number, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", write_through=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["pipeline", *arguments]
    from pipeline.__main__ import main
    from pipeline.engines import local

    local.start_forkserver = lambda: None  # type: ignore[assignment,return-value]
    sys.exit(main())
