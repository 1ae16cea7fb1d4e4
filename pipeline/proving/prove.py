"""Trains a user's experiment undisturbed, and again while killing it, and compares the two bit for bit."""

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Position
from pipeline.errors import UsageError
from pipeline.experiment import ExperimentFile, seed_for, to_params
from pipeline.proving import compare
from pipeline.proving.compare import Difference
from pipeline.proving.hints import explain, suspects
from pipeline.proving.plan import plan_kills
from pipeline.proving.trainer import Task
from pipeline.proving.trainings import Strike, Trainings

log = logging.getLogger("pipeline")
FEW_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What came of it.

    Attributes:
        file: the experiment's name.
        epochs, batches: of the undisturbed run.
        compared: how many entries of each kind the last checkpoints have.
        first: of each kind, the first entry that differs in time; none if all agree.
        resumed: where the process had begun in which they part; None for the start.
        last: of each kind, the first entry that differs in the last checkpoints.
        hints: what that usually means.
        folder: where both lie, if they differ.
    """

    file: str
    epochs: int
    batches: int
    stages: bool
    strikes: tuple[Strike, ...]
    compared: dict[str, int]
    first: tuple[Difference, ...] = ()
    resumed: Position | None = None
    last: tuple[Difference, ...] = ()
    hints: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def agrees(self) -> bool:
        return not self.first and not self.last


def prove(
    file: ExperimentFile,
    config: Any,
    data: Any,
    context: ForkServerContext,
    *,
    kills: int,
    max_epochs: int | None,
    seed: int,
    show_traceback: bool,
) -> Proof:
    """Neither MLflow nor a study learns of it; what it writes is gone afterwards, unless the two differ.

    Raises:
        UsageError: there is no place to kill it at.
        ThawError: the experiment itself fails.
    """
    folder = Path(tempfile.mkdtemp(prefix="thaw-prove-"))
    keep = False
    try:
        task = Task(
            file=file.path,
            scratch=folder,
            name="data",
            number=None,
            config=to_params(config),
            data=None if data is None else to_params(data),
            max_epochs=max_epochs or min(FEW_EPOCHS, max(stage.max_epochs for stage in file.experiment.stages)),
            seed=seed_for(seed, 0),  # as configuration #00 of a study
            threads=max(1, len(os.sched_getaffinity(0))),
        )
        trainings = Trainings(task, context, show_traceback=show_traceback)
        if file.experiment.prepare is not None:
            trainings.prepare()
        proof = _compared(file, trainings, kills, seed)
        keep = not proof.agrees
        return replace(proof, folder=folder) if keep else proof
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _compared(file: ExperimentFile, trainings: Trainings, kills: int, seed: int) -> Proof:
    stages = len(file.experiment.stages) > 1
    undisturbed = trainings.undisturbed("undisturbed")
    plan = plan_kills(list(undisturbed), kills, seed)
    if not plan:
        raise UsageError(f"{file.path.name}: one epoch without run.batches has no place to be killed at; add epochs")
    log.info("undisturbed: %d moments to be killed at; seed %d chooses %d", len(undisturbed) - 1, seed, len(plan))
    stretches = trainings.killed("killed", plan, stages=stages)
    left, right = (compare.last_checkpoint(trainings.checkpoints(name)) for name in ("undisturbed", "killed"))
    moments = [moment for stretch in stretches for moment in stretch.moments]
    first = compare.first_differences(undisturbed, moments)
    proof = Proof(
        file=file.path.name,
        epochs=len(left[0].history),
        batches=left[0].step,
        stages=stages,
        strikes=tuple(stretch.strike for stretch in stretches if stretch.strike is not None),
        compared=compare.count(left),
        first=tuple(first),
        resumed=next((s.begun for s in stretches if compare.first_differences(undisturbed, s.moments)), None),
        last=tuple(compare.final_differences(left, right)),
    )
    if proof.agrees:
        return proof
    log.info("they part; once more undisturbed, to see whether this training is the same twice")
    looked_at = [moment for moment in moments if moment.variables is not None]
    again = trainings.undisturbed("again", look_at=tuple(moment.at for moment in looked_at))
    repeats = not compare.first_differences(undisturbed, again.values())
    found = suspects(again.values(), looked_at)
    return replace(proof, hints=tuple(explain(first, repeats=repeats, found=found, sources=file.sources)))
