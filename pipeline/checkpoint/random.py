"""Random state: the process's own generators, and those that a user tracks by name."""

import random
from array import array
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from pipeline.errors import CorruptCheckpoint

Generator: TypeAlias = torch.Generator | np.random.Generator

_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError)


def seed_all(seed: int) -> None:
    """Seeds python, NumPy's legacy generator, torch and every CUDA device. 0 <= seed < 2**64."""
    assert 0 <= seed < 2**64
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_random() -> dict[str, Any]:
    """The state of python, NumPy's legacy generator, torch, and each CUDA device, whether or not it was used so far."""
    version, words, gauss = random.getstate()
    return {
        # As an array: 625 words are one tensor, not 625 lines of JSON.
        "python": {"version": version, "words": np.frombuffer(array("I", words), np.uint32), "gauss": gauss},
        "numpy": _copied(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Puts back what `capture_random` gave, as the last step of a restore: loaders and constructors draw too.

    CUDA devices that are not there are left out. Raises CorruptCheckpoint if `state` is something else.
    """
    try:
        python = state["python"]
        words = tuple(python["words"].tolist())
        devices = state["cuda"] if torch.cuda.is_available() else []
        random.setstate((python["version"], words, python["gauss"]))
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"].cpu())
        for index, device_state in enumerate(devices[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), index)
    except _MALFORMED as error:
        raise CorruptCheckpoint(f"rng: not a random state: {error}") from error


def random_from(seed: int) -> dict[str, Any]:
    """What `capture_random` would give after `seed_all(seed)`."""
    before = capture_random()
    seed_all(seed)
    try:
        return capture_random()
    finally:
        restore_random(before)


def generators(objects: Mapping[str, object]) -> dict[str, Generator]:
    """Those of the tracked objects that are torch.Generators or NumPy Generators."""
    return {name: value for name, value in objects.items() if isinstance(value, torch.Generator | np.random.Generator)}


def capture_generators(objects: Mapping[str, object]) -> dict[str, Any]:
    """The state of each tracked generator, under its name."""
    return {name: capture_generator(generator) for name, generator in generators(objects).items()}


def restore_generators(objects: Mapping[str, object], states: Mapping[str, Any]) -> None:
    """Puts the tracked generators back, in place. Raises CorruptCheckpoint if a state does not fit."""
    for name, generator in generators(objects).items():
        if name not in states:
            raise CorruptCheckpoint(f"{name}: no state of this generator in the checkpoint")
        restore_generator(name, generator, states[name])


def capture_generator(generator: Generator) -> Any:
    """A copy of one generator's state: a tensor for torch's, the bit generator's dictionary for NumPy's."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return _copied(generator.bit_generator.state)


def restore_generator(name: str, generator: Generator, state: Any) -> None:
    """Puts one generator back, in place. Raises CorruptCheckpoint, under `name`, if `state` does not fit."""
    try:
        if isinstance(generator, torch.Generator):
            generator.set_state(state.cpu())
        else:
            generator.bit_generator.state = state
    except _MALFORMED as error:
        raise CorruptCheckpoint(f"{name}: not a state of this generator: {error}") from error


def generator_kind(generator: Generator) -> str:
    """What must be equal for a state to fit: `torch.Generator cpu`, `numpy.Generator PCG64`."""
    if isinstance(generator, torch.Generator):
        return f"torch.Generator {generator.device.type}"
    return f"numpy.Generator {type(generator.bit_generator).__name__}"


def _copied(state: Any) -> Any:
    """NumPy gives its arrays as they are, or the same ones again."""
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    return state.copy() if isinstance(state, np.ndarray) else state
