"""Thaw: hyperparameter sweeps that survive.

What an experiment file imports, and a notebook. `Run`, `Checkpoint` and `Study` are loaded when they are first used,
so that the command line answers before torch is imported.
"""

from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckpointError, ThawError, UsageError
from pipeline.experiment import Experiment, Stage

if TYPE_CHECKING:
    from pipeline.checkpoint import Checkpoint
    from pipeline.results import Study
    from pipeline.run import Run

__all__ = ["Checkpoint", "CheckpointError", "Experiment", "Run", "Stage", "Study", "ThawError", "UsageError"]


def __getattr__(name: str) -> Any:
    if name == "Run":
        from pipeline.run import Run

        return Run
    if name == "Checkpoint":
        from pipeline.checkpoint import Checkpoint

        return Checkpoint
    if name == "Study":
        from pipeline.results import Study

        return Study
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
