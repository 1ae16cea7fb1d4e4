"""The variables of a user's loop that are not tracked: what a kill loses, if a loop needs it."""

import dis
import random
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from pipeline.checkpoint import capture, encode
from pipeline.checkpoint.strict_json import dumps
from pipeline.run import Run

DEEPEST = 4
MOST_ITEMS = 100  # of a container that has to be looked into
SHORT = 40  # characters of a value that is shown


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One of them.

    Attributes:
        kind: `generator`; `foreign generator`, which `track` does not take; `scheduler`; `object`, whatever else
            `track` takes; `value`.
        type: the name of its class.
        text: its value, or a digest of what is longer.
    """

    kind: str
    type: str
    text: str


def untracked(sources: Collection[Path]) -> dict[str, Variable]:
    """What the code of `sources` that is running now keeps in variables and has not tracked.

    By `variable function`, or `variable file` for a module's own. Of a function's variables those count that were
    bound above the line where it is, or above its `run.batches`: what a loop's body only binds anew is lost
    without harm.
    """
    files = {str(path) for path in sources}
    found: dict[str, Variable] = {}
    tracked: set[int] = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        run = frame.f_locals.get("self")
        if isinstance(run, Run):
            tracked |= _identities(run.tracked)
        if frame.f_code.co_filename in files:
            held = {name: frame.f_locals[name] for name in _bound_above(frame) if name in frame.f_locals}
            found |= _described(held, frame.f_code.co_name, tracked, files)
        frame = frame.f_back
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path in files:
            found |= _described(vars(module), Path(path).name, tracked, files)
    return found


def _identities(objects: Mapping[str, Any]) -> set[int]:
    """Of the tracked objects and of what belongs to them."""
    found = {id(value) for value in objects.values()}
    for module in (value for value in objects.values() if isinstance(value, nn.Module)):
        for part in (module.modules(), module.parameters(), module.buffers()):
            found |= {id(value) for value in part}
    return found


def _bound_above(frame: FrameType) -> set[str]:
    code = frame.f_code
    names = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    stores: list[tuple[int, Any]] = []
    last = frame.f_lineno
    for one in dis.get_instructions(code):
        line = one.positions.lineno if one.positions is not None else None
        if line is None:
            continue
        if one.opname.startswith(("STORE_FAST", "STORE_DEREF")):
            stores.append((line, one.argval))
        elif one.argval == "batches" and one.opname in ("LOAD_METHOD", "LOAD_ATTR"):
            last = max(last, line)  # between two epochs: what is bound before the batches counts as well
    for line, bound in stores:
        if line < last:
            names |= set(bound) if isinstance(bound, tuple) else {bound}
    return names


def _described(held: Mapping[str, Any], where: str, tracked: set[int], files: set[str]) -> dict[str, Variable]:
    return {
        f"{path} {where}": variable
        for name, value in held.items()
        if name != "_" and not name.startswith("__")
        for path, variable in _parts(name, value, tracked, files, 0)
    }


def _parts(path: str, value: Any, tracked: set[int], files: set[str], depth: int) -> Iterator[tuple[str, Variable]]:
    """The variable, or those that it is made of, each with its path (`meter.total`)."""
    if id(value) in tracked or depth > DEEPEST:
        return
    kind, content = _content(value)
    if kind is not None:
        text = _text(content)
        if text is not None:
            yield path, Variable(kind=kind, type=type(value).__name__, text=text)
            return
    below: Mapping[Any, Any] = {}
    if isinstance(value, DataLoader):
        below = {"dataset": value.dataset}
    elif isinstance(value, list | tuple | dict) and len(value) <= MOST_ITEMS:
        below = value if isinstance(value, dict) else dict(enumerate(value))
    elif _file(type(value)) in files:
        below = getattr(value, "__dict__", {})
    for name, part in below.items():
        yield from _parts(f"{path}.{name}", part, tracked, files, depth + 1)


def _content(value: Any) -> tuple[str | None, Any]:
    """What kind of variable it is, and what there is to compare; None for what only has parts, if that."""
    if isinstance(value, type | Run):
        return None, None
    if isinstance(value, torch.Generator | np.random.Generator):
        return "generator", lambda: capture({"it": value})["it"]
    if isinstance(value, random.Random):
        return "foreign generator", value.getstate
    if isinstance(value, np.random.RandomState):
        return "foreign generator", lambda: value.get_state(legacy=False)
    if isinstance(value, LRScheduler):
        return "scheduler", value.state_dict
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return "object", lambda: capture({"it": value})["it"]
    return "value", lambda: value


def _text(content: Any) -> str | None:
    """None for what has no place in a checkpoint."""
    try:
        value = content()
        if isinstance(value, int | float | str | None):
            return repr(value) if len(repr(value)) <= SHORT else _digest(repr(value))
        tree, tensors = encode(value)
    except Exception:  # noqa: BLE001  a user's state_dict may raise anything
        return None
    return _digest(dumps(tree), *tensors.values())


def _digest(text: str, *tensors: Tensor) -> str:
    found = blake3(text.encode())
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return f"blake3 {found.hexdigest(8)}"


def _file(cls: type[Any]) -> str | None:
    return getattr(sys.modules.get(cls.__module__), "__file__", None)
