"""The manifest: what a checkpoint is, written last, so that a folder with one is complete."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from pipeline.checkpoint import strict_json
from pipeline.checkpoint.dtypes import DTYPES
from pipeline.errors import CorruptCheckpoint, EncodeError

TENSORS, FROZEN, STATE = "state.safetensors", "frozen.safetensors", "state.json"
SCHEMA = 1
_NAME = re.compile(r"s(\d{1,4})-e(\d{5,9})-b(\d{6,12})-t(\d{6,12})", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LARGEST = 2**63 - 1  # what a size, a step or a dimension may say


@dataclass(frozen=True, order=True)
class Position:
    """Finished epochs of the stage and finished batches of the current epoch. Absolute, never relative."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0

    @property
    def is_stage_start(self) -> bool:
        """Whether a checkpoint here is what the stage before ended with."""
        return self.stage > 0 and self.epoch == 0 and self.batch == 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The metrics of one epoch. `epoch` counts from 1 through all stages; `time_ms` is unix time.

    `seconds` is how long the epoch was trained, in all its pieces; what a kill has lost does not count.
    """

    epoch: int
    time_ms: int
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best value of the monitored metric so far, and the name of the checkpoint with those weights."""

    epoch: int
    value: float
    checkpoint: str | None


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size and BLAKE3 digest (64 hex digits) of one file; `at` is the checkpoint that has it, None for this one."""

    size_bytes: int
    blake3: str
    at: str | None = None


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Dtype (torch's name, `float32`) and shape of one tensor as it is stored."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds and needs. `step` counts batches since the start, `parent` is a trial number.

    `seconds` is how long the current epoch was trained so far.
    `environment` is plain JSON, given by the caller: torch version, device, threads, code and data digests.
    """

    schema: int = SCHEMA
    position: Position
    step: int
    seconds: float = 0.0
    trial: int
    parent: int | None = None
    history: tuple[Report, ...] = ()
    best: Best | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The checkpoint's name, which is its folder's too."""
        return checkpoint_name(self.position, self.trial)

    @property
    def size_bytes(self) -> int:
        """Bytes of its own files, the manifest's not counted; what lies in another checkpoint is that one's."""
        return sum(entry.size_bytes for entry in self.files.values() if entry.at is None)

    def to_json(self) -> str:
        """Strict JSON that ends with a digest of itself. Raises EncodeError if `environment` is not JSON."""
        try:
            return _seal(_plain(self))
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"manifest: not plain JSON: {error}") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """The manifest that `to_json` wrote as `text`. Raises CorruptCheckpoint for any other text."""
        if isinstance(text, bytes):
            try:
                text = text.decode("ascii")
            except UnicodeDecodeError as error:
                raise CorruptCheckpoint(f"manifest.json: {error}") from error
        data = strict_json.loads(text, "manifest.json")
        _check(isinstance(data, dict), "an object", data)
        schema = data.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise CorruptCheckpoint(
                f"manifest.json: schema {schema}, this version reads up to {SCHEMA}; use a newer one"
            )
        data.pop("blake3", None)
        # Text against text: a byte that changed is found even where JSON would read the same value.
        if _seal(data) != text:
            raise CorruptCheckpoint("manifest.json: its own digest does not match; the file was changed")
        return _read_manifest(data)


def checkpoint_name(position: Position, trial: int) -> str:
    """The name of the checkpoint that `trial` takes at `position`: `s0-e00003-b000017-t000012`."""
    return f"s{position.stage}-e{position.epoch:05}-b{position.batch:06}-t{trial:06}"


def parse_name(name: str) -> tuple[Position, int] | None:
    """Position and trial number of a checkpoint's name; None for every other string."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    stage, epoch, batch, trial = map(int, match.groups())
    position = Position(stage, epoch, batch)
    # One spelling a checkpoint: `s00-...` or a seventh leading zero is somebody else's name.
    return (position, trial) if checkpoint_name(position, trial) == name else None


def sort_names(names: list[str]) -> list[str]:
    """Checkpoint names by position, then trial; every other string is left out."""
    parsed = [(found, name) for name in names if (found := parse_name(name)) is not None]
    return [name for _, name in sorted(parsed)]


def _seal(data: dict[str, Any]) -> str:
    digest = blake3(strict_json.dumps(data).encode()).hexdigest()
    return strict_json.dumps({**data, "blake3": digest})


