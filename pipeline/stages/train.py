"""The training stage: runs the user's loop over one segment."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.checkpoint import Schedule
from pipeline.checkpoint.pace import Every
from pipeline.experiment import Experiment
from pipeline.ranks import Ranks
from pipeline.run import Run
from pipeline.segment import Segment, Stopped

_NO_MEMORY = "can't allocate memory"  # in the words of torch's allocator for the CPU, which raises a RuntimeError


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory, of the machine or of its accelerator."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY in str(error)
    )


def use_threads(threads: int) -> None:
    """Sets the number of torch's threads in this process: another number changes the bits."""
    torch.set_num_threads(threads)


def train(
    experiment: Experiment,
    config: Any,
    *,
    segment: Segment,
    seed: int,
    max_epochs: int,
    threads: int,
    data: Mapping[str, Any],
    origin: Mapping[str, Any],
    checkpoint_every_s: Every,
    schedule: Schedule | None = None,
    ranks: Ranks | None = None,
) -> str:
    """Trains one configuration from where it stands until it is complete or stopped.

    `max_epochs` is the budget of an experiment of one stage; several have their own. `threads` is the number of
    torch's threads; another number changes the bits. `origin` goes into each checkpoint: digests of code and data.
    `schedule` says what the learning rate's does if the checkpoint was taken under a smaller budget. `ranks` are the
    processes of the trial, each of which calls this, if they are several.

    Returns why training ended: `complete`, or what the segment stopped it for.
    """
    use_threads(threads)
    # Else no two trainings on a GPU are the same. Of operators beyond cuDNN's and cuBLAS's the experiment decides.
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    stages = experiment.stages
    try:
        resumed = segment.resume()
        first = resumed[0].position.stage if resumed is not None else 0
        for number, stage in enumerate(stages[first:], start=first):
            run = Run(
                segment=segment,
                experiment=experiment,
                seed=seed,
                stage=number,
                max_epochs=stage.max_epochs if len(stages) > 1 else max_epochs,
                data=data,
                origin=origin,
                resumed=resumed,
                checkpoint_every_s=checkpoint_every_s,
                schedule=schedule,
                ranks=ranks,
            )
            resumed = None  # the run has it as long as it needs it
            try:
                if not run.done:
                    stage.train(config, run)
                if run.stopped is not None:
                    raise run.stopped
                if number + 1 < len(stages):
                    resumed = run.hand_over()
                else:
                    run.finish()
            finally:
                run.close()
    except Stopped as stop:
        return stop.ended
    return "complete"
