"""What each command can be told: its flags, with their types, defaults and help texts."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.checkpoint import Schedule
from pipeline.checkpoint.environment import visible_devices
from pipeline.checkpoint.pace import Every
from pipeline.engines.ray_tasks import Resources
from pipeline.errors import UsageError
from pipeline.options import REPEATABLE, seconds
from pipeline.session import How, Reopening
from pipeline.sweep.segment import Keeping


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What every command prints.

    Attributes:
        quiet: print no progress, only warnings, errors and the result
        json: print the result as one JSON document
        traceback: show where in the code an error arose
    """

    quiet: bool = False
    json: bool = False
    traceback: bool = False


@dataclass(frozen=True, kw_only=True)
class CommonOptions(OutputOptions):
    """Options of every command that knows studies.

    Attributes:
        storage: URL of the study database; PIPELINE_STORAGE, else optuna.db beside mlflow.db
    """

    storage: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkOptions(CommonOptions):
    """Options of the commands that train.

    Attributes:
        workers: processes that train at the same time; 0 leaves all of it to `worker`, of this machine or others
        timeout: stop resumably after this time, for instance 90s, 30m or 2h
        max_total_epochs: pause when all configurations together have had so many epochs, in this command and before
        checkpoint_every_s: seconds of training between checkpoints inside an epoch; auto: as many as 1% of it allows
        keep_gb: delete checkpoints of the study that are needed least, until it has no more GB than this
        outage_s: how long a store that fails is tried again before training stops, resumably
        grace_s: seconds that a stop may take for the checkpoint, a few less than who stops it waits; any by default
        max_retries: how often in a row a configuration may be lost, or raise, without a new checkpoint in between; by
            default what the study was told last, else 3
        hang_timeout_s: how long training may stand still until it is killed; by default 10 epochs, at least 60 s
        workers_per_gpu: how many workers share a GPU before the next one gets some
        processes_per_trial: how many processes train one configuration together, each with a GPU of its own if there
            are any; by default as many as before in this study, at first 1
        report_every_s: seconds between two refreshes, at least, of what MLflow shows of the study; 0 for none, and
            PIPELINE_REPORT_EVERY_S, else 10, by default
        system_metrics: log CPU, memory, disk and GPU of each segment as well, sampled by MLflow
    """

    workers: int = 2
    timeout: str | None = None
    max_total_epochs: int | None = None
    checkpoint_every_s: Every = 60.0
    keep_gb: float | None = None
    outage_s: float = 60.0
    grace_s: float | None = None
    max_retries: int | None = None
    hang_timeout_s: float | None = None
    workers_per_gpu: int = 1
    processes_per_trial: int | None = None
    report_every_s: float = field(default_factory=lambda: float(os.environ.get("PIPELINE_REPORT_EVERY_S", "10")))
    system_metrics: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers}: expected at least 0")
        if self.checkpoint_every_s != "auto" and self.checkpoint_every_s <= 0:
            raise UsageError(f"--checkpoint-every-s {self.checkpoint_every_s}: expected more than 0")
        if self.keep_gb is not None and self.keep_gb <= 0:
            raise UsageError(f"--keep-gb {self.keep_gb}: expected more than 0")
        if self.max_total_epochs is not None and self.max_total_epochs < 1:
            raise UsageError(f"--max-total-epochs {self.max_total_epochs}: expected at least 1")
        if self.grace_s is not None and self.grace_s <= 0:
            raise UsageError(f"--grace-s {self.grace_s}: expected more than 0")
        if self.max_retries is not None and self.max_retries < 0:
            raise UsageError(f"--max-retries {self.max_retries}: expected at least 0")
        if self.hang_timeout_s is not None and self.hang_timeout_s <= 0:
            raise UsageError(f"--hang-timeout-s {self.hang_timeout_s}: expected more than 0")
        if self.workers_per_gpu < 1:
            raise UsageError(f"--workers-per-gpu {self.workers_per_gpu}: expected at least 1")
        if self.processes_per_trial is not None and self.processes_per_trial < 1:
            raise UsageError(f"--processes-per-trial {self.processes_per_trial}: expected at least 1")
        if self.outage_s < 0:
            raise UsageError(f"--outage-s {self.outage_s}: expected at least 0")
        if self.report_every_s < 0:
            raise UsageError(f"--report-every-s {self.report_every_s}: expected at least 0")
        self.how()

    @property
    def processes(self) -> int:
        """How many train at the same time and share the cores, as far as this command says."""
        return self.workers * (self.processes_per_trial or 1)

    def how(self) -> How:
        """How the work is to be done, as the session takes it."""
        return How(
            workers=self.workers,
            timeout_s=None if self.timeout is None else seconds(self.timeout),
            max_total_epochs=self.max_total_epochs,
            max_retries=self.max_retries,
            hang_timeout_s=self.hang_timeout_s,
            workers_per_gpu=self.workers_per_gpu,
            processes=self.processes_per_trial,
            report_every_s=self.report_every_s,
            grace_s=self.grace_s,
            system_metrics=self.system_metrics,
            view=not self.quiet,
            keeping=Keeping(
                checkpoint_every_s=self.checkpoint_every_s,
                keep_bytes=None if self.keep_gb is None else round(self.keep_gb * 1e9),
                outage_s=self.outage_s,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class OpeningOptions(WorkOptions):
    """Options of the commands that open a study and train.

    Attributes:
        accept_change: continue a study although code or data have changed; recorded
        engine: where the workers run: local, as processes of this machine, or ray, as tasks of the cluster that
            RAY_ADDRESS names, else of a Ray of this machine's own
        cpus_per_trial: with ray, the CPUs of each worker; by default one for each process
        gpus_per_trial: the GPUs of each worker: 2 for as many processes, 0.5 for a half of one; by default one for each
            process, if there are any, shared by --workers-per-gpu
    """

    accept_change: bool = False
    engine: Literal["local", "ray"] = "local"
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None

    def __post_init__(self) -> None:
        if self.engine == "local" and self.cpus_per_trial is not None:
            raise UsageError("--cpus-per-trial is for --engine ray; processes of this machine share what it has")
        for flag, given in (("cpus", self.cpus_per_trial), ("gpus", self.gpus_per_trial)):
            if given is not None and given < 0:
                raise UsageError(f"--{flag}-per-trial {given:g}: expected at least 0")
        if self.engine == "ray" and not self.workers:
            raise UsageError("--workers 0: with --engine ray it says how many tasks there are at once")
        if self.gpus_per_trial is not None:
            self._check_gpus(self.gpus_per_trial)
        super().__post_init__()

    def _check_gpus(self, gpus: float) -> None:
        given = f"--gpus-per-trial {gpus:g}"
        if gpus > 1 and gpus != round(gpus):
            raise UsageError(f"{given}: expected a part of one, or whole ones")
        if self.engine == "ray":
            return
        if gpus == 0:
            raise UsageError(f"{given}: CUDA_VISIBLE_DEVICES= hides those of this machine")
        if gpus >= 1 and self.processes_per_trial not in (None, gpus):
            raise UsageError(f"{given}: each of --processes-per-trial {self.processes_per_trial} has one")
        if self.workers_per_gpu > 1:
            raise UsageError(f"{given}: says already how many share one; leave --workers-per-gpu out")
        there = len(visible_devices())
        if gpus > there:
            raise UsageError(f"{given}: there are {there or 'no'} GPUs here")

    @property
    def processes(self) -> int:
        """As of every command; none of them are on this machine if they are Ray's."""
        return super().processes if self.engine == "local" else 0

    def how(self) -> How:
        told, gpus = super().how(), self.gpus_per_trial
        if gpus is not None and gpus > 1 and told.processes is None:
            told = replace(told, processes=round(gpus))
        if self.engine == "ray":
            return replace(told, resources=Resources(cpus=self.cpus_per_trial, gpus=gpus))
        if gpus is None:
            return told
        return replace(told, workers_per_gpu=max(1, int(1 / gpus)))


@dataclass(frozen=True, kw_only=True)
class SweepOptions(OpeningOptions):
    """Options of a sweep.

    Attributes:
        study: the study's name; by default from the file and its data options
        configurations: how many configurations to draw; by default 24, or the whole grid
        max_epochs: epochs a configuration gets at most; by default the experiment's
        min_epochs: the first epoch at which configurations are compared
        eta: one in so many configurations goes on to the next comparison
        pruner: halving, hyperband, median, percentile, patient, wilcoxon, threshold, successive-halving or none
        pruner_args: arguments of an Optuna pruner, for instance '{percentile: 25, n_startup_trials: 3}'
        sampler: tpe, gp, cmaes, random, qmc or grid
        grid: values of parameters for the grid, for instance '{lr: [0.1, 0.01]}'; the others by their own steps
        enqueue: a known good point to begin with, for instance lr=0.01,width=64; may be given again
        enqueue_file: such points as a CSV table, a column for each parameter; what is empty is drawn
        warm_start: another study of the same database, whose results the sampler is shown as well
        seed: seed of the search and of every training
    """

    study: str | None = None
    configurations: int | None = None
    max_epochs: int | None = None
    min_epochs: int = 1
    eta: int = 3
    pruner: str = "halving"
    pruner_args: dict[str, Any] = field(default_factory=dict)
    sampler: str = "tpe"
    grid: dict[str, Any] = field(default_factory=dict)
    enqueue: tuple[str, ...] = field(default=(), metadata={REPEATABLE: True})
    enqueue_file: Path | None = None
    warm_start: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OpeningOptions):
    """Options of a training.

    Attributes:
        study: the study's name; by default from file, configuration, data and seed
        max_epochs: epochs to train; by default the experiment's
        seed: seed of the training
    """

    study: str | None = None
    max_epochs: int | None = None
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(OpeningOptions):
    """Options of resuming.

    Attributes:
        study: the study to continue
        configuration: give this configuration the whole budget, or max_epochs, from its last checkpoint
        top: give so many of the best max_epochs, or, without, so many of the best that were paused or pruned the whole
            budget; decided once, so that the same command again means the same ones
        max_epochs: more epochs than the study gives
        schedule: what a learning rate does beyond its planned end: keep (its scheduler's state as saved, whatever that
            comes to), stretch (the same shape over max_epochs, from the present epoch on), constant (the last rate)
    """

    study: str
    configuration: int | None = None
    top: int | None = None
    max_epochs: int | None = None
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.configuration is not None and self.top is not None:
            raise UsageError("resume: give either --configuration NUMBER or --top COUNT")
        if self.top is not None and self.top < 1:
            raise UsageError(f"--top {self.top}: expected at least 1")
        if self.max_epochs is not None and self.configuration is None and self.top is None:
            raise UsageError(f"--max-epochs {self.max_epochs}: of which? add --top COUNT or --configuration NUMBER")
        if self.schedule is not None and self.max_epochs is None:
            raise UsageError(f"--schedule {self.schedule}: it is for more epochs than planned; add --max-epochs")

    def reopening(self) -> Reopening | None:
        """Which configurations get more epochs; None for the study as it is."""
        if self.configuration is None and self.top is None:
            return None
        return Reopening(
            configuration=self.configuration, top=self.top, max_epochs=self.max_epochs, schedule=self.schedule
        )


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(WorkOptions):
    """Options of a worker.

    Attributes:
        study: the study to work on; another command, on any machine, has begun it
        once: leave after one segment, which ends where configurations are compared
        forever: do not leave when nothing is left to do, but wait for more
        workers: processes that train at the same time
        grace_s: seconds that a stop may take for the checkpoint, a few less than who stops it waits
        report_every_s: seconds between two refreshes, at least, of what MLflow shows of the study; by default
            PIPELINE_REPORT_EVERY_S, else none: of many workers, one is enough to show it
    """

    study: str
    once: bool = False
    forever: bool = False
    workers: int = 1
    grace_s: float | None = 25.0
    report_every_s: float = field(default_factory=lambda: float(os.environ.get("PIPELINE_REPORT_EVERY_S", "0")))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers}: expected at least 1")
        if self.once and self.forever:
            raise UsageError("worker: give either --once or --forever")

    def how(self) -> How:
        return replace(super().how(), until="segment" if self.once else "stopped" if self.forever else "over")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(CommonOptions):
    """Options of an evaluation.

    Attributes:
        study: the study whose best configuration is evaluated
        configuration: this configuration instead
        accept_change: evaluate although code or data have changed since; recorded
    """

    study: str
    configuration: int | None = None
    accept_change: bool = False