def _plain(manifest: Manifest) -> dict[str, Any]:
    best = manifest.best
    position = manifest.position
    return {
        "schema": manifest.schema,
        "position": {"stage": position.stage, "epoch": position.epoch, "batch": position.batch},
        "step": manifest.step,
        "seconds": manifest.seconds,
        "trial": manifest.trial,
        "parent": manifest.parent,
        "best": best and {"epoch": best.epoch, "value": _number(best.value), "checkpoint": best.checkpoint},
        "history": [
            {
                "epoch": report.epoch,
                "time_ms": report.time_ms,
                "seconds": report.seconds,
                "metrics": {name: _number(value) for name, value in report.metrics.items()},
            }
            for report in manifest.history
        ],
        "environment": dict(manifest.environment),
        "files": {
            name: {"size_bytes": entry.size_bytes, "blake3": entry.blake3, "at": entry.at}
            for name, entry in manifest.files.items()
        },
        "tensors": {
            name: {"dtype": entry.dtype, "shape": list(entry.shape)} for name, entry in manifest.tensors.items()
        },
    }


def _number(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _read_manifest(data: dict[str, Any]) -> Manifest:
    _keys(
        data,
        *("schema", "position", "step", "seconds", "trial", "parent", "best"),
        *("history", "environment", "files", "tensors"),
    )
    position, best = data["position"], data["best"]
    _keys(position, "stage", "epoch", "batch")
    _check(isinstance(data["history"], list), "a list of reports", data["history"])
    for name in ("environment", "files", "tensors"):
        _check(isinstance(data[name], dict), f"an object as {name}", data[name])
    return Manifest(
        schema=_count(data["schema"], least=1),
        position=Position(*(_count(position[name]) for name in ("stage", "epoch", "batch"))),
        step=_count(data["step"]),
        seconds=_read_seconds(data["seconds"]),
        trial=_count(data["trial"]),
        parent=None if data["parent"] is None else _count(data["parent"]),
        best=None if best is None else _read_best(best),
        history=tuple(_read_report(report) for report in data["history"]),
        environment=data["environment"],
        files={name: _read_file(entry) for name, entry in data["files"].items()},
        tensors={name: _read_tensor(entry) for name, entry in data["tensors"].items()},
    )


def _read_best(data: Any) -> Best:
    _keys(data, "epoch", "value", "checkpoint")
    name = _read_name(data["checkpoint"])
    return Best(epoch=_count(data["epoch"]), value=_read_number(data["value"]), checkpoint=name)


def _read_name(data: Any) -> str | None:
    _check(data is None or (isinstance(data, str) and parse_name(data)), "a checkpoint's name", data)
    return None if data is None else str(data)


def _read_report(data: Any) -> Report:
    _keys(data, "epoch", "time_ms", "seconds", "metrics")
    _check(isinstance(data["metrics"], dict), "an object as metrics", data["metrics"])
    metrics = {name: _read_number(value) for name, value in data["metrics"].items()}
    return Report(
        epoch=_count(data["epoch"]),
        time_ms=_count(data["time_ms"]),
        seconds=_read_seconds(data["seconds"]),
        metrics=metrics,
    )


def _read_file(data: Any) -> FileEntry:
    _keys(data, "size_bytes", "blake3", "at")
    digest = data["blake3"]
    _check(isinstance(digest, str) and _DIGEST.fullmatch(digest), "64 hex digits", digest)
    return FileEntry(size_bytes=_count(data["size_bytes"]), blake3=digest, at=_read_name(data["at"]))


def _read_tensor(data: Any) -> TensorEntry:
    _keys(data, "dtype", "shape")
    _check(isinstance(data["dtype"], str) and data["dtype"] in DTYPES, "a dtype", data["dtype"])
    _check(isinstance(data["shape"], list), "a shape", data["shape"])
    return TensorEntry(dtype=data["dtype"], shape=tuple(_count(size) for size in data["shape"]))


def _count(value: Any, least: int = 0) -> int:
    _check(type(value) is int and least <= value <= _LARGEST, f"a whole number from {least}", value)
    return int(value)


def _read_seconds(value: Any) -> float:
    _check(type(value) is float and 0 <= value < math.inf, "seconds", value)
    return float(value)


def _read_number(value: Any) -> float:
    known = type(value) is float or value in ("inf", "-inf", "nan")
    _check(known, "a number", value)
    return float(value)


def _keys(data: Any, *names: str) -> None:
    _check(isinstance(data, dict) and set(data) == set(names), f"an object with {', '.join(names)}", data)


def _check(fine: Any, expected: str, found: Any) -> None:
    if not fine:
        raise CorruptCheckpoint(f"manifest.json: expected {expected}, found {str(found)[:80]!r}")
