"""Where a study's code comes from: kept on its MLflow run, so that it can be read, and run again, much later."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from pipeline.tracking import runs

FOLDER = "code"
DIFF_BYTES = 1_000_000  # a diff that is larger is no work in progress but data
GIT_TIMEOUT_S = 20


def log_origin(run_id: str, file: Path, sources: Iterable[Path], digest: str) -> None:
    """Keeps the experiment's files, the installed packages, and the git commit with what differs from it.

    They lie in `code/` and the first digits of the code's digest: code that was changed, and accepted, comes beside
    what was there before. PIPELINE_LOG_DIFF=0 leaves the difference out: tracked files may hold what is not for others.
    """
    target = f"{FOLDER}/{digest[:8]}"
    commit = _git(file.parent, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory(prefix="thaw-") as scratch:
        pinned = Path(scratch, "requirements.txt")
        pinned.write_text("\n".join(installed()) + "\n", encoding="utf-8")
        runs.log_file(run_id, pinned, target)
        for source in sources:
            inner = source.relative_to(file.parent).parent
            runs.log_file(run_id, source, target if inner == Path() else f"{target}/{inner.as_posix()}")
        if commit is None:
            return
        runs.set_tags(run_id, {MLFLOW_GIT_COMMIT: commit.decode().strip()})
        if os.environ.get("PIPELINE_LOG_DIFF") == "0":
            return
        changed = _git(file.parent, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
        if changed:
            diff = Path(scratch, "changes.diff")
            note = f"the changes are {len(changed):,} bytes, more than are kept here\n".encode()
            diff.write_bytes(changed if len(changed) <= DIFF_BYTES else note)
            runs.log_file(run_id, diff, target)


def installed() -> list[str]:
    """What is installed here, one requirement a line, by the folders that pip makes: reading them all takes seconds."""
    found: dict[str, str] = {}
    for folder in sys.path:
        for info in Path(folder).glob("*.dist-info"):
            name, _, version = info.stem.partition("-")
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)  # as Python does, the first on the path
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git says; None where there is no git, or no repository with a commit."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
