"""Tracked objects <-> one tree of state, a copy in both directions.

Each object has its entry under the name it is tracked by. Three more are ours: `kinds` says what each name
is, `grad` has the gradients that are pending, `transient` the buffers that `state_dict` leaves out.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline.checkpoint import modules as module_states
from pipeline.checkpoint import optimizers as optimizer_states
from pipeline.checkpoint.codec import encode
from pipeline.checkpoint.random import capture_generator, generator_kind, restore_generator
from pipeline.checkpoint.shards import is_sharded, own, parted_like
from pipeline.errors import CorruptCheckpoint, EncodeError, MismatchError, UsageError

RESERVED = frozenset({"rng", "loop", "loader", "kinds", "grad", "transient", "ranks"})
CopyTensor = Callable[[Tensor], Tensor]
_ATOMS = frozenset({type(None), bool, int, float, str})  # most of what there is
_SHOWN = 10  # entries of each sort that a MismatchError lists


def check_names(objects: Mapping[str, object]) -> None:
    """Raises UsageError for a name that is none, or an object that cannot be tracked."""
    for name, value in objects.items():
        if not name.isidentifier():
            raise UsageError(f"track: {name!r} is no name; use letters, digits and underscores")
        if name in RESERVED:
            raise UsageError(f"track: the name {name!r} is kept for the checkpoint's own; use another")
        if isinstance(value, torch.Generator | np.random.Generator):
            continue
        if not all(callable(getattr(value, part, None)) for part in ("state_dict", "load_state_dict")):
            raise UsageError(
                f"track: {name} is a {type(value).__name__}, without state_dict and load_state_dict; "
                "track what has both, or a torch.Generator or numpy.random.Generator"
            )


class Names:
    """The modules among the tracked objects and their parameters, as they are now.

    Walking through a module takes long, beside what else a snapshot of a small one takes: it is done once.

    Attributes:
        modules: by the name they are tracked by.
        parameters: of each module, by plain name; one that is shared, under its first.
    """

    def __init__(self, objects: Mapping[str, object]) -> None:
        self.modules = {name: value for name, value in objects.items() if isinstance(value, nn.Module)}
        self.parameters = {name: module_states.parameters(module) for name, module in self.modules.items()}

    def frozen(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Those that want no gradient, so that training is not expected to change them: owner, name, parameter."""
        for owner, named in self.parameters.items():
            for name, parameter in named.items():
                if not parameter.requires_grad:
                    yield owner, name, parameter


def check_encodable(objects: Mapping[str, object]) -> None:
    """Raises EncodeError, naming the path, if a state holds what no checkpoint can; nothing is copied."""
    names = Names(objects)
    encode({name: _copied(name, _live_state(name, value, names), own) for name, value in objects.items()})


def capture(
    objects: Mapping[str, object], copy: CopyTensor | None = None, names: Names | None = None
) -> dict[str, Any]:
    """The state of every object, which aliases nothing live.

    `copy` copies a tensor; without it, tensors stay on their devices, sharded ones as they are. It is asked in the same
    order each time.
    `names` are those of the objects, where they are known already.
    Raises EncodeError for a lazy module that has seen no batch yet.
    """
    copy = copy or _clone
    names = names or Names(objects)
    state = {name: _copied(name, _live_state(name, value, names), copy) for name, value in objects.items()}
    state["kinds"] = {name: kind_of(value) for name, value in objects.items()}
    state["grad"] = _copy(_gradients(objects, names), copy)
    transient = {name: module_states.transient_buffers(module) for name, module in names.modules.items()}
    state["transient"] = _copy({name: buffers for name, buffers in transient.items() if buffers}, copy)
    return state


def sharded(objects: Mapping[str, object], names: Names) -> list[Tensor]:
    """The sharded tensors in the order in which `capture` comes to them; all live.

    They are a module's, or what an optimizer keeps of those, unless an object has a state of its own kind.
    """
    found: list[Tensor] = []

    def noted(tensor: Tensor) -> Tensor:
        if is_sharded(tensor):
            found.append(tensor)
        return tensor

    parameters = (parameter for named in names.parameters.values() for parameter in named.values())
    if any(map(is_sharded, parameters)) or any(kind_of(value) == "object" for value in objects.values()):
        capture(objects, noted, names)
    return found


