"""Where checkpoints are kept: a folder, or the artifacts of an MLflow run."""

import logging
import os
import shutil
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from pipeline.checkpoint.files import MANIFEST, NAMES, read_manifest, read_state, sync_folder
from pipeline.checkpoint.manifest import Manifest, parse_name, sort_names
from pipeline.errors import CheckpointError, CorruptCheckpoint, UsageError

SET_ASIDE_TAG = "checkpoint_set_aside."  # + the checkpoint's name: a tag on the MLflow run
_SET_ASIDE_FILE = "set-aside.txt"
_ROOT = "checkpoints"

log = logging.getLogger(__name__)


class Store(Protocol):
    """Holds committed checkpoints, which never change.

    Every method takes names that `parse_name` knows and raises UsageError for others, so a name never leads
    out of the store. A store that cannot be reached raises its own error.
    """

    def names(self) -> list[str]:
        """Those with a manifest that were not set aside, by position and then trial."""
        ...

    def put(self, name: str, folder: Path) -> None:
        """Commits the files of `folder`, manifest last. Raises CheckpointError if `name` is there already."""
        ...

    def get(self, name: str) -> Path:
        """A local folder with its files, to be read only. Raises CorruptCheckpoint if it is not there."""
        ...

    def set_aside(self, name: str, why: str) -> None:
        """Keeps it, but names it no more."""
        ...

    def keep_only(self, names: Collection[str], upto_trial: int) -> None:
        """Deletes what was written by trials up to this one, begun uploads among it, save `names`.

        A manifest goes first, so that what is cut short here is no checkpoint any more. What was set aside stays.
        """
        ...


