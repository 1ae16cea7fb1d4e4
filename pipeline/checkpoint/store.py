"""Where checkpoints are kept: a folder, or the artifacts of an MLflow run."""

import logging
import shutil
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlparse

from pipeline.checkpoint.files import FILES, MANIFEST, NAMES, read_manifest, read_state, sync_folder
from pipeline.checkpoint.manifest import Manifest, parse_name, sort_names
from pipeline.errors import CheckpointError, CorruptCheckpoint, UsageError

SET_ASIDE_TAG = "checkpoint_set_aside."  # + the checkpoint's name: a tag on the MLflow run
_SET_ASIDE_FILE = "set-aside.txt"
_ROOT = "checkpoints"

log = logging.getLogger(__name__)

T = TypeVar("T")
Referred = Mapping[str, Collection[str]]  # a checkpoint's name -> files of it that other checkpoints need


class Store(Protocol):
    """Holds committed checkpoints, which never change.

    Every method takes names that `parse_name` knows and raises UsageError for others, so a name never leads
    out of the store. A store that cannot be reached raises its own error.
    """

    def names(self) -> list[str]:
        """Those with a manifest that were not set aside, by position and then trial."""
        ...

    def put(self, name: str, write: Callable[[Path], T]) -> T:
        """Commits the files that `write` puts into the folder it is given, synced; returns what it returned.

        The manifest comes last. Raises CheckpointError if `name` is there already, and whatever `write` raises; then
        there is no checkpoint.
        """
        ...

    def get(self, name: str) -> Path:
        """A local folder with its files, to be read only. Raises CorruptCheckpoint if it is not there."""
        ...

    def file(self, name: str, file: str) -> Path:
        """One file, of a checkpoint that others refer to; its manifest may be gone. Raises CorruptCheckpoint."""
        ...

    def set_aside(self, name: str, why: str) -> None:
        """Keeps it, but names it no more."""
        ...

    def keep_only(self, names: Collection[str], upto_trial: int, files: Referred | None = None) -> None:
        """Deletes what was written by trials up to this one, begun uploads among it, save `names` and `files`.

        A manifest goes first, so that what is cut short here is no checkpoint any more. What was set aside stays.
        """
        ...

    def files(self, name: str) -> dict[str, int]:
        """The files that are there of a checkpoint, whole or not, with their bytes."""
        ...

    def sizes(self) -> dict[str, int]:
        """The bytes of every folder of a checkpoint, whole or not, by its name."""
        ...