def pending_gradients(objects: Mapping[str, object]) -> dict[str, dict[str, Tensor]]:
    """The gradients that this process alone may have, by object and name: those that are not sharded."""
    found = _gradients(objects, Names(objects))
    return {owner: {name: one for name, one in named.items() if not is_sharded(one)} for owner, named in found.items()}


def restore(objects: Mapping[str, object], state: Mapping[str, Any], include: tuple[str, ...] | None = None) -> None:
    """Loads `state` into the objects, in place, on their own devices. What only `state` has is left out.

    `include` takes the entries of modules that match a pattern, and nothing else of them.
    Raises MismatchError, with the objects as they were, if something is missing, unexpected or of another
    shape, dtype or kind, or if an object refuses its state.
    `state` stays the caller's: nothing live aliases it afterwards.
    """
    if include is not None:
        state = {name: value for name, value in state.items() if name not in ("grad", "transient")}
    names = Names(objects)
    chosen = _check(objects, state, names, include)
    before = capture(objects)
    try:
        _load(objects, state, names, chosen)
    except Exception as error:  # whatever a user's load_state_dict raises
        _load(objects, before, names, {name: set(before[name]) for name in names.modules})
        if isinstance(error, CorruptCheckpoint):
            raise
        raise MismatchError(f"{type(error).__name__} while the state was loaded: {error}") from error


def kind_of(value: object) -> str:
    """What has to be the same for a state to fit: `module`, `optimizer AdamW`, `scheduler StepLR`, ..."""
    if isinstance(value, nn.Module):
        return "module"
    if isinstance(value, Optimizer):
        return f"optimizer {type(value).__name__}"
    if isinstance(value, LRScheduler):
        return f"scheduler {type(value).__name__}"
    if isinstance(value, torch.Generator | np.random.Generator):
        return generator_kind(value)
    return "object"


def _live_state(name: str, value: Any, names: Names) -> Any:
    if isinstance(value, nn.Module):
        return module_states.module_state(name, value)
    if isinstance(value, Optimizer):
        return optimizer_states.optimizer_state(name, value, names.parameters)
    if isinstance(value, torch.Generator | np.random.Generator):
        return capture_generator(value)
    return value.state_dict()


def _parameters(objects: Mapping[str, object], names: Names) -> dict[str, dict[str, Tensor]]:
    """The parameters that can have a gradient, by object and name; those of modules once, under the first."""
    found: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    for owner in sorted(objects, key=lambda name: (not isinstance(objects[name], nn.Module), name)):
        value = objects[owner]
        named = names.parameters[owner] if isinstance(value, nn.Module) else _indexed(value)
        found[owner] = {name: value for name, value in named.items() if id(value) not in seen}
        seen.update(map(id, named.values()))
    return found


def _indexed(value: object) -> Mapping[str, Tensor]:
    """The parameters of an optimizer."""
    if not isinstance(value, Optimizer):
        return {}
    return {str(index): parameter for index, parameter in enumerate(optimizer_states.parameters(value))}


def _gradients(objects: Mapping[str, object], names: Names) -> dict[str, dict[str, Tensor]]:
    candidates = (*names.parameters.values(), *map(_indexed, objects.values()))
    if all(parameter.grad is None for named in candidates for parameter in named.values()):
        return {}
    pending = {
        owner: {name: value.grad for name, value in named.items() if value.grad is not None}
        for owner, named in _parameters(objects, names).items()
    }
    return {owner: gradients for owner, gradients in pending.items() if gradients}


