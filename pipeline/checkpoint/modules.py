"""Modules: their names, what `state_dict` leaves out, and loading after a check."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pipeline.checkpoint.shards import parted_like
from pipeline.errors import EncodeError

_COMPILED = "_orig_mod"  # what torch.compile puts between a module's name and its own


def plain_name(name: str) -> str:
    """A parameter's name as it is without torch.compile."""
    if _COMPILED not in name:
        return name
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def plain(value: Any) -> Any:
    """The module that DistributedDataParallel is around, whose names are the same without it; or what was given."""
    inner = getattr(value, _COMPILED, value) if isinstance(value, nn.Module) else value
    return inner.module if isinstance(inner, DistributedDataParallel) else value


def module_state(name: str, module: nn.Module) -> dict[str, Any]:
    """`state_dict()` under plain names; tensors alias the live ones. Raises EncodeError for a lazy module."""
    state = {plain_name(key): value for key, value in module.state_dict().items()}
    for key, value in state.items():
        if type(value) is not Tensor and isinstance(value, UninitializedParameter | UninitializedBuffer):
            raise EncodeError(f"{name}.{key}: not initialised yet; run one batch through the model before track")
    return state


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by plain name, a shared one under its first."""
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def transient_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Buffers registered with `persistent=False`: not in `state_dict`, yet training may change them."""
    owners = _transient_owners(module)
    return {name: owner._buffers[leaf] for name, (owner, leaf) in owners.items()}


def set_transient_buffers(module: nn.Module, saved: Mapping[str, Tensor | None]) -> None:
    """Puts the saved ones back: in place where the shape is the same, else as a new tensor.

    They are often caches that grow with the data, so their shapes are nobody's mistake.
    """
    for name, (owner, leaf) in _transient_owners(module).items():
        if name not in saved:
            continue
        value, live = saved[name], owner._buffers[leaf]
        if value is not None and live is not None:
            if value.shape == live.shape and value.dtype == live.dtype:
                live.copy_(value)
                continue
            value = value.to(live.device, copy=True)
        elif value is not None:
            anchor = next(module.parameters(), value)
            value = value.to(anchor.device, copy=True)
        owner._buffers[leaf] = value


def _transient_owners(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    found = {}
    for prefix, owner in module.named_modules(remove_duplicate=True):
        for leaf in sorted(owner._non_persistent_buffers_set):
            found[plain_name(f"{prefix}.{leaf}" if prefix else leaf)] = (owner, leaf)
    return found


def selected(names: Mapping[str, Any], include: tuple[str, ...] | None, prefix: str) -> set[str]:
    """The names that match a pattern (`backbone.*`, or `model.backbone.*` with the object's name)."""
    if include is None:
        return set(names)
    return {
        name
        for name in names
        if any(fnmatchcase(name, pattern) or fnmatchcase(f"{prefix}.{name}", pattern) for pattern in include)
    }


def describe(value: Any) -> str:
    """`float32 [64, 10]`, or the type of what is no tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def is_extra(name: str) -> bool:
    """Whether the entry is what a module's `get_extra_state` gave: any value, not only a tensor."""
    return name.rpartition(".")[2] == "_extra_state"


def fits(name: str, live: Any, saved: Any) -> bool:
    """Whether `saved` loads into `live` without a cast or broadcast. Extra state is its module's affair."""
    if is_extra(name):
        return True
    return (
        isinstance(live, Tensor)
        and isinstance(saved, Tensor)
        and saved.shape == live.shape
        and saved.dtype == live.dtype
    )


def load_module(module: nn.Module, saved: Mapping[str, Any], chosen: set[str]) -> None:
    """Loads the `chosen` entries, which fit, in place on the module's own devices."""
    live = module.state_dict()
    state = type(live)()
    for name in live:
        if plain_name(name) in chosen:
            state[name] = parted_like(live[name], saved[plain_name(name)])
    # The live module's versions: without any, torch would migrate the state as an ancient one.
    state._metadata = getattr(live, "_metadata", None)  # type: ignore[attr-defined]
    with torch.no_grad():
        module.load_state_dict(state, strict=len(state) == len(live))
