"""What commands say with `--json`: one JSON document on stdout. This is its schema; names are only ever added.

sweep, train, resume, main, worker
    study: STUDY
    finished: nothing is left to do; false: it was stopped, and the same command continues it
    trained: whether this command has trained anything
    only: numbers of the configurations it was restricted to, else null
    budget: --max-total-epochs if that is what ended it, else null
    evaluation: EVALUATION of the best, if it was asked for, else null
evaluate
    study: its name
    evaluation: EVALUATION
status
    studies: a list of STUDY; with --study, of that one
prepare
    tables: by name: rows, columns, digest (blake3)
report
    study: its name
    report: link to report.html
verify
    checkpoints: a list of: owner (`#07`, or the run), name, bytes, counts (whether the study knows it), problem (null
        if it verifies), resume (whether a resume would start there)
    bad: how many of those that count do not verify
inspect
    checkpoint: its name
    position: stage, epoch, batch
    metrics: by name
    tensors: by name: dtype, shape, bytes
    bytes: of all its files
check
    checks: a list of: what, says (what is so, or what is wrong and what to do), ok
prove
    agrees: whether the bits do
    file, epochs, batches: of the undisturbed training
    kills: a list of places, in words
    compared: how many entries of each kind are the same, or were looked at
    first, last: what differs first in time, and in the last checkpoints: a list of kind, name, how, others, at
    hints: what that usually means
    folder: where both trainings lie, null if they agree

STUDY
    name, experiment (file), monitor, direction, over (whether nothing is left to do)
    configurations_left: still to be drawn
    states: how many configurations stand how
    epochs: trained and committed by all of them
    epochs_left, seconds_left: about how many, and how long that takes those who work now; null where it cannot be said
    best: numbers of the best configurations: one, none yet, or several where several objectives leave them
    configurations: a list of: number, name, state, why (what failed, or broke it off), epochs, max_epochs,
        best (epoch, value, metrics; null before the first), config, segments, checkpoint, bytes, run_id
    workers: a list of who trains: worker (host and process), configuration, epochs, until, value, seconds_per_epoch,
        silent_s (seconds since the last heartbeat)
    bytes: what all its checkpoints take
    run_id: its MLflow run
    links: study, curves
EVALUATION
    configuration: its number
    metrics: by name
    model: `models:/NAME/VERSION`, null if none was registered
    fresh: false if it was found, not made now
    run_id: its MLflow run

Numbers that are not finite are null. What users' code prints goes to stderr, as logs do. On an error stdout is empty,
and the exit code says what kind it is.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.checking import Finding
from pipeline.checkpoint import Checkpoint
from pipeline.proving.compare import Difference
from pipeline.proving.plan import describe
from pipeline.proving.prove import Proof
from pipeline.session import Result
from pipeline.sweep.finish import Evaluation, front
from pipeline.sweep.standing import ConfigurationStanding, Standing, standing
from pipeline.sweep.study import Study
from pipeline.sweep.verifying import Verdict
from pipeline.sweep.worker import Site
from pipeline.terminal.overview import Activity, overview
from pipeline.tracking import links
from pipeline.tracking.tables import Tables

Document = Mapping[str, Any]


def text(document: Document) -> str:
    """As it is printed: strict JSON."""
    return json.dumps(_strict(document), indent=2, allow_nan=False)


def result(found: Result) -> Document:
    return {
        "study": _study(standing(found.study)),
        "finished": found.finished,
        "trained": found.trained,
        "only": found.only,
        "budget": found.budget,
        "evaluation": None if found.evaluation is None else _evaluation(found.study, found.evaluation),
    }


def evaluation(study: Study, found: Evaluation) -> Document:
    return {"study": study.name, "evaluation": _evaluation(study, found)}


def studies(found: Sequence[Standing]) -> Document:
    return {"studies": [_study(one) for one in found]}


def tables(found: Tables | None) -> Document:
    shapes = {} if found is None else {name: (*found[name].shape, found.digests[name]) for name in found}
    return {
        "tables": {name: dict(zip(("rows", "columns", "digest"), one, strict=True)) for name, one in shapes.items()}
    }


def reported(study: Study) -> Document:
    site = Site.of(study)
    return {"study": study.name, "report": links.artifact(site.experiment_id, site.run_id, "report.html")}


def checks(found: Sequence[Finding]) -> Document:
    return {"checks": [{"what": one.what, "says": one.says, "ok": not one.is_problem} for one in found]}


def verdicts(found: Sequence[Verdict]) -> Document:
    return {
        "checkpoints": [
            {
                "owner": one.owner,
                "name": one.name,
                "bytes": one.size_bytes,
                "counts": one.counts,
                "problem": one.problem,
                "resume": one.next,
            }
            for one in found
        ],
        "bad": sum(one.counts and one.problem is not None for one in found),
    }


def inspected(found: Checkpoint) -> Document:
    manifest = found.manifest
    position = manifest.position
    return {
        "checkpoint": found.name,
        "position": {"stage": position.stage, "epoch": position.epoch, "batch": position.batch},
        "metrics": dict(found.metrics),
        "tensors": {
            name: {"dtype": one.dtype, "shape": list(one.shape), "bytes": one.size_bytes}
            for name, one in manifest.tensors.items()
        },
        "bytes": manifest.size_bytes,
    }


def proof(found: Proof) -> Document:
    def differences(given: Sequence[Difference]) -> list[Document]:
        return [
            {
                "kind": one.kind,
                "name": one.name,
                "how": one.how,
                "others": one.others,
                "at": None if one.at is None else describe(one.at, stages=found.stages),
            }
            for one in given
        ]

    return {
        "agrees": found.agrees,
        "file": found.file,
        "epochs": found.epochs,
        "batches": found.batches,
        "kills": [strike.describe(stages=found.stages) for strike in found.strikes],
        "compared": dict(found.compared),
        "first": differences(found.first),
        "last": differences(found.last),
        "hints": list(found.hints),
        "folder": None if found.folder is None else str(found.folder),
    }


def _study(found: Standing) -> Document:
    study, spec, site, seen = found.study, found.study.spec, Site.of(found.study), overview(found.study)
    minimize = spec.direction == "minimize"
    return {
        "name": study.name,
        "experiment": spec.experiment,
        "monitor": spec.monitor,
        "direction": spec.direction,
        "over": found.over,
        "configurations_left": found.left,
        "states": dict(found.states),
        "epochs": seen.epochs,
        "epochs_left": None if seen.left is None else seen.left.epochs,
        "seconds_left": None if seen.left is None else seen.left.seconds,
        "best": [one.number for one in front(study)],
        "configurations": [
            _configuration(one, seen.names.get(one.lineage.number, ""), spec.max_epochs) for one in found.configurations
        ],
        "workers": [_worker(one) for one in seen.activities],
        "bytes": found.size_bytes,
        "run_id": site.run_id,
        "links": {
            "study": links.run(site.experiment_id, site.run_id),
            "curves": links.configurations(site.experiment_id, study.name, spec.monitor, ascending=minimize),
        },
    }


def _configuration(one: ConfigurationStanding, name: str, max_epochs: int) -> Document:
    lineage, best = one.lineage, one.lineage.best
    return {
        "number": lineage.number,
        "name": name,
        "state": one.state,
        "why": one.why,
        "epochs": lineage.epochs,
        "max_epochs": lineage.extended or max_epochs,
        "best": None if best is None else {name: best[name] for name in ("epoch", "value", "metrics")},
        "config": lineage.config,
        "segments": len(lineage.segments),
        "checkpoint": lineage.progress["checkpoint"],
        "bytes": one.size_bytes,
        "run_id": lineage.run_id,
    }


def _worker(one: Activity) -> Document:
    return {
        "worker": one.worker,
        "configuration": one.number,
        "epochs": one.epochs,
        "until": one.until,
        "value": one.value,
        "seconds_per_epoch": one.epoch_s,
        "silent_s": one.silent_s,
    }


def _evaluation(study: Study, found: Evaluation) -> Document:
    return {
        "configuration": found.number,
        "metrics": dict(found.metrics),
        "model": None if found.version is None else f"models:/{study.name}/{found.version}",
        "fresh": found.fresh,
        "run_id": found.run_id,
    }


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _strict(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
