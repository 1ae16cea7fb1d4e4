"""Optimizers: state under the names of parameters, so that reordered parameters are found, never swapped.

torch numbers parameters in the order they were given: two of equal shape that trade places would load
silently.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pipeline.checkpoint.shards import parted_like
from pipeline.errors import EncodeError

Named = Mapping[str, Mapping[str, nn.Parameter]]  # the parameters of each tracked module, by name


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the optimizer's own order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def names_of(optimizer: Optimizer, named: Named) -> list[str | int]:
    """A name for each parameter, in the optimizer's order; the index of one that no tracked module owns.

    The name inside the module where one tracked module owns them all, else `module.name`.
    Between several owners the alphabet decides, not the order of `track`'s arguments.
    """
    owned = {owner: {id(value): name for name, value in names.items()} for owner, names in sorted(named.items())}
    wanted = [id(parameter) for parameter in parameters(optimizer)]
    for names in owned.values():
        if all(key in names for key in wanted):
            return [names[key] for key in wanted]
    result: list[str | int] = []
    for index, key in enumerate(wanted):
        owner = next((owner for owner, names in owned.items() if key in names), None)
        result.append(index if owner is None else f"{owner}.{owned[owner][key]}")
    return result


def optimizer_state(where: str, optimizer: Optimizer, named: Named) -> dict[str, Any]:
    """`state_dict()` with names for indices; tensors alias the live ones.

    Raises EncodeError where the optimizer's own extra state takes a parameter's name.
    """
    names = names_of(optimizer, named)
    state = dict(optimizer.state_dict())
    entries: dict[Any, Any] = {}
    for key, value in state["state"].items():
        name = names[key] if type(key) is int and key < len(names) else key
        if name in entries:
            raise EncodeError(f"{where}.state.{name}: the optimizer keeps two states under this name")
        entries[name] = value
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in state["param_groups"]]
    return {**state, "state": entries, "param_groups": groups}


def difference(where: str, optimizer: Optimizer, saved: Any, named: Named) -> Iterator[str]:
    """Why `saved` does not fit, one line each: groups, parameters, and the order where it counts."""
    expected = _group_names(optimizer, names_of(optimizer, named))
    try:
        found = [list(group["params"]) for group in saved["param_groups"]]
        entries = set(saved["state"])
    except (KeyError, TypeError):
        yield f"{where}: expected an optimizer's state, found something else"
        return
    if len(found) != len(expected):
        yield f"{where}.param_groups: expected {len(expected)} groups, found {len(found)}"
        return
    for index, (live, names) in enumerate(zip(expected, found, strict=True)):
        place = f"{where}.param_groups.{index}"
        if set(live) != set(names) or len(live) != len(names):
            yield from (f"{place}: expected parameter {name}, not found" for name in live if name not in names)
            yield from (f"{place}: found parameter {name}, not expected" for name in names if name not in live)
        elif live != names and not _order_is_free(optimizer):
            kind = type(optimizer).__name__
            yield f"{place}: {kind} needs the same order of parameters; expected {live}, found {names}"
    unknown = entries - {name for names in found for name in names}
    if _is_torchs(optimizer):  # others may keep state that belongs to no parameter
        yield from (f"{where}.state: found {name}, not expected" for name in sorted(map(str, unknown)))


def parted(optimizer: Optimizer, saved: Mapping[str, Any], named: Named) -> dict[str, Any]:
    """`saved` with the state of sharded parameters as they are sharded."""
    live = dict(zip(names_of(optimizer, named), parameters(optimizer), strict=True))
    state = {
        name: {key: parted_like(live[name], value) for key, value in entry.items()}
        if name in live and isinstance(entry, Mapping)
        else entry
        for name, entry in saved["state"].items()
    }
    return {**saved, "state": state}


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], named: Named) -> None:
    """Loads what `difference` found nothing against. `saved` is the optimizer's to keep afterwards.

    Saved dtypes of the state are put back: torch casts it to the parameter's, which turns the float32 state
    that NAdam and ASGD keep for bfloat16 parameters into bfloat16.
    Hyperparameters that are tensors stay the live tensors, with the saved values.
    """
    names = names_of(optimizer, named)
    index_of = {name: index for index, name in enumerate(names)}
    live_groups = list(optimizer.param_groups)
    state = {index_of.get(name, name): value for name, value in saved["state"].items()}
    groups = []
    for group, live in zip(saved["param_groups"], _group_names(optimizer, names), strict=True):
        groups.append({**group, "params": [index_of[name] for name in live]})
    optimizer.load_state_dict({**saved, "state": state, "param_groups": groups})
    for index, parameter in enumerate(parameters(optimizer)):
        if index in state:
            optimizer.state[parameter] = _with_dtypes(optimizer.state[parameter], state[index])
    for live_group, group in zip(live_groups, optimizer.param_groups, strict=True):
        for key, value in group.items():
            kept = live_group.get(key)
            if isinstance(value, Tensor) and isinstance(kept, Tensor) and key != "params":
                group[key] = kept.copy_(value) if _same(kept, value) else value.to(kept.device)


def _group_names(optimizer: Optimizer, names: list[str | int]) -> list[list[str | int]]:
    remaining = iter(names)
    return [[next(remaining) for _ in group["params"]] for group in optimizer.param_groups]


def _is_torchs(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.optim.")


def _order_is_free(optimizer: Optimizer) -> bool:
    """torch's own keep state by parameter, all but LBFGS, which flattens them; of others nothing is known."""
    return _is_torchs(optimizer) and not isinstance(optimizer, LBFGS)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _with_dtypes(loaded: Any, saved: Any) -> Any:
    """`loaded` with the dtypes of `saved`, bits included, on the devices where torch put it."""
    if isinstance(saved, Tensor) and isinstance(loaded, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, Mapping) and isinstance(loaded, dict):
        return {key: _with_dtypes(value, saved.get(key)) for key, value in loaded.items()}
    if isinstance(saved, list | tuple) and isinstance(loaded, list | tuple) and len(saved) == len(loaded):
        return type(loaded)(_with_dtypes(*pair) for pair in zip(loaded, saved, strict=True))
    return loaded