@dataclass(frozen=True, kw_only=True)
class StatusOptions(CommonOptions):
    """Options of a status.

    Attributes:
        study: the study to show in full; without it, a line for each
        watch: show it live, until Ctrl-C
    """

    study: str | None = None
    watch: bool = False

    def __post_init__(self) -> None:
        if self.watch and self.json:
            raise UsageError("status: --watch has no end, and --json is one document; give one of them")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(CommonOptions):
    """Options of a report.

    Attributes:
        study: the study whose pages, pictures, tables and report are rebuilt
    """

    study: str


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(CommonOptions):
    """Options of a verification: one of the two.

    Attributes:
        study: the study whose checkpoints are verified
        run: the MLflow run whose checkpoints are verified
    """

    study: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        if (self.study is None) == (self.run is None):
            raise UsageError("verify: give either --study NAME or --run ID")


@dataclass(frozen=True, kw_only=True)
class CheckOptions(CommonOptions):
    """Options of a check.

    Attributes:
        study: a study that this machine is to work on
    """

    study: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProveOptions(OutputOptions):
    """Options of a proof.

    Attributes:
        kills: how often training is killed
        max_epochs: epochs to train, of each stage; by default at most 3
        seed: seed of the training and of the places where it is killed
    """

    kills: int = 5
    max_epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kills < 1:
            raise UsageError(f"--kills {self.kills}: expected at least 1")
        if self.max_epochs is not None and self.max_epochs < 1:
            raise UsageError(f"--max-epochs {self.max_epochs}: expected at least 1")


@dataclass(frozen=True, kw_only=True)
class InspectOptions(CommonOptions):
    """Options of an inspection.

    Attributes:
        which: latest, best, or a checkpoint's name
    """

    which: str = "latest"
