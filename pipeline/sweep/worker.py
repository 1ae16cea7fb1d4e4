"""A worker: takes segments from a study, one after the other, until there is nothing left or it has to stop."""

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from optuna.trial import TrialState

from pipeline.checkpoint import Manifest
from pipeline.errors import ThawError, UsageError
from pipeline.experiment import (
    ExperimentFile,
    default_params,
    flatten,
    from_params,
    load_experiment,
    seed_for,
    to_params,
)
from pipeline.ranks import Ranks
from pipeline.signals import StopRequest
from pipeline.stages.train import train, use_threads
from pipeline.sweep.failures import bug, class_of
from pipeline.sweep.following import Task as SharedTask
from pipeline.sweep.following import cause
from pipeline.sweep.lineage import (
    BUG,
    COMPLETE,
    DIVERGED,
    HANG,
    LOST,
    OUT_OF_MEMORY,
    PAUSED,
    PREEMPTED,
    PRUNED,
    Lineage,
)
from pipeline.sweep.patience import Unsaved, patient, patiently
from pipeline.sweep.pulse import Pulse
from pipeline.sweep.quota import shrink
from pipeline.sweep.samplers import numbered_trial, sampling_view
from pipeline.sweep.saving import Saver
from pipeline.sweep.schedule import next_segment
from pipeline.sweep.segment import Keeping, TrialSegment
from pipeline.sweep.spec import StudySpec
from pipeline.sweep.study import Fenced, Study
from pipeline.sweep.warm import others
from pipeline.tracking import runs, server
from pipeline.tracking.tables import Tables

log = logging.getLogger("pipeline")
T = TypeVar("T")
IDLE_S, IDLE_LOOKS = 0.3, 9  # between two looks at a study whose work others hold, and in times of what a look took
OVER_S = 5.0  # and at one that is over, and may be given more to do
# How long a worker works: until the study is over, for one segment, or until it is stopped.
Until = Literal["over", "segment", "stopped"]

