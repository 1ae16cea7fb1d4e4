"""What a training was like after each batch: a digest of every tensor, and every other entry of its state.

One JSON object a line, written before anything else happens there, so that a kill loses none.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from pipeline.checkpoint import Position, encode
from pipeline.proving.variables import Variable

KINDS = ("tensor", "state", "metric")
LONGEST_TEXT = 40  # a value of more characters is digested


@dataclass(frozen=True, kw_only=True)
class Moment:
    """How training stood at a position.

    Attributes:
        names: of the entries, the kind first: `tensor model.weight`, `state optimizer.param_groups.0.lr`.
        texts: their values, or digests of what is longer.
        variables: the loop's own variables; only where they were asked for.
    """

    at: Position
    names: tuple[str, ...]
    texts: tuple[str, ...]
    variables: Mapping[str, Variable] | None = None

    @property
    def entries(self) -> dict[str, str]:
        return dict(zip(self.names, self.texts, strict=True))


class Record:
    """The file of one process's moments, being written."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("x", encoding="utf-8")
        self._names: list[str] = []

    def add(self, at: Position, entries: Mapping[str, str], variables: Mapping[str, Variable] | None) -> None:
        """Appends a moment and hands it to the operating system."""
        line: dict[str, Any] = {"at": [at.stage, at.epoch, at.batch], "texts": list(entries.values())}
        if list(entries) != self._names:
            line["names"] = self._names = list(entries)
        if variables is not None:
            line["variables"] = {name: [v.kind, v.type, v.text] for name, v in variables.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def read_record(file: Path) -> Iterator[Moment]:
    """The moments of a file, in order; none if it was never begun."""
    names: tuple[str, ...] = ()
    if not file.exists():
        return
    with file.open(encoding="utf-8") as lines:
        for written in lines:
            line = json.loads(written)
            names = tuple(line["names"]) if "names" in line else names
            held = line.get("variables", {}).items()
            variables = {name: Variable(kind=kind, type=cls, text=text) for name, (kind, cls, text) in held}
            yield Moment(
                at=Position(*line["at"]),
                names=names,
                texts=tuple(line["texts"]),
                variables=variables if "variables" in line else None,
            )


def entries(state: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, str]:
    """Everything in a checkpoint's state by name, and an epoch's metrics; tracked objects first."""
    # The checkpoint that the stage before ended with is named by the process that wrote it.
    loop = {name: value for name, value in state["loop"].items() if name != "previous"}
    tree, tensors = encode({**state, "loop": loop})
    found = {f"tensor {name}": digest(tensor) for name, tensor in tensors.items()}
    rest = ((path, text) for path, text in _leaves(tree, ()) if f"tensor {path}" not in found)
    found |= {f"state {path}": text for path, text in rest}
    return found | {f"metric {name}": repr(value) for name, value in metrics.items()}


def digest(tensor: Tensor) -> str:
    """A digest of a dense tensor on the CPU: its bits, dtype and shape."""
    found = blake3(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(bits(tensor).numpy().data)
    return found.hexdigest(8)


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a dense tensor on the CPU."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


def shortened(text: str) -> str:
    """The text itself, or a digest of a long one."""
    return text if len(text) <= LONGEST_TEXT else f"blake3 {blake3(text.encode()).hexdigest(8)}"


def _leaves(tree: Any, path: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The values of encoded state that are no tensors, under dotted paths, as JSON."""
    if isinstance(tree, dict) and tree and not any(key.startswith("!") for key in tree):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and tree:
        for index, value in enumerate(tree):
            yield from _leaves(value, (*path, str(index)))
    else:
        yield ".".join(path), shortened(json.dumps(tree))
