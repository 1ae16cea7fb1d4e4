"""One command's work on a study: connect, prepare, open, train, evaluate. What it returns, `summary` prints."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from blake3 import blake3
from optuna.trial import TrialState

from pipeline.checkpoint import Checkpoint, Schedule
from pipeline.databases import sqlite_url
from pipeline.engines import local, ray_tasks
from pipeline.engines.child import Job
from pipeline.errors import ThawError, UsageError
from pipeline.experiment import ExperimentFile, default_params, from_params, load_experiment, to_params
from pipeline.planning import Plan, spec_of
from pipeline.report.keeping import ReportJob, kept_current
from pipeline.report.refresh import Refresher
from pipeline.signals import StopRequest
from pipeline.stages.prepare import data_digest, prepare
from pipeline.sweep.budget import left
from pipeline.sweep.finish import Evaluation, evaluate_best, front, ranking, synchronise
from pipeline.sweep.lineage import PREEMPTED
from pipeline.sweep.objectives import check_objectives
from pipeline.sweep.opening import check_study_name, give_threads, join_study, open_study, reopen_study
from pipeline.sweep.patience import Unsaved, patient, patiently
from pipeline.sweep.pruners import check_pruner
from pipeline.sweep.reopening import reopen, reopen_best
from pipeline.sweep.samplers import check_sampler
from pipeline.sweep.schedule import is_over, is_search_over
from pipeline.sweep.segment import Keeping
from pipeline.sweep.standing import Standing, standing
from pipeline.sweep.storage import locked, prepare_storage
from pipeline.sweep.study import Study, study_names
from pipeline.sweep.verifying import Verdict, verify_run, verify_study
from pipeline.sweep.warm import snapshot
from pipeline.sweep.worker import Site, Until
from pipeline.terminal.canvas import is_terminal
from pipeline.terminal.live import LiveView
from pipeline.terminal.overview import Overview, overview, reading
from pipeline.tracking import runs, server
from pipeline.tracking.tables import Tables

log = logging.getLogger("pipeline")


@dataclass(frozen=True, kw_only=True)
class How:
    """How the work is done; no part of what its result is.

    Attributes:
        processes: that train one configuration together; None for as many as the last time, at first 1.
        view: whether it is shown as it goes on, where there is a terminal.
        resources: of each task of Ray; None for workers of this machine.
    """

    workers: int
    timeout_s: float | None
    max_total_epochs: int | None
    max_retries: int | None
    hang_timeout_s: float | None
    workers_per_gpu: int
    keeping: Keeping
    processes: int | None = None
    report_every_s: float = 0.0
    grace_s: float | None = None
    until: Until = "over"
    system_metrics: bool = False
    view: bool = False
    resources: ray_tasks.Resources | None = None


@dataclass(frozen=True, kw_only=True)
class Reopening:
    """Which configurations get more epochs than the search gave them: one, or the best.

    Attributes:
        max_epochs: how many they get; None for what the study's spec gives.
        schedule: what their learning rates' schedules do beyond their planned ends.
    """

    configuration: int | None = None
    top: int | None = None
    max_epochs: int | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command has come to.

    Attributes:
        how: it was to be done.
        finished: nothing is left to do; else it was stopped and can be resumed.
        trained: whether anything was trained by this command.
        only: those that were to be trained, None when it was the whole study.
        evaluation: of the best configuration, if it was asked for.
        budget: of epochs, if that is what ended the work.
    """

    study: Study
    how: How
    finished: bool
    trained: bool
    only: tuple[int, ...] | None
    evaluation: Evaluation | None
    budget: int | None = None