class FolderStore:
    """Checkpoints as folders of `folder`, each of them there as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        found = [path.parent for path in self.folder.glob(f"s*/{MANIFEST}")]
        return sort_names([path.name for path in found if not (path / _SET_ASIDE_FILE).exists()])

    def put(self, name: str, write: Callable[[Path], T]) -> T:
        target = self.folder / _checked(name)
        if target.exists():
            raise CheckpointError(f"{target}: is there already; checkpoints are never overwritten")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(mkdtemp(prefix=f".{name}.", dir=self.folder))
            try:
                written = write(temporary)
                _complete(temporary)
                temporary.chmod(0o755)  # mkdtemp is for the owner alone
                temporary.rename(target)  # fails if another process put files there meanwhile
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            sync_folder(self.folder)
            return written
        except OSError as error:
            raise CheckpointError(f"{target}: the checkpoint cannot be written: {error}") from error

    def get(self, name: str) -> Path:
        path = self.folder / _checked(name)
        if not path.is_dir():
            raise CorruptCheckpoint(f"{path}: is not there")
        return path

    def file(self, name: str, file: str) -> Path:
        assert file in FILES
        return self.folder / _checked(name) / file

    def set_aside(self, name: str, why: str) -> None:
        path = self.folder / _checked(name)
        path.mkdir(parents=True, exist_ok=True)
        (path / _SET_ASIDE_FILE).write_text(f"{why}\n", encoding="utf-8", errors="backslashreplace")

    def keep_only(self, names: Collection[str], upto_trial: int, files: Referred | None = None) -> None:
        whole = {path: path.name for path in self.folder.glob("s*")}
        begun = {path: path.name[1:].rpartition(".")[0] for path in self.folder.glob(".s*")}  # see `put`
        for path, name in (whole | begun).items():
            kept = () if path in begun else names
            if _may_go(name, kept, upto_trial) and not (path / _SET_ASIDE_FILE).exists():
                _remove(path, () if path in begun else (files or {}).get(name, ()))

    def sizes(self) -> dict[str, int]:
        names = [path.name for path in self.folder.glob("s*") if parse_name(path.name) is not None]
        return {name: sum(self.files(name).values()) for name in names}

    def files(self, name: str) -> dict[str, int]:
        return _sizes(self.folder / _checked(name))


class MlflowStore:
    """Checkpoints as artifacts `checkpoints/<name>/` of one MLflow run, wherever its artifacts are.

    In a folder of this machine they are written and read where they lie. What is downloaded from elsewhere lives as
    long as this object does.
    """

    def __init__(self, run_id: str, tracking_uri: str | None = None) -> None:
        from mlflow import MlflowClient

        self.run_id = run_id
        self._tracking_uri = tracking_uri
        self._client: Any = MlflowClient(tracking_uri)
        self._committed: set[str] = set()
        self._aside: set[str] | None = None  # names that were set aside; only whoever trains does that
        self._downloads: str | None = None

    def names(self) -> list[str]:
        self._aside = None  # looked up anew: another process may have trained it since
        aside = self._set_aside_names()
        found = self._here.names() if self._here is not None else self._folders()
        chosen = sort_names([name for name in found if name not in aside])
        return [name for name in chosen if self._is_committed(name)]

    def put(self, name: str, write: Callable[[Path], T]) -> T:
        if self._here is not None:
            return self._here.put(name, write)
        _checked(name)
        if self._is_committed(name):
            raise CheckpointError(f"{name}: is there already; checkpoints are never overwritten")
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            written = write(folder)
            _complete(folder)
            for file in FILES:
                if (folder / file).exists():
                    self._repository.log_artifact(str(folder / file), f"{_ROOT}/{name}")
        self._committed.add(name)
        return written

    def get(self, name: str) -> Path:
        _checked(name)
        if not self._is_committed(name):
            raise CorruptCheckpoint(f"{_ROOT}/{name}: is not there, or has no {MANIFEST}")
        if self._here is not None:
            return self._here.get(name)
        there = self.files(name)
        missing = set(NAMES) - set(there)
        if missing:
            raise CorruptCheckpoint(f"{_ROOT}/{name}/{min(missing)}: is not there")
        return [self._download(name, file) for file in FILES if file in there][-1].parent

    def file(self, name: str, file: str) -> Path:
        assert file in FILES
        if self._here is not None:
            return self._here.file(name, file)
        if file not in self.files(_checked(name)):  # said by us: a store's error may mean that it does not answer
            raise CorruptCheckpoint(f"{_ROOT}/{name}/{file}: is not there")
        return self._download(name, file)

    def set_aside(self, name: str, why: str) -> None:
        self._client.set_tag(self.run_id, f"{SET_ASIDE_TAG}{_checked(name)}", why[:5000])
        self._aside = None

    def keep_only(self, names: Collection[str], upto_trial: int, files: Referred | None = None) -> None:
        aside = self._set_aside_names()
        if self._here is not None:
            self._here.keep_only({*names, *aside}, upto_trial, files)
            return
        for name in self._folders():
            if name not in aside and _may_go(name, names, upto_trial):
                self._committed.discard(name)
                needed = (files or {}).get(name, ())
                for file in sorted(self.files(name), key=lambda file: file != MANIFEST):
                    if file not in needed:
                        self._repository.delete_artifacts(f"{_ROOT}/{name}/{file}")

    def sizes(self) -> dict[str, int]:
        if self._here is not None:
            return self._here.sizes()
        return {name: sum(self.files(name).values()) for name in self._folders()}

    def _set_aside_names(self) -> set[str]:
        if self._aside is None:
            run = self._client.get_run(self.run_id)
            self._uri = str(run.info.artifact_uri)  # by the way: each question to a server costs
            self._aside = {tag.removeprefix(SET_ASIDE_TAG) for tag in run.data.tags if tag.startswith(SET_ASIDE_TAG)}
        return self._aside

    def _is_committed(self, name: str) -> bool:
        # Asked once: what is committed stays so.
        if name not in self._committed and MANIFEST in self.files(name):
            self._committed.add(name)
        return name in self._committed

    @cached_property
    def _uri(self) -> str:
        return str(self._client.get_run(self.run_id).info.artifact_uri)

    @cached_property
    def _here(self) -> FolderStore | None:
        """The folder, where the run's artifacts are files of this machine."""
        uri = urlparse(self._uri)
        return FolderStore(Path(unquote(uri.path), _ROOT)) if uri.scheme in ("", "file") else None

    @cached_property
    def _repository(self) -> Any:
        """Where they are elsewhere; by their run, MLflow would ask its server three times as often."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self._uri, tracking_uri=self._tracking_uri)

    def _folders(self) -> list[str]:
        infos = self._repository.list_artifacts(_ROOT)
        return [name for info in infos if info.is_dir and parse_name(name := PurePosixPath(info.path).name)]

    def files(self, name: str) -> dict[str, int]:
        if self._here is not None:
            return self._here.files(name)
        infos = self._repository.list_artifacts(f"{_ROOT}/{name}")
        return {PurePosixPath(info.path).name: info.file_size or 0 for info in infos}

    def _download(self, name: str, file: str) -> Path:
        if self._downloads is None:
            self._downloads = mkdtemp(prefix="thaw-")
            weakref.finalize(self, shutil.rmtree, self._downloads, ignore_errors=True)
        target, arriving = Path(self._downloads, name, file), Path(self._downloads, "arriving")
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            arriving.mkdir(exist_ok=True)
            path = self._repository.download_artifacts(f"{_ROOT}/{name}/{file}", str(arriving))
            # How much of an artifact's path is kept below `dst_path` differs between repositories.
            Path(path).rename(target)
        return target


def load(store: Store, name: str, device: str = "cpu") -> tuple[Manifest, dict[str, Any]]:
    """Manifest and state of one checkpoint. Raises CorruptCheckpoint if it does not verify."""
    folder, manifest = store.get(name), load_manifest(store, name)
    return manifest, read_state(folder, manifest, device, store.file)


def load_manifest(store: Store, name: str) -> Manifest:
    """The manifest alone. Raises CorruptCheckpoint if it is not there or not sound, or another checkpoint's."""
    manifest = read_manifest(store.file(name, MANIFEST))
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


def _remove(folder: Path, needed: Collection[str]) -> None:
    """Deletes the files of a folder, the manifest first, save what is needed. Another process may be doing the same."""
    with suppress(FileNotFoundError):
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in list(folder.iterdir()):
            if file.name not in needed:
                file.unlink(missing_ok=True)
        if not needed:
            folder.rmdir()


def _sizes(folder: Path) -> dict[str, int]:
    """The files of a folder, with their bytes; none if it is not there, or no more."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_size
    return found


def _complete(folder: Path) -> None:
    missing = [name for name in NAMES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: is not there; a checkpoint needs {', '.join(NAMES)}")