class FolderStore:
    """Checkpoints as folders of `folder`, each of them there as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        found = [path.parent for path in self.folder.glob(f"s*/{MANIFEST}")]
        return sort_names([path.name for path in found if not (path / _SET_ASIDE_FILE).exists()])

    def put(self, name: str, folder: Path) -> None:
        target = self.folder / _checked(name)
        _complete(folder)
        if target.exists():
            raise CheckpointError(f"{target}: is there already; checkpoints are never overwritten")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(mkdtemp(prefix=f".{name}.", dir=self.folder))
            try:
                for file in NAMES:
                    _copy_durably(folder / file, temporary / file)
                temporary.chmod(0o755)  # mkdtemp is for the owner alone
                sync_folder(temporary)
                temporary.rename(target)  # fails if another process put files there meanwhile
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            sync_folder(self.folder)
        except OSError as error:
            raise CheckpointError(f"{target}: the checkpoint cannot be written: {error}") from error

    def get(self, name: str) -> Path:
        path = self.folder / _checked(name)
        if not path.is_dir():
            raise CorruptCheckpoint(f"{path}: is not there")
        return path

    def set_aside(self, name: str, why: str) -> None:
        path = self.folder / _checked(name)
        path.mkdir(parents=True, exist_ok=True)
        (path / _SET_ASIDE_FILE).write_text(f"{why}\n", encoding="utf-8", errors="backslashreplace")

    def keep_only(self, names: Collection[str], upto_trial: int) -> None:
        whole = {path: path.name for path in self.folder.glob("s*")}
        begun = {path: path.name[1:].rpartition(".")[0] for path in self.folder.glob(".s*")}  # see `put`
        for path, name in (whole | begun).items():
            kept = () if path in begun else names
            if _may_go(name, kept, upto_trial) and not (path / _SET_ASIDE_FILE).exists():
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path)


class MlflowStore:
    """Checkpoints as artifacts `checkpoints/<name>/` of one MLflow run, wherever its artifacts are.

    What is downloaded lives as long as the store does.
    """

    def __init__(self, run_id: str, tracking_uri: str | None = None) -> None:
        from mlflow import MlflowClient

        self.run_id = run_id
        self._tracking_uri = tracking_uri
        self._client: Any = MlflowClient(tracking_uri)
        self._committed: set[str] = set()
        self._downloads: str | None = None

    def names(self) -> list[str]:
        tags = self._client.get_run(self.run_id).data.tags
        paths = [Path(info.path) for info in self._client.list_artifacts(self.run_id, _ROOT) if info.is_dir]
        chosen = [path.name for path in paths if f"{SET_ASIDE_TAG}{path.name}" not in tags]
        return [name for name in sort_names(chosen) if self._is_committed(name)]

    def put(self, name: str, folder: Path) -> None:
        _checked(name)
        _complete(folder)
        if self._is_committed(name):
            raise CheckpointError(f"{name}: is there already; checkpoints are never overwritten")
        for file in NAMES:
            self._client.log_artifact(self.run_id, str(folder / file), f"{_ROOT}/{name}")
        self._committed.add(name)

    def get(self, name: str) -> Path:
        _checked(name)
        if not self._is_committed(name):
            raise CorruptCheckpoint(f"{_ROOT}/{name}: is not there, or has no {MANIFEST}")
        local = self._local_root()
        return local / name if local is not None else self._download(name)

    def set_aside(self, name: str, why: str) -> None:
        self._client.set_tag(self.run_id, f"{SET_ASIDE_TAG}{_checked(name)}", why[:5000])

    def keep_only(self, names: Collection[str], upto_trial: int) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        run = self._client.get_run(self.run_id)
        repository: Any = get_artifact_repository(run.info.artifact_uri)
        for info in self._client.list_artifacts(self.run_id, _ROOT):
            name = Path(info.path).name
            set_aside = f"{SET_ASIDE_TAG}{name}" in run.data.tags
            if info.is_dir and not set_aside and _may_go(name, names, upto_trial):
                self._committed.discard(name)
                for path in (f"{_ROOT}/{name}/{MANIFEST}", f"{_ROOT}/{name}"):
                    repository.delete_artifacts(path)

    def _is_committed(self, name: str) -> bool:
        # Asked once: what is committed stays so.
        if name not in self._committed:
            infos = self._client.list_artifacts(self.run_id, f"{_ROOT}/{name}")
            if any(Path(info.path).name == MANIFEST for info in infos):
                self._committed.add(name)
        return name in self._committed

    def _local_root(self) -> Path | None:
        uri = urlparse(self._client.get_run(self.run_id).info.artifact_uri)
        if uri.scheme == "file":
            return Path(unquote(uri.path), _ROOT)
        return Path(unquote(uri.path), _ROOT) if uri.scheme == "" else None

    def _download(self, name: str) -> Path:
        from mlflow.artifacts import download_artifacts

        if self._downloads is None:
            self._downloads = mkdtemp(prefix="thaw-")
            weakref.finalize(self, shutil.rmtree, self._downloads, ignore_errors=True)
        target, arriving = Path(self._downloads, name), Path(self._downloads, "arriving")
        if not (target / MANIFEST).exists():
            infos = self._client.list_artifacts(self.run_id, f"{_ROOT}/{name}")
            missing = set(NAMES) - {Path(info.path).name for info in infos}
            if missing:  # said by us: a store's error may also mean that the store does not answer
                raise CorruptCheckpoint(f"{_ROOT}/{name}/{min(missing)}: is not there")
            target.mkdir(exist_ok=True)
            arriving.mkdir(exist_ok=True)
            for file in NAMES:
                path = download_artifacts(
                    run_id=self.run_id,
                    artifact_path=f"{_ROOT}/{name}/{file}",
                    dst_path=str(arriving),
                    tracking_uri=self._tracking_uri,
                )
                # How much of an artifact's path is kept below `dst_path` differs between repositories.
                Path(path).rename(target / file)
        return target


def load(store: Store, name: str, device: str = "cpu") -> tuple[Manifest, dict[str, Any]]:
    """Manifest and state of one checkpoint. Raises CorruptCheckpoint if it does not verify."""
    folder = store.get(name)
    manifest = load_manifest(folder, name)
    return manifest, read_state(folder, manifest, device)


def load_manifest(folder: Path, name: str) -> Manifest:
    """The manifest in `folder`. Raises CorruptCheckpoint if it is not sound, or another checkpoint's."""
    manifest = read_manifest(folder / MANIFEST)
    if manifest.name != name:
        raise CorruptCheckpoint(f"{name}: its manifest is that of {manifest.name}")
    return manifest


def load_newest(store: Store, names: Sequence[str], device: str = "cpu") -> tuple[Manifest, dict[str, Any]] | None:
    """The newest of `names` that verifies, or None; those after it are set aside, with a warning."""
    for name in reversed(sort_names(list(names))):
        try:
            return load(store, name, device)
        except CorruptCheckpoint as error:
            log.warning("checkpoint %s does not verify and is set aside: %s", name, error)
            store.set_aside(name, str(error))
    return None


def _checked(name: str) -> str:
    if parse_name(name) is None:
        raise UsageError(f"{name!r} is no checkpoint's name; expected one like s0-e00003-b000017-t000012")
    return name


def _may_go(name: str, kept: Collection[str], upto_trial: int) -> bool:
    parsed = parse_name(name)
    return parsed is not None and parsed[1] <= upto_trial and name not in kept


def _complete(folder: Path) -> None:
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: is not there; a checkpoint needs {', '.join(NAMES)}")


def _copy_durably(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # the files never change, so one copy is enough
    except OSError:
        shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