class Session:
    """Tracking and study database, made ready for one command."""

    def __init__(self, storage: str | None, stop: StopRequest, context: ForkServerContext | None) -> None:
        self._stop = stop
        self._context = context
        self._told = storage
        self._experiment_id = server.connect()
        self._url = storage_url(storage)

    def prepare(self, file: ExperimentFile, data: Any) -> Tables | None:
        """The experiment's tables, prepared now or before."""
        return prepare(file, data, self._experiment_id)

    def open_sweep(
        self,
        file: ExperimentFile,
        data: Any,
        *,
        name: str | None,
        plan: Plan,
        workers: int,
        accept_change: bool,
    ) -> Study:
        """Creates a sweep's study or continues it.

        Raises:
            UsageError: the plan cannot be carried out, or the name is taken by another spec.
        """
        check_sampler(plan.sampler)
        check_pruner(plan.pruner, plan.pruner_args)
        check_objectives(file.experiment.objectives, sampler=plan.sampler, pruner=plan.pruner)
        if file.experiment.suggest is None:
            raise UsageError(f"{file.path.name}: declares no `suggest`, so there is nothing to sweep; use `train`")
        changed = _changed(data)
        name = name or (f"{file.name}-{_short_digest(changed)}" if changed else file.name)
        max_epochs = file.experiment.max_epochs if plan.max_epochs is None else plan.max_epochs
        return self._open(name, file, data, replace(plan, max_epochs=max_epochs), None, workers, accept_change)

    def open_training(
        self,
        file: ExperimentFile,
        data: Any,
        config: Any,
        *,
        name: str | None,
        max_epochs: int | None,
        seed: int,
        accept_change: bool,
        workers: int = 1,
    ) -> Study:
        """Creates the study of one configuration or continues it."""
        params = to_params(config)
        name = name or f"{file.name}-train-{_short_digest([params, _changed(data), seed])}"
        plan = Plan(
            configurations=1,
            max_epochs=file.experiment.max_epochs if max_epochs is None else max_epochs,
            min_epochs=1,
            eta=2,
            pruner="none",
            sampler="random",
            seed=seed,
        )
        return self._open(name, file, data, plan, params, workers, accept_change)

    def reopen_study(self, name: str, *, accept_change: bool, workers: int = 1) -> tuple[Study, ExperimentFile]:
        """Continues a study from its name alone."""
        study = Study.load(name, self._url)
        site, spec = Site.of(study), study.spec
        if not Path(site.file).is_file():
            raise ThawError(f"study {name!r} needs its experiment file {site.file}, which is gone; put it back")
        file = load_experiment(site.file)
        options = None if file.experiment.data is None else from_params(file.experiment.data, spec.data_options)
        tables = prepare(file, options, site.experiment_id)
        reopen_study(study, file, tables, data_digest(tables), workers=workers, accept=accept_change)
        return study, file

    def join_study(self, name: str, file: str | None, *, workers: int) -> tuple[Study, ExperimentFile]:
        """A study that was opened before, here or elsewhere; `file` is its experiment on this machine."""
        study = Study.load(name, self._url)
        with locked(self._url):  # what is not settled yet is settled by one of those who join
            return study, join_study(study, file, workers=workers)

    def work(
        self,
        study: Study,
        file: ExperimentFile,
        how: How,
        *,
        reopening: Reopening | None = None,
        evaluate: bool = False,
    ) -> Result:
        """Trains what is left to train, or only what is reopened, then evaluates the best if wanted.

        Raises Unsaved if the study's database is away for too long.
        """
        evaluation = None
        study = patient(study, how.keeping.outage_s)
        if how.max_retries is not None:
            study.limit_retries(how.max_retries)
        shown = ReportJob(
            study=study.name,
            url=self._url,
            told=self._told,
            tracking_uri=server.uri(),
            every_s=0.0 if reopening is None and is_over(study) else how.report_every_s,
        )
        with kept_current(shown, self._context, self._stop), self._shown(study, how.keeping.outage_s):
            only, todo = (None, not is_over(study)) if reopening is None else self._reopen(study, file, reopening)
            finished = self._train(study, file, how, only) if todo or how.until == "stopped" else True
            if finished and evaluate and file.experiment.evaluate is not None and len(front(study)) <= 1:
                evaluation = self.evaluate(study, file, None)
            limit = how.max_total_epochs
            ended = finished and limit is not None and left(study.lineages(), limit) <= 0 and not is_over(study)
        return Result(
            study=study,
            how=how,
            finished=finished,
            trained=todo,
            only=only,
            evaluation=evaluation,
            budget=limit if ended else None,
        )

    def evaluate(self, study: Study, file: ExperimentFile, configuration: int | None) -> Evaluation:
        """Evaluates a configuration, the best by default, and registers its model."""
        found = evaluate_best(study, file, configuration)
        self._refresh(study)
        return found

    def report(self, name: str) -> Study:
        """Rebuilds all that MLflow shows of a study; returns it."""
        study = self.load(name)
        Refresher(study, storage=self._told).everything()
        return study

    def load(self, name: str) -> Study:
        """A study by its name. Raises: UsageError."""
        return Study.load(name, self._url)

    def status(self, name: str | None) -> list[Standing]:
        """How a study stands, or each study there is."""
        names = [name] if name is not None else study_names(self._url)
        return [standing(Study.load(one, self._url)) for one in names]

    def overview(self, name: str) -> Overview:
        """How a study goes on."""
        return overview(self.load(name))

    def overviews(self, name: str | None) -> Callable[[], list[Overview]]:
        """What reads a study again and again, or all there are."""
        read: dict[str, Callable[[], Overview]] = {}

        def look() -> list[Overview]:
            names = [name] if name is not None else study_names(self._url)
            return [read.setdefault(one, reading(one, self._url))() for one in names]

        return look

    def verify(self, study: str | None, run_id: str | None) -> list[Verdict]:
        """The checkpoints of a study, or of one run."""
        if study is None:
            assert run_id is not None
            runs.check_exists(run_id)
            return verify_run(run_id)
        return [verdict for found in verify_study(Study.load(study, self._url)) for verdict in found]

    def checkpoint(self, run: str, which: str) -> Checkpoint:
        """A checkpoint of a run's, or of a folder of `Run.local`."""
        if not Path(run).is_dir():
            runs.check_exists(run)
        return Checkpoint.open(run, which)

    def _refresh(self, study: Study) -> None:
        """Brings the study's pages up to date; if that fails, what they are about stands all the same."""
        try:
            Refresher(study, storage=self._told).pages()
        except Exception as error:  # noqa: BLE001  stores and servers raise what they like
            log.warning("what MLflow shows of study %r is not up to date: %s", study.name, " ".join(str(error).split()))

    def _reopen(self, study: Study, file: ExperimentFile, wanted: Reopening) -> tuple[tuple[int, ...], bool]:
        """The configurations, and whether anything is left to train of them."""
        if wanted.max_epochs is not None and len(file.experiment.stages) > 1:
            raise UsageError(
                f"--max-epochs {wanted.max_epochs}: {file.path.name} has stages, and each Stage says its own"
            )
        with locked(self._url):  # two commands at once choose the same
            if wanted.configuration is None:
                assert wanted.top is not None
                return reopen_best(study, wanted.top, max_epochs=wanted.max_epochs, schedule=wanted.schedule)
            only = (wanted.configuration,)
            return only, reopen(study, only, max_epochs=wanted.max_epochs, schedule=wanted.schedule)

    def _train(self, study: Study, file: ExperimentFile, how: How, only: tuple[int, ...] | None) -> bool:
        assert self._context is not None
        job = Job(
            study=study.name,
            storage=self._url,
            tracking_uri=server.uri(),
            workers=how.workers if only is None else min(how.workers, len(only)),
            timeout_s=how.timeout_s,
            max_total_epochs=how.max_total_epochs,
            hang_timeout_s=how.hang_timeout_s,
            workers_per_gpu=how.workers_per_gpu,
            processes=_processes(study, how.processes),
            keeping=how.keeping,
            system_metrics=how.system_metrics,
            only=only,
            file=file.path,
            until=how.until,
            grace_s=how.grace_s,
        )
        # What tasks print comes by Ray, past a view.
        has_view = how.view and how.resources is None and is_terminal(sys.stderr)
        view = self._view(job) if has_view else None
        with self._stop.deferred(), view or nullcontext():
            if how.resources is None:
                finished = local.run(job, self._context, self._stop, view)
            else:
                give_threads(study, how.resources.threads(job.processes))
                finished = ray_tasks.run(job, how.resources, self._stop)
        # Who was to do no more than a segment, or to wait for more to do, is not told whether that was the last.
        return finished or (how.until != "over" and is_over(study))

    def _view(self, job: Job) -> LiveView:
        read = reading(job.study, job.storage, only=job.only, max_total_epochs=job.max_total_epochs)
        deadline_s = None if job.timeout_s is None else time.monotonic() + job.timeout_s
        return LiveView(read, self._stop, deadline_s=deadline_s)

    @contextmanager
    def _shown(self, study: Study, outage_s: float) -> Iterator[None]:
        """Keeps the states of the study's MLflow runs true while the command works and after it."""
        run_id = Site.of(study).run_id
        # Nobody was there to see them die: a command that is killed whole is stopped, and no configuration's fault.
        study.close_dead(PREEMPTED)
        failed = False
        try:
            patiently(f"study {study.name!r} cannot be shown", lambda: runs.set_state(run_id, "running"), outage_s)
            yield
        except UsageError:
            raise
        except Exception:
            failed = True
            raise
        finally:
            with self._stop.deferred():
                study.close_dead(PREEMPTED)
                state = _state(study, over=is_over(study), failed=failed)
                self._show(study, state, outage_s)

    def _show(self, study: Study, state: str, outage_s: float) -> None:
        """Brings MLflow in line; who has stopped has waited for it already, and who goes on does it again."""
        stopped = self._stop.reason is not None

        def show() -> None:
            synchronise(study, over=is_search_over(study))
            runs.set_state(Site.of(study).run_id, state)

        try:
            patiently(f"what study {study.name!r} has come to cannot be shown", show, 0.0 if stopped else outage_s)
        except Unsaved as error:
            if not stopped:
                raise
            log.warning("%s", error)

    def _open(
        self,
        name: str,
        file: ExperimentFile,
        data: Any,
        plan: Plan,
        config: dict[str, Any] | None,
        workers: int,
        accept_change: bool,
    ) -> Study:
        check_study_name(name)
        prepare_storage(self._url)
        # Two commands that begin one study at once would prepare its data twice and give it two MLflow runs.
        with locked(self._url):
            tables = self.prepare(file, data)
            spec = spec_of(file, data, tables, plan, config)
            return open_study(
                name,
                self._url,
                spec,
                file,
                tables,
                experiment_id=self._experiment_id,
                workers=workers,
                accept_change=accept_change,
                first=lambda: snapshot(self._url, spec, file),
            )


