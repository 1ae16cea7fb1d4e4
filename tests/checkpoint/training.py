"""A small training that can be cut in two: the halves, joined by files, must have the bits of the whole."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import (
    Manifest,
    Position,
    capture,
    capture_random,
    check_names,
    read_manifest,
    read_state,
    restore,
    restore_random,
    save,
    seed_all,
)
from tests.checkpoint.comparing import assert_same

Objects = dict[str, Any]


def through_files(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` as it is after it was written and read."""
    folder = folder / f"checkpoint-{len(list(folder.iterdir()))}"
    save(folder, state, Manifest(position=Position(0, 1, 0), step=3, trial=1))
    return read_state(folder, read_manifest(folder / "manifest.json"))


def files_of(folder: Path) -> Callable[[Path], None]:
    """For `Store.put`: puts copies of a folder's files where it is told to."""

    def write(target: Path) -> None:
        shutil.copytree(folder, target, dirs_exist_ok=True)

    return write


def small_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2)
    ).to(dtype)


def step(objects: Objects) -> None:
    """One optimizer step on random data, and one of the scheduler, if there is one."""
    model, optimizer = objects["model"], objects["optimizer"]
    dtype = next(model.parameters()).dtype
    x = torch.randn(16, 4).to(dtype)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    scheduler = objects.get("scheduler")
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss.item())
    elif scheduler is not None:
        scheduler.step()


def assert_resumes_exactly(
    folder: Path,
    build: Callable[[], Objects],
    train: Callable[[Objects], None] = step,
    before: int = 3,
    after: int = 4,
) -> dict[str, Any]:
    """Trains once through, and once with a checkpoint, fresh objects and other seeds in between.

    The states at the end, random state included, must agree to the bit. Returns the checkpoint's state.
    """
    seed_all(1)
    whole = build()
    check_names(whole)
    for _ in range(before):
        train(whole)
    state = through_files(folder, {**capture(whole), "rng": capture_random()})
    for _ in range(after):
        train(whole)
    expected = {**capture(whole), "rng": capture_random()}

    seed_all(2)  # fresh objects start from other weights
    resumed = build()
    restore(resumed, state)
    restore_random(state["rng"])
    # What was loaded is what was captured, before a step could hide a difference.
    assert_same({**capture(resumed), "rng": capture_random()}, {**state})
    for _ in range(after):
        train(resumed)
    assert_same({**capture(resumed), "rng": capture_random()}, expected)
    return state
