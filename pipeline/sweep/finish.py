"""What follows the training of a study: MLflow brought in line, the best evaluated and registered."""

from dataclasses import dataclass

from optuna.trial import TrialState

from pipeline.checkpoint import MlflowStore, load
from pipeline.errors import ThawError, UsageError
from pipeline.experiment import ExperimentFile, from_params, seed_for, users_code
from pipeline.stages.evaluate import evaluate
from pipeline.stages.register import register
from pipeline.sweep.lineage import COMPLETE, PAUSED, PREEMPTED, PRUNED, Lineage, ranked
from pipeline.sweep.objectives import pareto_front
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Site
from pipeline.tracking import links, models, runs


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of one configuration's best weights.

    Attributes:
        version: of the registered model, None without one.
        run_id: MLflow run of the evaluation.
        fresh: whether it was made now, not found.
    """

    number: int
    metrics: dict[str, float]
    version: str | None
    run_id: str
    fresh: bool


def ranking(study: Study) -> list[Lineage]:
    """Configurations with a result, best monitored value first."""
    return ranked(study.lineages(), study.spec.direction)


def front(study: Study) -> list[Lineage]:
    """The best configuration or, of a study with several objectives, those that no other one beats."""
    return pareto_front(ranking(study), study.spec.objectives)


def state_of(lineage: Lineage, *, over: bool) -> str:
    """How a configuration stands, as its run's tag `state` says; `over`: nothing more is going to happen."""
    if lineage.head.state is TrialState.RUNNING:
        return "running"
    if lineage.ended is None or lineage.may_continue():
        return "waiting" if lineage.run_id is None else "interrupted"
    if lineage.ended == PAUSED:
        return "pruned" if over else "paused"
    return {COMPLETE: "complete", PRUNED: "pruned", PREEMPTED: "interrupted"}.get(lineage.ended, "failed")


def synchronise(study: Study, *, over: bool) -> None:
    """Brings the states of all MLflow runs in line with the study: what a kill cut off is put right here."""
    site = Site.of(study)
    known = {
        run.info.run_id: run
        for run in runs.find_runs(site.experiment_id, {"study_run": site.run_id, "kind": "configuration"})
    }
    for lineage in study.lineages().values():
        state = state_of(lineage, over=over)
        run = known.pop(lineage.run_id, None)
        if run is None or state == "waiting":
            continue
        tags = lineage.tags
        at = (run.data.tags.get("state"), run.info.status, {name: run.data.tags.get(name) for name in tags})
        if at != (state, runs.STATUS[state], tags):
            runs.set_state(run.info.run_id, state, **tags)
    for run in known.values():  # its creator was killed before the study knew of it; who goes on will find it
        if run.info.status == "RUNNING":
            runs.set_state(run.info.run_id, "interrupted")


def evaluate_best(study: Study, file: ExperimentFile, number: int | None = None) -> Evaluation:
    """Evaluates a configuration's best weights and registers the model; found again if that was done before.

    Without `number`, the study's best.

    Raises:
        UsageError: the experiment declares no `evaluate`, or several objectives leave several best ones.
        ThawError: no configuration has a checkpoint yet, or `evaluate` raises.
    """
    if file.experiment.evaluate is None:
        raise UsageError(f"{file.path.name}: declares no `evaluate`; add Experiment(..., evaluate=evaluate)")
    lineage = _chosen(study, number)
    site, spec = Site.of(study), study.spec
    best = lineage.best
    assert best is not None and lineage.run_id is not None and lineage.config is not None
    key = {
        "kind": "evaluate",
        "study_run": site.run_id,
        "configuration": str(lineage.number),
        "checkpoint": best["checkpoint"],
        "code": spec.code,
    }
    done = runs.find_run(site.experiment_id, {**key, "state": "complete"})
    if done is not None:
        _point(study, lineage, done.data.tags.get("model_version"))
        return Evaluation(
            number=lineage.number,
            metrics={n: float(v) for n, v in done.data.metrics.items()},
            version=done.data.tags.get("model_version"),
            run_id=done.info.run_id,
            fresh=False,
        )
    store = MlflowStore(lineage.run_id)
    if best["checkpoint"] not in store.names():
        raise ThawError(
            f"configuration #{lineage.number:02d}: checkpoint {best['checkpoint']}, with its best weights, was deleted "
            "by --keep-gb or set aside; evaluate another --configuration, or `resume` this one"
        )
    _, state = load(store, best["checkpoint"])
    config = from_params(file.experiment.config, lineage.config)
    seed = seed_for(spec.seed, lineage.number)
    run_id = runs.ensure_run(
        site.experiment_id,
        name=f"evaluate #{lineage.number:02d}",
        key=key,
        params={"configuration": lineage.number, "checkpoint": best["checkpoint"], "epoch": best["epoch"]},
        tags={"study": study.name, "configuration": str(lineage.number), "trained_by": lineage.run_id},
        parent=site.run_id,
        source=site.file,
    )
    version = None
    with runs.active(run_id) as outcome:
        data = site.data
        with users_code(file, "evaluate"):
            evaluated = evaluate(
                file.experiment,
                config,
                state=state,
                data=data if data is not None else {},
                seed=seed,
                threads=site.threads,
            )
        runs.log_final(run_id, evaluated.metrics)
        version = register(
            file,
            config,
            evaluated,
            data=data,
            seed=seed,
            run_id=run_id,
            name=study.name,
            tags={
                "study": study.name,
                "configuration": str(lineage.number),
                "trained_by": lineage.run_id,
                "checkpoint": best["checkpoint"],
            },
            description=_origin(site, lineage, best["checkpoint"]),
        )
        if version is not None:
            runs.set_tags(run_id, {"model_version": version})
        outcome.state = "complete"
    _point(study, lineage, version)
    return Evaluation(number=lineage.number, metrics=evaluated.metrics, version=version, run_id=run_id, fresh=True)


def _origin(site: Site, lineage: Lineage, checkpoint: str) -> str:
    """Where a registered model comes from, in Markdown."""
    assert lineage.run_id is not None
    run = links.within(links.run(site.experiment_id, lineage.run_id))
    manifest = links.artifact(site.experiment_id, lineage.run_id, f"checkpoints/{checkpoint}/manifest.json")
    return (
        f"The best weights of configuration [#{lineage.number:02d}]({run}), "
        f"from checkpoint [{checkpoint}]({links.within(manifest)})."
    )


def _point(study: Study, lineage: Lineage, version: str | None) -> None:
    """The aliases of the study's registered model; a kill may have come between its versions and them."""
    if version is not None:
        is_best = [one.number for one in front(study)] == [lineage.number]
        models.point(study.name, best=version if is_best else None)


def _chosen(study: Study, number: int | None) -> Lineage:
    if number is None:
        best = front(study)
        if not best:
            raise ThawError(f"study {study.name!r}: no configuration has a result to evaluate yet")
        if len(best) > 1:
            raise UsageError(
                f"study {study.name!r} has {len(best)} best configurations, each better than the others in something: "
                f"{', '.join(str(one.number) for one in best)}; say which by --configuration"
            )
        return best[0]
    lineage = study.lineages().get(number)
    if lineage is None:
        raise UsageError(f"--configuration {number}: study {study.name!r} has no such configuration")
    if lineage.best is None:
        raise ThawError(f"configuration #{number:02d} has no checkpoint to evaluate yet")
    return lineage