def _processes(study: Study, wanted: int | None) -> int:
    """How many train one configuration together; the study remembers it, for with others the bits are others."""
    known: int = study.attrs.get("processes", 1)
    if wanted is not None and wanted != known:
        study.set_attr("processes", wanted)
    return known if wanted is None else wanted


def _state(study: Study, *, over: bool, failed: bool) -> str:
    """How a study stands when this command does not work on it any more."""
    if any(lineage.head.state is TrialState.RUNNING for lineage in study.lineages().values()):
        return "running"  # by another command
    if failed or not over:
        return "failed" if failed else "interrupted"
    return "complete" if ranking(study) else "failed"


def storage_url(told: str | None) -> str:
    """The study database: as told, else optuna.db beside mlflow.db, or in the working directory."""
    folder = server.folder() or Path()
    return told or os.environ.get("PIPELINE_STORAGE") or sqlite_url(folder / "optuna.db")


def _changed(data: Any) -> dict[str, Any]:
    """The data options that differ from their defaults."""
    if data is None:
        return {}
    defaults = default_params(type(data))
    return {name: value for name, value in to_params(data).items() if name not in defaults or value != defaults[name]}


def _short_digest(value: Any) -> str:
    return blake3(json.dumps(value, sort_keys=True).encode()).hexdigest(4)