# Why a segment ended -> the state its trial gets, and how its MLflow run stands then.
ENDINGS = {
    COMPLETE: (TrialState.COMPLETE, "complete"),
    PAUSED: (TrialState.PRUNED, "paused"),
    PRUNED: (TrialState.PRUNED, "pruned"),
    PREEMPTED: (TrialState.FAIL, "interrupted"),
    LOST: (TrialState.FAIL, "interrupted"),
    OUT_OF_MEMORY: (TrialState.FAIL, "failed"),
    HANG: (TrialState.FAIL, "failed"),
    DIVERGED: (TrialState.FAIL, "failed"),
    BUG: (TrialState.FAIL, "failed"),
}


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a study lives outside its database; stored in it, so that a worker needs only the study's name.

    Attributes:
        file: path of the experiment file.
        experiment_id: MLflow experiment.
        run_id: MLflow run of the study.
        tables_run_id, tables: the run of the prepared tables and their digests; None without `prepare`.
        threads: torch's threads in each worker; the same for as long as the study lives. 0 until the first worker.
    """

    file: str
    experiment_id: str
    run_id: str
    tables_run_id: str | None
    tables: Mapping[str, str]
    threads: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, study: Study) -> "Site":
        """Raises: ThawError, if the study was not finished being created."""
        stored = study.attrs.get("site")
        if stored is None:
            raise ThawError(f"study {study.name!r} was not finished being created; run the command that began it")
        return cls(**stored)

    @property
    def data(self) -> Tables | None:
        return None if self.tables_run_id is None else Tables(self.tables_run_id, self.tables)


def work(
    study: Study,
    stop: StopRequest,
    *,
    pulse: Pulse,
    keeping: Keeping,
    only: Collection[int] | None = None,
    max_total_epochs: int | None = None,
    here: Path | None = None,
    until: Until = "over",
    ranks: Ranks | None = None,
) -> Literal["done", "stopped", "spent", "left"]:
    """Works until nothing is left, the budget is spent, `stop` is asked for, or a fresh process has to go on.

    `here` is the experiment file on this machine, if that is not the one where the study was opened. For one segment
    only, it says "left" after that, and at once while others hold all there is to do. `ranks` are the processes that
    train along (`following.follow`), of which this is the first.

    Raises:
        UsageError: the experiment file is gone, or was edited since the study was opened.
        ThawError: the first configurations have all failed alike.
        Unsaved: a store was away for too long; everything can be resumed.
    """
    behind, study = study, patient(study, keeping.outage_s)
    site, spec = Site.of(study), study.spec
    file = load_experiment(here or site.file)
    if file.code_digest != spec.code:
        raise UsageError(f"{file.path} was changed while study {study.name!r} runs; stop it and resume")
    data = site.data
    use_threads(site.threads)  # a sampler may compute with torch as well
    warm = others(study, file)
    while stop.reason is None:
        began_s = time.monotonic()
        found = next_segment(study, only=only, max_total_epochs=max_total_epochs)
        if found == "done" and until != "stopped":
            return "done"
        if found == "wait" and until == "segment":
            return "left"
        if isinstance(found, str):
            # With many trials a look takes long: many who only look would keep the database from those who train.
            idle_s = max(IDLE_S, IDLE_LOOKS * (time.monotonic() - began_s))
            stop.wait(idle_s if found == "wait" else OVER_S)
            continue
        ended = None
        try:
            ended = _Task(study, behind, site, spec, file, data, warm, found, stop, pulse, keeping, ranks).run()
        except Fenced:
            log.warning("#%02d was taken over by another worker; this one drops it", found.number)
        if keeping.keep_bytes is not None:
            try:
                shrink(study, keeping.keep_bytes)
            except Exception as error:  # noqa: BLE001  stores raise what they like; it is tried again after the next
                log.warning("--keep-gb: old checkpoints cannot be deleted: %s", error)
        if ended is not None and until == "segment":
            return "left"
        if ended == OUT_OF_MEMORY or (ranks is not None and ranks.parted):
            return "spent"  # what this process still holds is not known, or where the others stand
    return "stopped"


class _Task:
    """One claimed segment, from drawing its configuration to telling the study how it ended.

    `study` waits for a database that is away, and `behind` does not: what is saved behind training has a spool.
    """

    def __init__(
        self,
        study: Study,
        behind: Study,
        site: Site,
        spec: StudySpec,
        file: ExperimentFile,
        data: Tables | None,
        others: Sequence[Lineage],
        lineage: Lineage,
        stop: StopRequest,
        pulse: Pulse,
        keeping: Keeping,
        ranks: Ranks | None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._study, self._behind, self._site, self._spec, self._file = study, behind, site, spec, file
        self._data, self._others, self._lineage, self._stop = data, others, lineage, stop
        self._pulse, self._keeping = pulse, keeping
        self._id = lineage.head._trial_id
        self._given_up = False  # on a store that fails: nothing else is waited for then

    def run(self) -> str:
        """Returns why the segment ended. Raises: Fenced, Unsaved."""
        try:
            config = self._config()
        except (Fenced, Unsaved):
            raise
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            ended = class_of(error)
            self._end(ended, error, None)
            return ended
        run_id = self._run(config)
        trials = ",".join(str(segment.number) for segment in self._lineage.segments)
        ended, raised = PREEMPTED, None
        try:
            with runs.active(run_id, self._until_done, trials=trials) as outcome:
                try:
                    ended, raised, position = self._train(config, run_id)
                    self._given_up = isinstance(raised, Unsaved)
                    if raised is not None and not self._given_up:
                        text = "".join(traceback.format_exception(raised))
                        self._until_done(lambda: runs.log_text(run_id, text, "traceback.txt"))
                    self._end(ended, raised, position)
                except Fenced:
                    outcome.state = None
                    raise
                outcome.state, outcome.tags = ENDINGS[ended][1], {"ended": ended}
        except Exception:
            # The databases may lie on the disk that is full. Who looks next finds a trial whose process has ended.
            if not self._given_up:
                raise
        if isinstance(raised, Unsaved):
            raise raised
        return ended

    def _config(self) -> Any:
        """The configuration: stored, or drawn now by the sampler."""
        stored = self._lineage.config
        if stored is not None:
            return from_params(self._file.experiment.config, stored)
        if self._file.experiment.suggest is None:
            raise UsageError(f"{self._file.path.name}: declares no `suggest`, so there is nothing to sweep")
        view = sampling_view(self._study, self._spec, self._lineage.number, self._others)
        config = self._file.experiment.suggest(numbered_trial(view, self._id, self._lineage.number))
        if not isinstance(config, self._file.experiment.config):
            expected = self._file.experiment.config.__name__
            raise UsageError(f"suggest returned {type(config).__name__}; expected a {expected}")
        self._study.set(self._id, "config", to_params(config))
        return config

    def _run(self, config: Any) -> str:
        """The configuration's MLflow run: the one it has, or one that is created now."""
        if self._lineage.run_id is not None:
            return self._lineage.run_id
        params = flatten(to_params(config))
        number = self._lineage.number
        name = run_name(number, self._swept(params))

        def ensure() -> str:
            run_id = runs.ensure_run(
                self._site.experiment_id,
                name=name,
                key={"kind": "configuration", "study_run": self._site.run_id, "configuration": str(number)},
                params=params | {"run.seed": self._seed},
                tags={"study": self._study.name, "experiment": self._file.name, "state": "running"},
                parent=self._site.run_id,
                source=self._site.file,
            )
            if self._data is not None:
                self._data.log_inputs(run_id)
            return run_id

        run_id = self._until_done(ensure)
        self._study.set(self._id, "run_id", run_id)
        return run_id

    def _until_done(self, call: Callable[[], T]) -> T:
        """What a call to MLflow returns, once that answers; it may be repeated. Raises: Unsaved."""
        what = f"#{self._lineage.number:02d}: its MLflow run cannot be written"

        def attempt() -> T:
            try:
                return call()
            except Exception as error:
                if self._stop.reason is None:
                    raise
                reason = " ".join(str(error).split())
                raise Unsaved(f"{what}: {reason}; run the same command again to continue") from error

        return patiently(what, attempt, 0.0 if self._given_up else self._keeping.outage_s)

    def _swept(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters that tell this configuration from others."""
        drawn = self._study.storage.get_trial(self._id).params
        if drawn:
            return dict(drawn)
        defaults = flatten(default_params(self._file.experiment.config))
        return {name: value for name, value in params.items() if name not in defaults or value != defaults[name]}

    @property
    def _seed(self) -> int:
        return seed_for(self._spec.seed, self._lineage.number)

    def _train(self, config: Any, run_id: str) -> tuple[str, Exception | None, list[int] | None]:
        """Returns why training ended, what was raised, and where training stood."""
        segment = TrialSegment(
            self._study,
            self._lineage,
            run_id=run_id,
            stop=self._stop,
            pulse=self._pulse,
            saver=Saver(
                self._behind, self._lineage, run_id, monitor=self._spec.monitor, outage_s=self._keeping.outage_s
            ),
            beat=lambda: self._behind.beat(self._id),
            outage_s=self._keeping.outage_s,
            begins=lambda found: self._share(config, run_id, found),
        )
        log.info("#%02d %s", self._lineage.number, self._announcement())
        try:
            with contextlib.closing(segment):
                ended = train(
                    self._file.experiment,
                    config,
                    segment=segment,
                    seed=self._seed,
                    max_epochs=self._max_epochs,
                    threads=self._site.threads,
                    data=self._data if self._data is not None else {},
                    origin={"code": self._spec.code, "data": self._spec.data},
                    checkpoint_every_s=self._keeping.checkpoint_every_s,
                    schedule=self._lineage.schedule,
                    ranks=self._ranks,
                )
        except Fenced:
            self._ranks.parted = True
            raise
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            self._ranks.parted = True
            found = cause(error, self._ranks) if self._ranks.world_size > 1 else error
            return class_of(found), found, segment.position
        return ended, None, segment.position

    @property
    def _max_epochs(self) -> int:
        return self._lineage.extended or self._spec.max_epochs

    def _share(self, config: Any, run_id: str, found: Manifest | None) -> None:
        """Tells the other processes what is trained now, and from which checkpoint on."""
        if self._ranks.world_size == 1:
            return
        task = SharedTask(
            file=str(self._file.path),
            code=self._spec.code,
            config=to_params(config),
            seed=self._seed,
            max_epochs=self._max_epochs,
            threads=self._site.threads,
            tables_run_id=self._site.tables_run_id,
            tables=self._site.tables,
            run_id=run_id,
            tracking_uri=server.uri(),
            trial=self._lineage.head.number,
            checkpoint=None if found is None else found.name,
            schedule=self._lineage.schedule,
        )
        self._ranks.share(asdict(task))

    def _announcement(self) -> str:
        goal = f"trains until epoch {self._lineage.until}"
        start = self._lineage.head.user_attrs["start"]
        return f"{goal}, from checkpoint {start}" if start is not None else goal

    def _end(self, ended: str, error: Exception | None, position: list[int] | None) -> None:
        """Tells the study; from here on the trial cannot change."""
        study = self._behind if isinstance(error, Unsaved) else self._study  # there was patience enough
        progress = study.storage.get_trial(self._id).user_attrs.get("progress", {})
        best = progress.get("best")
        value = f", best {self._spec.monitor} {best['value']:.6g}" if best else ""
        if error is not None:
            reason = f"{type(error).__name__}: {error}"
            study.set(self._id, "error", reason)
            if ended == BUG:
                study.set(self._id, "bug", bug(error, position, self._spec.code))
            log.error("#%02d %s: %s", self._lineage.number, ended, reason)
        else:
            log.info("#%02d %s at epoch %s%s", self._lineage.number, ended, progress.get("epochs", 0), value)
        complete = ended == COMPLETE
        if complete and progress["epochs"] < self._max_epochs:
            study.set(self._id, "stopped_early", progress["epochs"])
        for name in self._spec.constraints if best else ():
            study.constrain(self._id, name, best["metrics"][name])
        values = [best["metrics"][name] for name in self._spec.objectives] if complete and best else []
        study.end(self._id, ENDINGS[ended][0], ended, *values)


def run_name(number: int, params: Mapping[str, Any]) -> str:
    """A name a person can tell apart: `#07 lr=0.013 width=64`."""
    shown = (f"{n}={v:.3g}" if isinstance(v, float) else f"{n}={v}" for n, v in params.items())
    return " ".join((f"#{number:02d}", *shown))[:250]
