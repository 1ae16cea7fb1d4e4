"""How others take checkpoints, each in the way its documentation recommends."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from mlflow import MlflowClient
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.optim import Optimizer

from benchmarks.method import Method, Times, timed
from benchmarks.training import Training

LOGGED = "torch.save + log_artifact"


def peers(run_id: str, stack: ExitStack, device: str) -> tuple[list[Method], list[str]]:
    """The methods, and why some are missing. What they hold is given back by `stack`."""
    found = [_logged(run_id), Method(name="torch.save", take=_save, is_synced=False)]
    found += [Method(name="safetensors", take=_save_file, is_synced=False)]
    found += [_dcp_thread(stack, device), _dcp_process(stack, device)]
    try:
        return [*found, _lightning(stack)], []
    except ModuleNotFoundError as error:
        return found, [f"Lightning's AsyncCheckpointIO is left out: {error}; see requirements-bench.txt"]


def save(training: Training, path: Path) -> None:
    """The usual way."""
    torch.save(training.state(), path)


def load(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """The usual way back, as far as it is safe."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


def _save(training: Training, folder: Path) -> Times:
    return timed(lambda: save(training, folder / "checkpoint.pt"))


def _save_file(training: Training, folder: Path) -> Times:
    return timed(lambda: save_file(training.tensors(), folder / "checkpoint.safetensors"))


def _logged(run_id: str) -> Method:
    """Two copies on the disk, one of them in the run's artifacts: what recipes for MLflow do."""
    client = MlflowClient()

    def log(training: Training, path: Path) -> None:
        save(training, path)
        client.log_artifact(run_id, str(path), "checkpoints")

    def take(training: Training, folder: Path) -> Times:
        times = timed(lambda: log(training, folder / "checkpoint.pt"))
        Path(client.get_run(run_id).info.artifact_uri, "checkpoints", "checkpoint.pt").unlink()
        return times

    return Method(name=LOGGED, take=take, is_synced=False)


def _dcp_thread(stack: ExitStack, device: str) -> Method:
    return _dcp("dcp.async_save, thread", AsyncCheckpointerType.THREAD, stack, device)


def _dcp_process(stack: ExitStack, device: str) -> Method:
    """Its process finds the training's by a process group, even where there is one rank alone."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    stack.callback(dist.destroy_process_group)
    return _dcp("dcp.async_save, process", AsyncCheckpointerType.PROCESS, stack, device)


def _dcp(name: str, kind: AsyncCheckpointerType, stack: ExitStack, device: str) -> Method:
    """With a stager that keeps its buffers; pinned memory and streams need an accelerator."""
    on_cuda = device != "cpu"
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=on_cuda,
            use_shared_memory=kind is AsyncCheckpointerType.PROCESS,
            use_async_staging=False,  # else who trains would have to wait for it before the next step
            use_non_blocking_copy=on_cuda,
        )
    )
    stack.callback(stager.close)

    def begin(training: Training, folder: Path) -> Any:
        upload: Any = dcp.async_save(
            training.state(),
            checkpoint_id=folder / "checkpoint",
            async_checkpointer_type=kind,
            async_stager=stager,
            no_dist=True,
        )
        return upload.result

    return Method(name=name, take=lambda training, folder: timed(lambda: begin(training, folder)), is_synced=True)


def _lightning(stack: ExitStack) -> Method:
    """Raises ModuleNotFoundError where Lightning is not installed."""
    from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

    plugin: Any = AsyncCheckpointIO(TorchCheckpointIO())
    stack.callback(plugin.teardown)

    def begin(training: Training, folder: Path) -> Any:
        plugin.save_checkpoint(training.state(), folder / "checkpoint.ckpt")
        return plugin.teardown

    return Method(
        name="Lightning AsyncCheckpointIO",
        take=lambda training, folder: timed(lambda: begin(training, folder)),
        is_synced=False,
    )
