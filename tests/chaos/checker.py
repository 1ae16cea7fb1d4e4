"""What must be true at its end of a study of quick.py, or of what keeps the same history, read from what cannot lie.

That is the append-only history of every batch that any process has trained, the study's trials, and the MLflow runs
with their checkpoints. What configurations have come to is compared with the same configurations trained undisturbed,
one after the other in this process: without workers, pauses, study and MLflow.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from pipeline.checkpoint import FolderStore, Manifest, Report, load, parse_name
from pipeline.checkpoint.store import SET_ASIDE_TAG
from pipeline.experiment import from_params, load_experiment, seed_for, to_params
from pipeline.local import LocalSegment
from pipeline.stages.train import train
from pipeline.sweep.lineage import COMPLETE, PAUSED, Lineage
from pipeline.sweep.study import Study
from pipeline.sweep.worker import Site
from tests.chaos.chaos import Fence
from tests.integration.commands import Workplace, assert_same_tensors
from tests.integration.sweeps import Sweep, assert_sound, spans, step_of


def assert_survived(
    sweep: Sweep, *, configurations: int, fences: Sequence[Fence], folder: Path, name: str = "quick"
) -> dict[int, Lineage]:
    """All of it. `folder` is for the undisturbed training. The study draws by `random`, pauses by `halving`."""
    lineages = assert_sound(sweep, configurations=configurations, name=name)
    study = sweep.workplace.study(name)
    assert_only_accepted_segments_trained(sweep, lineages)
    for fence in fences:
        assert_fence_held(study, fence)
    for lineage in lineages.values():
        assert_ends_once(lineage)
        assert_refers_to_what_is_accepted(lineage)
        assert_nothing_was_damaged(sweep.workplace, lineage)
        assert_as_undisturbed(sweep.workplace, study, lineage, folder / str(lineage.number))
    return lineages


def assert_only_accepted_segments_trained(sweep: Sweep, lineages: dict[int, Lineage]) -> None:
    """Nobody has trained what lost against a lower number, nor without a trial."""
    accepted = {(one.run_id, segment.number) for one in lineages.values() for segment in one.segments}
    strangers = sweep.trained().keys() - accepted
    assert not strangers, f"trained, but in no lineage: {strangers}"


def assert_fence_held(study: Study, fence: Fence) -> None:
    """The trial is to the letter what it was when it was taken away."""
    before, after = fence.trial, study.trials()[fence.trial.number]
    for part in ("state", "user_attrs", "intermediate_values", "values", "datetime_complete"):
        assert getattr(after, part) == getattr(before, part), (fence.how, after.number, part)


def assert_ends_once(lineage: Lineage) -> None:
    """It reaches each rung once, and nothing follows where it is complete."""
    where = f"#{lineage.number:02d}"
    reached = [one.user_attrs["until"] for one in lineage.segments if one.user_attrs["ended"] in (PAUSED, COMPLETE)]
    assert reached == sorted(set(reached)), f"{where} reached {reached}"
    assert reached[-1] == lineage.epochs, f"{where} stands at {lineage.epochs}, not at a rung"
    assert lineage.ended in (PAUSED, COMPLETE), f"{where} has ended as {lineage.ended}"
    complete = [one.number for one in lineage.segments if one.state is TrialState.COMPLETE]
    assert complete == ([lineage.head.number] if lineage.ended == COMPLETE else []), where


def assert_refers_to_what_is_accepted(lineage: Lineage) -> None:
    """Each checkpoint that the study names was written by an accepted segment, and lies within what counts of that.

    How far that goes its trial says, or the `adopted` of the next one.
    """
    reached = {span.trial: span.end for span in spans(lineage)}
    for segment in lineage.segments:
        progress = segment.user_attrs.get("progress") or {}
        named = [
            segment.user_attrs["start"],
            segment.user_attrs.get("adopted"),
            progress.get("checkpoint"),
            (progress.get("best") or {}).get("checkpoint"),
        ]
        for checkpoint in filter(None, named):
            parsed = parse_name(checkpoint)
            assert parsed is not None, checkpoint
            assert parsed[1] in reached, f"#{lineage.number:02d}: {checkpoint} is of no segment"
            assert parsed[1] <= segment.number, (
                f"#{lineage.number:02d}: {checkpoint} was written after {segment.number}"
            )
            assert step_of(checkpoint) <= reached[parsed[1]], f"#{lineage.number:02d}: {checkpoint} is past its fence"


def assert_nothing_was_damaged(workplace: Workplace, lineage: Lineage) -> None:
    """Kills leave garbage and no damage: no checkpoint had to be set aside, and each rung's is there."""
    assert lineage.run_id is not None
    tags = workplace.client.get_run(lineage.run_id).data.tags
    aside = [tag for tag in tags if tag.startswith(SET_ASIDE_TAG)]
    assert not aside, f"#{lineage.number:02d}: {aside}"
    store = workplace.store(lineage.run_id)
    names = store.names()
    for segment in lineage.segments:
        if segment.user_attrs["ended"] in (PAUSED, COMPLETE):
            checkpoint = segment.user_attrs["progress"]["checkpoint"]
            assert checkpoint in names, f"#{lineage.number:02d}: {checkpoint} is not there"
            load(store, checkpoint)


