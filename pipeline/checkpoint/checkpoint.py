"""One checkpoint, opened to be looked at, loaded from, or exported; nothing in the store changes."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.checkpoint.capture import check_names, restore
from pipeline.checkpoint.files import read_tensors
from pipeline.checkpoint.manifest import Manifest, Position, parse_name
from pipeline.checkpoint.modules import plain
from pipeline.checkpoint.store import FolderStore, MlflowStore, Store, load, load_manifest
from pipeline.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import pandas as pd

_RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)

Patterns = str | Sequence[str] | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Checkpoint:
    """An immutable checkpoint of a run.

    best = Checkpoint.open(run_id, "best")
    best.load_into(model=model, include="backbone.*")
    """

    store: Store
    name: str
    manifest: Manifest

    @classmethod
    def open(cls, run: str | Path, which: str | int | Position = "latest") -> "Checkpoint":
        """A checkpoint of an MLflow run (its id) or of the folder that `Run.local` used.

        `which` is "latest", "best", a step (batches since the start of training), a Position (of several there, the
        last trial's) or a checkpoint's name.
        Raises UsageError if there is none such, CorruptCheckpoint if its manifest is not sound.
        """
        store = _store(run)
        names = store.names()
        if not names:
            raise UsageError(f"{run}: no checkpoint there")
        name = names[-1]
        if which == "best":
            best = cls.of(store, name).manifest.best
            if best is None or best.checkpoint is None:
                raise UsageError(f"{run}: {name} knows of no best checkpoint; open 'latest'")
            name = best.checkpoint
        elif isinstance(which, int):
            steps = {cls.of(store, name).manifest.step: name for name in names}
            if which not in steps:
                raise UsageError(f"{run}: no checkpoint at step {which}; there are {', '.join(map(str, steps))}")
            name = steps[which]
        elif isinstance(which, Position):
            there = [name for name in names if (found := parse_name(name)) and found[0] == which]
            if not there:
                raise UsageError(f"{run}: no checkpoint at {which}; the latest is {name}")
            name = there[-1]
        elif which != "latest":
            name = which
        if name not in names:
            raise UsageError(f"{run}: no checkpoint {name!r}; the latest is {names[-1]}")
        return cls.of(store, name)

    @classmethod
    def of(cls, store: Store, name: str) -> "Checkpoint":
        """The checkpoint of this name in a store. Raises CorruptCheckpoint if its manifest is not sound."""
        return cls(store=store, name=name, manifest=load_manifest(store, name))

    def __repr__(self) -> str:
        return f"<Checkpoint {self.name}: {', '.join(f'{name} {value}' for name, value in self._facts.items())}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in self._facts.items()
        )
        return f"<table><caption>Checkpoint {html.escape(self.name)}</caption>{rows}</table>"

    @property
    def _facts(self) -> dict[str, str]:
        """What tells it from others, for people."""
        tensors = self.manifest.tensors
        return {
            "stage": str(self.position.stage),
            "epoch": str(self.position.epoch),
            "batch": str(self.position.batch),
            "step": str(self.manifest.step),
            **{name: f"{value:.6g}" for name, value in self.metrics.items()},
            "tensors": f"{len(tensors)} ({self.manifest.size_bytes:,} bytes)",
        }

    @property
    def position(self) -> Position:
        """Where training stood."""
        return self.manifest.position

    @property
    def metrics(self) -> dict[str, float]:
        """What was reported last; empty before the first report."""
        history = self.manifest.history
        return dict(history[-1].metrics) if history else {}

    @property
    def history(self) -> "pd.DataFrame":
        """Every report so far: a row an epoch (counted from 1 through all stages), a column a metric."""
        import pandas as pd

        reports = self.manifest.history
        index = pd.Index([report.epoch for report in reports], name="epoch")
        return pd.DataFrame([dict(report.metrics) for report in reports], index=index)

    def tensors(self, include: Patterns = None, exclude: Patterns = None) -> dict[str, Tensor]:
        """The tensors whose dotted names (`model.fc1.weight`) match, on the CPU, mapped from the file.

        Patterns are the shell's (`*.exp_avg`). Raises CorruptCheckpoint if the file does not verify.
        """
        wanted, unwanted = _patterns(include) or ("*",), _patterns(exclude) or ()
        found = read_tensors(self.store.get(self.name), self.manifest, elsewhere=self.store.file)
        return {
            name: tensor
            for name, tensor in found.items()
            if any(fnmatchcase(name, pattern) for pattern in wanted)
            and not any(fnmatchcase(name, pattern) for pattern in unwanted)
        }

    def load_into(self, include: Patterns = None, device: str | None = None, **objects: Any) -> None:
        """Loads into live objects, under the names they were tracked by, on their own devices.

        `include` chooses entries of modules (`backbone.*`); `device` is where tensors are read to on the way.
        Pending gradients and random state are left alone. Raises MismatchError, with nothing changed, if the
        checkpoint does not fit.
        """
        check_names(objects)
        objects = {name: plain(value) for name, value in objects.items()}
        patterns = _patterns(include)
        others = [name for name, value in objects.items() if not isinstance(value, nn.Module)]
        if patterns is not None and others:
            raise UsageError(f"load_into: include chooses from modules, {others[0]} is none; load it without")
        _, state = load(self.store, self.name, device or "cpu")
        restore(objects, {name: value for name, value in state.items() if name != "grad"}, patterns)

    def export_weights(self, path: str | Path) -> None:
        """Writes the tensors of the tracked modules to a new safetensors file, for use without this project.

        Of one module under its own names (`fc1.weight`), of several as `model.fc1.weight`.
        Raises CheckpointError if `path` is there already or a tensor is of a kind that safetensors lacks.
        """
        path = Path(path)
        _, state = load(self.store, self.name)
        modules = [name for name, kind in state.get("kinds", {}).items() if kind == "module"]
        if not modules:
            raise CheckpointError(f"{self.name}: no module was tracked, so there are no weights")
        weights = {
            (key if len(modules) == 1 else f"{name}.{key}"): value
            for name in modules
            for key, value in state[name].items()
            if isinstance(value, Tensor)
        }
        if path.exists():
            raise CheckpointError(f"{path}: is there already; choose another name")
        try:
            save_file(weights, path)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{path}: the weights cannot be written: {error}") from error


def _store(run: str | Path) -> Store:
    folder = Path(run)
    if folder.is_dir():
        inner = folder / "checkpoints"
        return FolderStore(inner if inner.is_dir() else folder)
    if isinstance(run, str) and _RUN_ID.fullmatch(run):
        return MlflowStore(run)
    raise UsageError(f"{run}: neither an MLflow run's id nor a folder")


def _patterns(given: Patterns) -> tuple[str, ...] | None:
    return None if given is None else (given,) if isinstance(given, str) else tuple(given)
