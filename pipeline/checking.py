"""Whether this machine can do a long sweep: each thing that it needs tried out, and nothing of it left behind."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from sqlalchemy.engine import make_url

from pipeline.checkpoint import Manifest, MlflowStore, Position, load, save
from pipeline.checkpoint.environment import visible_devices
from pipeline.databases import sqlite_file, sqlite_url
from pipeline.errors import ThawError
from pipeline.experiment import ExperimentFile, load_experiment
from pipeline.session import storage_url
from pipeline.sweep import trying
from pipeline.sweep.opening import join_study
from pipeline.sweep.quota import expected_bytes
from pipeline.sweep.spool import spool_folder
from pipeline.sweep.storage import check_url, prepare_storage, redacted
from pipeline.sweep.study import Study
from pipeline.tracking import scratch, server

CHECKPOINT_BYTES = 16 * 2**20
SKEW_S = 10.0  # heartbeats go by the database's clock alone; the times of metrics and segments do not
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
S3_LOGIN = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "MLFLOW_S3_ENDPOINT_URL")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of trying one thing.

    Attributes:
        says: what is so or, with a problem, what is wrong and what to do.
    """

    what: str
    says: str
    is_problem: bool = False


def check(told: str | None, *, file: str | None, study: str | None) -> Iterator[Finding]:
    """Tries one thing after the other. `told` is the URL of the study database that the command was told, if any."""
    url, tracking = storage_url(told), server.shown(server.uri())
    with _untouched(url) as (at, artifacts):
        yield _tried("study database", lambda: _database(at, shown=url))
        yield _tried("claims", lambda: _claims(at))
        yield _tried("clock", lambda: _clock(at))
        yield _tried("tracking", lambda: _tracking(tracking))
        yield _tried("login", lambda: _login(told))
        yield _tried("artifacts", lambda: _artifacts(artifacts))
        if file is not None or study is not None:
            yield _tried("experiment", lambda: _experiment(file, study, url))
        expected = _Expected()
        if study is not None:
            yield _tried("checkpoints", lambda: expected.find(study, url))
        yield _tried("devices", lambda: _devices(expected.largest))
        yield _tried("disk", lambda: _disk(artifacts, expected))


class _Expected:
    """What the checkpoints of a study may take, as far as it is known by now.

    Attributes:
        largest: bytes of one.
        to_come: bytes of all that may still be written.
    """

    def __init__(self) -> None:
        self.largest, self.to_come = 0, 0

    def find(self, study: str, url: str) -> str:
        self.largest, self.to_come = expected_bytes(Study.load(study, url))
        if not self.largest:
            return "none yet, so that what they will take is not known"
        return f"at most {_shown(self.largest)} each so far; {_shown(self.to_come)} may still come"


@contextmanager
def _untouched(url: str) -> Iterator[tuple[str, Path]]:
    """The study database to try, and a folder for artifacts of a tracking database that is not there yet.

    Databases that are files and not there yet stay so: others like them are tried, beside where they would be.
    """
    check_url(url)
    missing = [one for one in (sqlite_file(url), sqlite_file(server.uri())) if one is not None and not one.exists()]
    beside = next((parent for one in missing for parent in one.absolute().parents if parent.is_dir()), None)
    try:
        scratch_folder = tempfile.TemporaryDirectory(prefix=".thaw-check-", dir=beside)
    except OSError as error:
        raise ThawError(f"nothing can be written in {beside or tempfile.gettempdir()}: {error.strerror}") from error
    with scratch_folder as name:
        folder = Path(name)
        if sqlite_file(server.uri()) in missing:
            scratch.use(folder)
        yield sqlite_url(folder / "optuna.db") if sqlite_file(url) in missing else url, folder / "artifacts"


def _tried(what: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, says=attempt())
    except Exception as error:  # noqa: BLE001  stores and servers raise what they like
        reason = str(error) if isinstance(error, ThawError) else f"{type(error).__name__}: {error}"
        return Finding(what=what, says=" ".join(reason.split()), is_problem=True)


def _database(url: str, *, shown: str) -> str:
    began_s = time.perf_counter()
    try:
        prepare_storage(url)
    except ThawError as error:
        raise ThawError(
            f"{error}; start it, let this machine reach its port, or name another by --storage or PIPELINE_STORAGE"
        ) from error
    return f"{redacted(shown)} answers within {time.perf_counter() - began_s:.2f} s"


def _claims(url: str) -> str:
    trying.race_for_claims(url)
    return f"two connections raced for {trying.ROUNDS} trials, and one of them got each"


def _clock(url: str) -> str:
    ahead_s = trying.ahead_s(url)
    if ahead_s is None:
        return "the database has this machine's own"
    says = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"
    if abs(ahead_s) > SKEW_S:
        raise ThawError(f"{says}: set both by NTP, or curves and timelines lie")
    return says