def assert_as_undisturbed(workplace: Workplace, study: Study, lineage: Lineage, folder: Path) -> None:
    """Parameters, weights, optimizer and random state, and curves: all are those of an undisturbed training."""
    where = f"#{lineage.number:02d}"
    store = workplace.store(str(lineage.run_id))
    manifest, state = load(store, lineage.progress["checkpoint"])
    undisturbed, expected = train_undisturbed(study, lineage, folder)
    assert manifest.position == undisturbed.position, where
    assert manifest.step == undisturbed.step, where
    assert_same_tensors(state, expected, where)
    assert curve(manifest.history) == curve(undisturbed.history), where
    assert manifest.best is not None
    assert undisturbed.best is not None
    assert (manifest.best.epoch, manifest.best.value) == (undisturbed.best.epoch, undisturbed.best.value), where
    # The study and MLflow say the same, each epoch once.
    monitor = study.spec.monitor
    values = {report.epoch: report.metrics[monitor] for report in undisturbed.history}
    assert lineage.head.intermediate_values == values, where
    for metric in undisturbed.history[0].metrics:
        points = [(p.step, p.value) for p in workplace.client.get_metric_history(str(lineage.run_id), metric)]
        assert points == [(report.epoch, report.metrics[metric]) for report in undisturbed.history], (where, metric)


def curve(history: Sequence[Report]) -> list[tuple[int, dict[str, float]]]:
    return [(report.epoch, dict(report.metrics)) for report in history]


class _Until(LocalSegment):
    """Training in a folder that stops after an epoch."""

    def __init__(self, folder: Path, epochs: int) -> None:
        super().__init__(folder)
        self._epochs = epochs

    def after_epoch(self, report: Report) -> str | None:
        return PAUSED if report.epoch == self._epochs else None


def train_undisturbed(study: Study, lineage: Lineage, folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """The checkpoint of the same configuration at the same epoch; its parameters are drawn anew."""
    spec, experiment = study.spec, load_experiment(Site.of(study).file).experiment
    assert experiment.suggest is not None
    seed = seed_for(spec.seed, lineage.number)
    drawn = experiment.suggest(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask())
    assert lineage.config == to_params(drawn), lineage.number
    train(
        experiment,
        from_params(experiment.config, lineage.config),
        segment=_Until(folder, lineage.epochs),
        seed=seed,
        max_epochs=spec.max_epochs,
        threads=Site.of(study).threads,
        data={},
        origin={},
        checkpoint_every_s=60.0,
    )
    store = FolderStore(folder)
    return load(store, store.names()[-1])


def endings(lineages: dict[int, Lineage]) -> Counter[str]:
    """How often segments ended why."""
    return Counter(ended for lineage in lineages.values() for ended in lineage.endings)