def _check(
    objects: Mapping[str, object],
    state: Mapping[str, Any],
    names: Names,
    include: tuple[str, ...] | None,
) -> dict[str, set[str]]:
    """The entries to load of each module. Raises MismatchError, which lists all that does not fit."""
    missing: list[str] = []
    unexpected: list[str] = []
    differing: list[str] = []
    chosen: dict[str, set[str]] = {}
    for name, value in objects.items():
        if name not in state:
            missing.append(name)
            continue
        found, kind = state.get("kinds", {}).get(name), kind_of(value)
        if found is not None and found != kind:
            differing.append(f"{name}: expected {kind}, found {found}")
        elif isinstance(value, Optimizer):
            differing.extend(optimizer_states.difference(name, value, state[name], names.parameters))
        elif isinstance(value, nn.Module):
            live, saved = module_states.module_state(name, value), state[name]
            mine = module_states.selected(live, include, name)
            theirs = module_states.selected(saved, include, name)
            chosen[name] = mine
            if include is not None and not mine | theirs:
                missing.append(f"{name}: nothing matches {', '.join(include)}")
            missing += [f"{name}.{key}: {module_states.describe(live[key])}" for key in sorted(mine - theirs)]
            unexpected += [f"{name}.{key}: {module_states.describe(saved[key])}" for key in sorted(theirs - mine)]
            for key in sorted(mine & theirs):
                if not module_states.fits(key, live[key], saved[key]):
                    expected, got = module_states.describe(live[key]), module_states.describe(saved[key])
                    differing.append(f"{name}.{key}: expected {expected}, found {got}")
    _raise_if_any(missing=missing, unexpected=unexpected, differing=differing)
    return chosen


def _raise_if_any(**sorts: list[str]) -> None:
    parts = []
    for sort, entries in sorts.items():
        more = f", and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
        if entries:
            parts.append(f"{sort}: {', '.join(entries[:_SHOWN])}{more}")
    if parts:
        raise MismatchError(f"the checkpoint does not fit the tracked objects; {'; '.join(parts)}")


def _load(
    objects: Mapping[str, object],
    state: Mapping[str, Any],
    names: Names,
    chosen: Mapping[str, set[str]],
) -> None:
    for name, value in objects.items():
        if isinstance(value, nn.Module):
            # Tensors are copied into the live ones; what set_extra_state is given, it may keep.
            saved = {key: _copy(item) if module_states.is_extra(key) else item for key, item in state[name].items()}
            module_states.load_module(value, saved, chosen[name])
        elif isinstance(value, Optimizer):
            saved = optimizer_states.parted(value, state[name], names.parameters)
            optimizer_states.load_optimizer(value, _copy(saved, _to_cpu), names.parameters)
        elif isinstance(value, torch.Generator | np.random.Generator):
            restore_generator(name, value, state[name])
        else:
            value.load_state_dict(_copy(state[name]))  # type: ignore[attr-defined]
    for name, buffers in state.get("transient", {}).items():
        if name in names.modules:
            module_states.set_transient_buffers(names.modules[name], buffers)
    if "grad" in state:
        _set_gradients(objects, state["grad"], names)


def _set_gradients(objects: Mapping[str, object], saved: Mapping[str, Mapping[str, Tensor]], names: Names) -> None:
    for owner, named in _parameters(objects, names).items():
        for name, parameter in named.items():
            gradient = parted_like(parameter, saved.get(owner, {}).get(name))
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)


def _clone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _to_cpu(tensor: Tensor) -> Tensor:
    """Where torch's optimizers want their step counters; the rest they move to the parameters themselves."""
    return tensor.detach().clone() if is_sharded(tensor) else tensor.detach().to("cpu", copy=True)


def _copied(name: str, value: Any, copy: CopyTensor) -> Any:
    try:
        return _copy(value, copy)
    except RecursionError as error:
        raise EncodeError(f"{name}: its state_dict holds itself, or is nested too deep") from error


def _copy(value: Any, tensor: CopyTensor = _clone) -> Any:
    """A copy down to tensors and arrays. What the codec does not know stays, for the codec to refuse."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, Tensor):
        return tensor(value)
    if kind is dict:
        return {key: _copy(item, tensor) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.copy()
    if kind is OrderedDict:
        return OrderedDict((key, _copy(item, tensor)) for key, item in value.items())
    if kind is Counter:
        return value.copy()
    if kind is deque:
        return deque((_copy(item, tensor) for item in value), value.maxlen)
    if kind in (list, tuple, set, frozenset):
        return kind(_copy(item, tensor) for item in value)
    return value