def _tracking(shown: str) -> str:
    began_s = time.perf_counter()
    server.existing_experiment()
    return f"{shown} answers within {time.perf_counter() - began_s:.2f} s"


def _login(told: str | None) -> str:
    """Which logins are wanted, and which variables give them; never what is in those."""
    if told is not None and make_url(told).password is not None:
        raise ThawError("everybody on this machine can read the password in --storage: give it by PIPELINE_STORAGE")
    if not server.is_remote():
        return "tracking is reached without a server, and asks for none"
    host = urlsplit(server.uri()).hostname
    given = _set(LOGIN)
    if server.wants_login():
        return f"the tracking server asks for one; set: {given}"
    open_to = "this machine" if host in LOOPBACK else f"whoever reaches {host}"
    return f"the tracking server asks for none, and is open to {open_to}; set: {given}"


def _set(names: tuple[str, ...]) -> str:
    return ", ".join(name for name in names if os.environ.get(name)) or "nothing"


def _artifacts(artifacts: Path) -> str:
    """A checkpoint written and read back, as a worker does it."""
    manifest = Manifest(position=Position(epoch=1), step=1, trial=0)
    state = {"tensor": torch.randint(0, 256, (CHECKPOINT_BYTES,), dtype=torch.uint8)}
    with scratch.passing_run(artifacts if _is_scratch(artifacts) else None) as (run_id, uri):
        try:
            began_s = time.perf_counter()
            MlflowStore(run_id).put(manifest.name, lambda folder: save(folder, state, manifest))
            written_s = time.perf_counter()
            _, found = load(MlflowStore(run_id), manifest.name)
            read_s = time.perf_counter()
        except Exception as error:
            if urlsplit(uri).scheme != "s3":
                raise
            missing = "; pip install boto3" if isinstance(error, ImportError) else ""
            raise ThawError(f"{uri}: {error}; of its login is set: {_set(S3_LOGIN)}{missing}") from error
    if not torch.equal(found["tensor"], state["tensor"]):
        raise ThawError(f"{uri}: what is read is not what was written")
    speeds = [CHECKPOINT_BYTES / 1e6 / seconds for seconds in (written_s - began_s, read_s - written_s)]
    where = "beside mlflow.db" if _is_scratch(artifacts) else uri.rpartition(f"/{run_id}")[0]
    return f"{where}: {_shown(CHECKPOINT_BYTES)} written at {speeds[0]:.0f} MB/s, read back at {speeds[1]:.0f} MB/s"


def _is_scratch(artifacts: Path) -> bool:
    """Whether tracking itself is of this check's own."""
    file = sqlite_file(server.uri())
    return file is not None and file.parent == artifacts.parent


def _experiment(given: str | None, study: str | None, url: str) -> str:
    if study is None:
        assert given is not None
        return _described(load_experiment(given))
    return f"{_described(join_study(Study.load(study, url), given, workers=0))}, as study {study!r} was opened with"


def _described(file: ExperimentFile) -> str:
    return f"{file.path}: {len(file.sources)} source files, code {file.code_digest[:12]}"


def _devices(largest: int) -> str:
    names = visible_devices()
    if not names:
        return "no CUDA device: training runs on the CPU"
    if not torch.cuda.is_available():
        raise ThawError(f"CUDA_VISIBLE_DEVICES names {', '.join(names)}, but torch cannot use them: look at nvidia-smi")
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = f"{torch.cuda.get_device_name(index)}, {_shown(free)} of {_shown(total)} free"
        if free < largest:
            raise ThawError(f"device {index} ({name}) has no room for a checkpoint of {_shown(largest)}: free it")
        found.append(name)
    return "; ".join(found)


def _disk(artifacts: Path, expected: _Expected) -> str:
    """Room for what goes through the temporary folder, waits in the spool, or stays among the artifacts."""
    wanted = dict.fromkeys((Path(tempfile.gettempdir()), spool_folder()), 2 * expected.largest)
    kept = artifacts.parent.parent if _is_scratch(artifacts) else server.artifact_folder()
    if kept is not None:
        wanted[kept] = expected.to_come
    found = []
    for folder, size in wanted.items():
        there = next(one for one in (folder, *folder.parents) if one.exists())
        free = shutil.disk_usage(there).free
        if free < size:
            raise ThawError(
                f"{folder}: {_shown(free)} free, {_shown(size)} may be needed: make room, or --keep-gb less"
            )
        found.append(f"{there}: {_shown(free)} free")
    return "; ".join(found)


def _shown(size: int) -> str:
    """Bytes as people say them."""
    unit, factor = next((one for one in (("GB", 1e9), ("MB", 1e6)) if size >= one[1]), ("kB", 1e3))
    return f"{size / factor:.1f} {unit}"
