"""The same exactness on a CUDA device, and checkpoints that go from there to a CPU and back."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.checkpoint import (
    FolderStore,
    Manifest,
    Position,
    Snapshots,
    capture,
    capture_random,
    load,
    restore,
    restore_random,
    seed_all,
)
from pipeline.segment import Snapshot, put
from tests.checkpoint.comparing import assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
WIDTH = 600


def build(device: str, optimizer: str = "AdamW", **arguments: Any) -> dict[str, Any]:
    seed_all(1)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.2), nn.Linear(WIDTH, 2)).to(
        device
    )
    return {"model": model, "optimizer": getattr(torch.optim, optimizer)(model.parameters(), **arguments)}


def step(objects: dict[str, Any]) -> None:
    model = objects["model"]
    model(torch.randn(32, WIDTH, device=next(model.parameters()).device)).square().mean().backward()
    objects["optimizer"].step()
    objects["optimizer"].zero_grad()


@pytest.mark.parametrize("arguments", [{}, {"fused": True}, {"capturable": True}], ids=["plain", "fused", "capturable"])
def test_a_training_on_a_gpu_resumes_exactly_from_a_snapshot_taken_beside_it(tmp_path, arguments):
    store, objects = FolderStore(tmp_path / "store"), build("cuda", **arguments)
    snapshots = Snapshots(objects)
    for time in ("first", "second"):  # the first shows that the second may be copied beside training
        step(objects)
        taken = snapshots.take()
        state = {**taken.state, "rng": capture_random()}
        expected = capture(objects)
        for _ in range(3):
            step(objects)
        taken.wait()
        assert_same({n: taken.state[n] for n in objects}, _on_cpu({n: expected[n] for n in objects}))
        if time == "first":
            taken.release()
    manifest = Manifest(position=Position(0, 1, 0), step=1, trial=0)
    put(store, Snapshot(manifest=manifest, state=state, taken=taken), None)
    whole = {**capture(objects), "rng": capture_random()}
    snapshots.close()

    fresh = build("cuda", **arguments)
    _, read = load(store, manifest.name)
    restore(fresh, read)
    restore_random(read["rng"])
    for _ in range(3):
        step(fresh)
    assert_same({**capture(fresh), "rng": capture_random()}, whole)


@pytest.mark.parametrize(("source", "target"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_of_one_device_is_loaded_on_another(tmp_path, source, target):
    store, objects = FolderStore(tmp_path / "store"), build(source)
    step(objects)
    snapshots = Snapshots(objects)
    taken = snapshots.take()
    taken.wait()
    manifest = Manifest(position=Position(0, 1, 0), step=1, trial=0)
    put(store, Snapshot(manifest=manifest, state=taken.state, taken=taken), None)
    snapshots.close()
    fresh = build(target)
    restore(fresh, load(store, manifest.name)[1])
    assert_same(_on_cpu(capture(fresh)["model"]), _on_cpu(capture(objects)["model"]))
    step(fresh)  # optimizer state lies where it must


def test_a_device_that_was_not_used_yet_has_a_random_state_too():
    code = "from pipeline.checkpoint import capture_random, seed_all; seed_all(1); print(len(capture_random()['cuda']))"
    found = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert int(found) == torch.cuda.device_count()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return type(value)((name, _on_cpu(item)) for name, item in value.items())
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value
