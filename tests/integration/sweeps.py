"""What must be true of a study whatever was done to the processes that worked on it."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.checkpoint import load, parse_name
from pipeline.sweep.accepted import trial_of
from pipeline.sweep.lineage import Lineage
from tests.integration.commands import Command, Progress, Trained, Workplace, assert_same_tensors

QUICK = Path(__file__).with_name("quick.py")
BATCHES = 6  # an epoch of quick.py


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A command that works on a study of quick.py, or of what keeps the same history, and what it trains as it does.

    Attributes:
        arguments: of the command, the same each time.
        progress: a line for each batch, as it is trained.
        history: file with the same lines; it outlives everything.
    """

    workplace: Workplace
    arguments: tuple[str | Path, ...]
    progress: Progress
    history: Path

    @classmethod
    def of(cls, workplace: Workplace, *flags: str, experiment: Path = QUICK) -> "Sweep":
        return cls(
            workplace=workplace,
            arguments=("sweep", experiment, *flags),
            progress=workplace.progress(),
            history=workplace.folder / "history",
        )

    def environment(self, gate: str = "") -> dict[str, str]:
        return {**self.progress.environment(gate), "HISTORY": str(self.history)}

    def start(self, *other: str, gate: str = "") -> Command:
        """Starts it, or another command on the same study; training waits after the epoch and batch `gate`."""
        return self.workplace.start(*(other or self.arguments), environment=self.environment(gate))

    def finish(self, *other: str) -> str:
        """Runs it to its end, which must be good."""
        return self.workplace.run(*(other or self.arguments), environment=self.environment())

    def trained(self) -> dict[tuple[str, int], list[int]]:
        """The steps that each segment, as (MLflow run, trial), has ever trained, in order."""
        found: dict[tuple[str, int], list[int]] = {}
        for line in self.history.read_text().splitlines():
            run_id, trial, epoch, batch = line.split()
            found.setdefault((run_id, int(trial)), []).append(int(epoch) * BATCHES + int(batch))
        return found


def step_of(checkpoint: str | None) -> int:
    if checkpoint is None:
        return 0
    parsed = parse_name(checkpoint)
    assert parsed is not None
    return parsed[0].epoch * BATCHES + parsed[0].batch


def assert_sound(sweep: Sweep, *, configurations: int, name: str = "quick") -> dict[int, Lineage]:
    """Each configuration: one lineage and one MLflow run, each step accepted once, every checkpoint whole."""
    workplace, study = sweep.workplace, sweep.workplace.study(name)
    lineages = study.lineages()
    assert list(lineages) == list(range(configurations))
    assert all(trial.state.is_finished() for trial in study.trials())
    runs = {run.info.run_id: run for run in workplace.runs(kind="configuration")}
    assert len(runs) == configurations
    assert {lineage.run_id for lineage in lineages.values()} == set(runs)
    trained = sweep.trained()
    for lineage in lineages.values():
        run = runs[lineage.run_id]
        assert run.data.tags["state"] == ("complete" if lineage.ended == "complete" else "pruned")
        assert run.data.tags["configuration"] == str(lineage.number)
        assert run.data.tags["trials"] == ",".join(str(segment.number) for segment in lineage.segments)
        assert_each_step_accepted_once(lineage, trained)
        assert_checkpoints_verify(workplace, lineage)
        for metric in run.data.metrics:
            steps = [point.step for point in workplace.client.get_metric_history(run.info.run_id, metric)]
            assert steps == list(range(1, lineage.epochs + 1)), (lineage.number, metric)
    (study_run,) = workplace.runs(kind="study", study=name)
    assert study_run.data.tags["state"] == "complete"
    assert {run.info.status for run in workplace.runs()} == {"FINISHED"}
    return lineages


@dataclass(frozen=True, kw_only=True)
class Span:
    """What counts of a segment: the steps from `start` to before `end`."""

    trial: int
    start: int
    end: int


def spans(lineage: Lineage) -> list[Span]:
    """Of each segment. What one had to leave on its machine's disk counts by the word of the one after it."""
    found: list[Span] = []
    for segment in lineage.segments:
        attrs = segment.user_attrs
        start, adopted = step_of(attrs["start"]), attrs.get("adopted")
        if adopted is not None:
            assert trial_of(adopted) == found[-1].trial, (lineage.number, segment.number, adopted)
            assert step_of(adopted) > found[-1].end, (lineage.number, segment.number, adopted)
            start = step_of(adopted)
            found[-1] = replace(found[-1], end=start)
        end = step_of(attrs.get("progress", {"checkpoint": attrs["start"]})["checkpoint"])
        found.append(Span(trial=segment.number, start=start, end=end))
    return found


def assert_each_step_accepted_once(lineage: Lineage, trained: dict[tuple[str, int], list[int]]) -> None:
    assert lineage.run_id is not None
    reached = 0
    for span in spans(lineage):
        where, start = (lineage.number, span.trial), span.start
        assert start == reached, where
        reached = span.end
        steps = trained.get((lineage.run_id, span.trial), [])
        accepted = [step for step in steps if step < reached]
        assert accepted == list(range(start, reached)), where
        # What was lost with the process came after what counts, and no step was trained twice by one segment.
        assert steps == list(range(start, start + len(steps)))
    assert reached == lineage.epochs * BATCHES


def assert_checkpoints_verify(workplace: Workplace, lineage: Lineage) -> None:
    assert lineage.run_id is not None
    assert lineage.best is not None
    store = workplace.store(lineage.run_id)
    starts = {segment.user_attrs["start"] for segment in lineage.segments} - {None}
    for name in {lineage.progress["checkpoint"], lineage.best["checkpoint"], *starts} & set(store.names()):
        load(store, name)
    for name in (lineage.progress["checkpoint"], lineage.best["checkpoint"]):
        assert name in store.names()


def assert_same_results(left: Workplace, right: Workplace, *, configurations: int) -> int:
    """Configurations that got equally far in both are equal to the bit; returns how many those are."""
    compared = 0
    for number in range(configurations):
        one, other = (place.trained(configuration=str(number)) for place in (left, right))
        epochs = min(epochs_of(one), epochs_of(other))
        assert one.run.data.params == other.run.data.params
        assert {n: points[:epochs] for n, points in one.reported.items()} == {
            n: points[:epochs] for n, points in other.reported.items()
        }, number
        if epochs_of(one) == epochs_of(other):
            assert_same_tensors(one.state, other.state)
            compared += 1
    return compared


def epochs_of(trained: Trained) -> int:
    return trained.manifest.position.epoch
