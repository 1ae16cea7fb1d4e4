"""Whether the checkpoints of a study are what their manifests say, and which one a resume would use."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.checkpoint import MlflowStore, load
from pipeline.errors import CheckpointError
from pipeline.sweep.accepted import accepted_checkpoints
from pipeline.sweep.study import Study


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is true of one checkpoint.

    Attributes:
        owner: the configuration, as `#07`, or the run.
        counts: whether the study knows it; what it does not know is left of a worker that had lost its trial.
        problem: why it does not verify, None if it does.
        next: whether a resume would start from it.
    """

    owner: str
    name: str
    size_bytes: int
    counts: bool
    problem: str | None
    next: bool = False


def verify_study(study: Study) -> Iterator[list[Verdict]]:
    """The checkpoints of each configuration, in order; nothing is changed."""
    for lineage in study.lineages().values():
        if lineage.run_id is not None:
            store = MlflowStore(lineage.run_id)
            names = store.names()
            accepted = accepted_checkpoints(lineage.segments, names)
            yield _verdicts(f"#{lineage.number:02d}", store, names, accepted)


def verify_run(run_id: str) -> list[Verdict]:
    """The checkpoints of one MLflow run, without a study to say which of them count."""
    store = MlflowStore(run_id)
    names = store.names()
    return _verdicts(run_id, store, names, names)


def _verdicts(owner: str, store: MlflowStore, names: list[str], accepted: list[str]) -> list[Verdict]:
    found = [_verdict(owner, store, name, counts=name in accepted) for name in names]
    sound = [verdict.name for verdict in found if verdict.counts and verdict.problem is None]
    return [replace(one, next=bool(sound) and one.name == sound[-1]) for one in found]


def _verdict(owner: str, store: MlflowStore, name: str, *, counts: bool) -> Verdict:
    try:
        manifest, _ = load(store, name)
    except CheckpointError as error:
        return Verdict(owner=owner, name=name, size_bytes=0, counts=counts, problem=str(error))
    return Verdict(owner=owner, name=name, size_bytes=manifest.size_bytes, counts=counts, problem=None)
