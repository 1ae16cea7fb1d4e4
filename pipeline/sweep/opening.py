"""Opening a study: its spec, its MLflow run and its site, created or found."""

import os
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.experiment import ExperimentFile, flatten, load_experiment
from pipeline.sweep.spec import StudySpec, refuse_change
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Site
from pipeline.tracking import runs, server
from pipeline.tracking.origin import log_origin
from pipeline.tracking.tables import Tables


def check_study_name(name: str) -> None:
    """Raises UsageError for a name that MLflow's registry or a command line would stumble over."""
    if not re.fullmatch(r"\w[\w.\-]{0,99}", name):
        raise UsageError(f"--study {name!r}: expected up to 100 letters, digits, '_', '-' and '.'")


def open_study(
    name: str,
    url: str,
    spec: StudySpec,
    file: ExperimentFile,
    tables: Tables | None,
    *,
    experiment_id: str,
    workers: int,
    accept_change: bool,
    first: Callable[[], Mapping[str, Any]] = dict,
) -> Study:
    """Creates a study with its MLflow run, or continues the one of this name. `first` are attributes of a new one.

    Raises:
        UsageError: the name is taken by another spec.
    """
    check_study_name(name)
    study = Study.open(name, url, spec, accept_change=accept_change, first=first)
    _settle(study, file, tables, experiment_id, workers)
    return study


def reopen_study(
    study: Study, file: ExperimentFile, tables: Tables | None, digest: str | None, *, workers: int, accept: bool
) -> None:
    """Continues a study from its stored spec; only code and data can have changed.

    Raises:
        UsageError: they have, and that was not accepted.
    """
    spec = study.spec
    differences = replace(spec, code=file.code_digest, data=digest).differences(spec)
    refuse_change(study.name, differences, accept=accept)
    if differences:
        study.accept(differences)
    site = Site.of(study)
    _settle(study, file, tables, site.experiment_id, workers)


def join_study(study: Study, given: str | None, *, workers: int) -> ExperimentFile:
    """The experiment of a study that was opened before, on this machine or another; all else is taken as it is.

    Raises:
        UsageError: the file, or the study's MLflow run, is not to be found from here, or the file is another version.
    """
    site = Site.of(study)
    try:
        runs.check_exists(site.run_id)
    except UsageError as error:
        where = server.shown(server.uri())
        raise UsageError(
            f"study {study.name!r}: its MLflow run {site.run_id} is not in {where}; set MLFLOW_TRACKING_URI to where "
            "it is"
        ) from error
    file = load_experiment(given or found_here(study.name, site.file))
    if file.code_digest != study.spec.code:
        raise UsageError(
            f"{file.path} is not what study {study.name!r} was opened with; bring it to that version here, or accept "
            f"this one for all: resume --study {study.name} --accept-change true"
        )
    give_threads(study, _threads(workers))
    return file


def give_threads(study: Study, threads: int) -> None:
    """Torch's threads of each worker, once and for all, if who opened the study has left that to who works on it."""
    site = Site.of(study)
    if not site.threads:
        study.set_attr("site", replace(site, threads=threads).to_json())


def found_here(study: str, stored: str) -> Path:
    """Where the file was or, on another machine, in the working directory by as much of that path as there is."""
    parts = Path(stored).parts[1:]
    places = [Path(stored), *(Path(*parts[first:]) for first in range(len(parts)))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(
            f"study {study!r} needs its experiment {stored}, which is not on this machine; run this in the folder that "
            f"has it, or give its path: worker FILE --study {study}"
        )
    return found


def _settle(study: Study, file: ExperimentFile, tables: Tables | None, experiment_id: str, workers: int) -> None:
    """Gives the study its MLflow run and its site; what was cut short before is completed."""
    stored = study.attrs.get("site")
    project_run = os.environ.get("MLFLOW_RUN_ID")
    if stored is None:
        uid = study.attrs.get("uid")
        if uid is None:
            uid = uuid.uuid4().hex
            study.set_attr("uid", uid)
        run_id = runs.ensure_run(
            experiment_id,
            name=study.name,
            key={"kind": "study", "study_uid": uid},
            params={f"spec.{n}": v for n, v in _shown(study.spec).items()},
            tags={"study": study.name, "experiment": file.name},
            source=None if project_run else str(file.path),  # a project run has its own
            adopt=project_run,
        )
        threads = _threads(workers)
    else:
        site = Site(**stored)
        experiment_id, run_id, threads = site.experiment_id, site.run_id, site.threads or _threads(workers)
    if project_run not in (None, run_id):
        # This `mlflow run` only continues the study: its own run says where to look.
        tags = {"kind": "command", "study": study.name, "study_run": run_id}
        runs.name_run(str(project_run), f"again: {study.name}", tags)
    if study.attrs.get("origin") != file.code_digest:  # new, or its code was changed, and that was accepted
        log_origin(run_id, file.path, file.sources, file.code_digest)
        study.set_attr("origin", file.code_digest)
    site = Site(
        file=str(file.path),
        experiment_id=experiment_id,
        run_id=run_id,
        tables_run_id=None if tables is None else tables.run_id,
        tables={} if tables is None else tables.digests,
        threads=threads,
    )
    study.set_attr("site", site.to_json())


def _threads(workers: int) -> int:
    """Torch's threads of each of so many workers on this machine; 0 without, as they may be on another.

    A container may see more cores than it is given the time of: OMP_NUM_THREADS says it there.
    """
    if not workers:
        return 0
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() and int(given) else max(1, len(os.sched_getaffinity(0)) // workers)


def _shown(spec: StudySpec) -> Mapping[str, Any]:
    shown = {**spec.to_json(), "points": len(spec.points)}  # they may be many, and stand in their own runs
    return {name: value for name, value in flatten(shown).items() if value not in (None, ())}
