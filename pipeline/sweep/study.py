"""A study in its storage: opened safely, read as lineages, changed by claims and successors alone.

Optuna's rule that a finished trial is immutable is the fence: a worker whose trial was ended by another
finds out at its next write (`Fenced`) and drops it.
"""

import copy
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import ThawError, UsageError
from pipeline.sweep import process
from pipeline.sweep.lineage import DUPLICATE, LOST, MAX_RETRIES, PREEMPTED, Lineage, Lineages, duplicates
from pipeline.sweep.rows import CachedRows, RowStorage
from pipeline.sweep.spec import StudySpec, refuse_change
from pipeline.sweep.storage import GRACE_S, is_away, open_storage, redacted

T = TypeVar("T")
CLAIMANT = "claimant."  # prefix of the attributes that name who tried to claim a trial
FIXED = "fixed_params"  # Optuna's system attribute of an enqueued trial: what is not left to the sampler


class Fenced(Exception):
    """This trial was ended by another process; what this one does with it no longer counts."""


def study_names(url: str) -> list[str]:
    """The studies of a database that were made here, and finished being created; Optuna's own may be there too."""
    storage = open_storage(url)
    mine = [
        one for one in storage.get_all_studies() if {"spec", "site"} <= set(storage.get_study_user_attrs(one._study_id))
    ]
    return sorted(one.study_name for one in mine)


class Study:
    """One study. Every method is safe to call from any number of processes, and to die in."""

    def __init__(self, name: str, url: str, storage: RowStorage, study_id: int) -> None:
        self.name = name
        self.url = url
        self.storage = CachedRows(storage)
        self._heartbeats = storage
        self._once = self.storage  # for what must not be repeated when its answer was lost
        self._lineages: Lineages | None = None
        self._works_since_s: float | None = time.monotonic()  # None: it did not, the last time
        self.supervisor: int | None = None  # the process that watches this one
        self.id = study_id

    @classmethod
    def load(cls, name: str, url: str) -> "Study":
        """Raises: UsageError, if there is no such study; the names there are come with it."""
        storage = open_storage(url)
        try:
            return cls(name, url, storage, storage.get_study_id_from_name(name))
        except KeyError:
            names = ", ".join(sorted(s.study_name for s in storage.get_all_studies())) or "none yet"
            raise UsageError(f"--study {name}: no such study in {redacted(url)}; there: {names}") from None

    @classmethod
    def open(
        cls,
        name: str,
        url: str,
        spec: StudySpec,
        *,
        accept_change: bool,
        first: Callable[[], Mapping[str, Any]] = dict,
    ) -> "Study":
        """Creates a study, or continues the one of this name if its spec is the same or only asks for more.

        `first` are attributes of a new one.

        Raises:
            UsageError: the name is taken by another spec; the message holds the difference.
        """
        storage = open_storage(url)
        directions = [optuna.study.StudyDirection[one.upper()] for one in spec.objectives.values()]
        try:
            study = cls(name, url, storage, storage.get_study_id_from_name(name))
        except KeyError:
            given = first()  # may refuse, and then nothing is left behind
            try:
                study_id = storage.create_new_study(directions, name)
            except optuna.exceptions.DuplicatedStudyError:  # another was faster
                study_id = storage.get_study_id_from_name(name)
            study = cls(name, url, storage, study_id)
        else:
            given = {} if "spec" in study.attrs else first()
        stored = study.attrs.get("spec")
        if stored is None:  # new, or its creator was killed before this line
            for attribute, value in given.items():
                study.set_attr(attribute, value)
            study.set_attr("spec", spec.to_json())
            return study
        differences = spec.differences(StudySpec.from_json(stored))
        refuse_change(name, differences, accept=accept_change)
        if differences:
            study.accept(differences)
        return study

    def close(self) -> None:
        """Closes its connections."""
        self._heartbeats.engine.dispose()

    def through(self, wrap: Callable[[Any], Any]) -> "Study":
        """The same study, whose storage is what `wrap` makes of it."""
        other = copy.copy(self)
        other.storage, other._heartbeats = wrap(self.storage), wrap(self._heartbeats)
        other._lineages = None  # each has its own: it is not for two threads
        return other

    def accept(self, differences: Mapping[str, tuple[Any, Any]]) -> None:
        """Records that the user accepted changed code or data, or asked for more, and continues with it."""
        entry = {"time_s": time.time(), **{name: list(pair) for name, pair in differences.items()}}
        self.set_attr("accepted_changes", [*self.attrs.get("accepted_changes", []), entry])
        changed = {name: new for name, (_, new) in differences.items()}
        self.set_attr("spec", replace(self.spec, **changed).to_json())

    @property
    def spec(self) -> StudySpec:
        stored = self.attrs.get("spec")
        if stored is None:
            raise ThawError(f"study {self.name!r} was not finished being created; run the command that began it")
        return StudySpec.from_json(stored)

    @property
    def attrs(self) -> dict[str, Any]:
        return self.storage.get_study_user_attrs(self.id)

    def set_attr(self, name: str, value: Any) -> None:
        self.storage.set_study_user_attr(self.id, name, value)

    def trials(self) -> list[FrozenTrial]:
        return self.storage.get_all_trials(self.id, deepcopy=False)

    def with_newer(self, trials: Sequence[FrozenTrial], *, again: Collection[int] = ()) -> list[FrozenTrial]:
        """All trials: as they were when these were read, but for those numbered `again`, and those created since."""
        last = trials[-1]._trial_id if trials else -1
        read = [self.storage.get_trial(one._trial_id) if one.number in again else one for one in trials]
        return [*read, *self.storage.newer_trials(self.id, last)]

    def lineages(self, trials: Sequence[FrozenTrial] | None = None) -> dict[int, Lineage]:
        """`trials` are all of the study, if they have just been read: with many that run it takes long."""
        if self._lineages is None:
            self._lineages = Lineages(int(self.attrs.get("max_retries", MAX_RETRIES)))
        return self._lineages.of(self.trials() if trials is None else trials)

    def renewed(self, lineage: Lineage) -> Lineage:
        """The lineage with its newest segment as it is now; of the others nothing is read."""
        return replace(lineage, segments=(*lineage.segments[:-1], self.storage.get_trial(lineage.head._trial_id)))

    def limit_retries(self, max_retries: int) -> None:
        """How many segments in a row may be lost, or raise, from now on; for who loads the study after this."""
        if self.attrs.get("max_retries", MAX_RETRIES) != max_retries:
            self.set_attr("max_retries", max_retries)
        self._lineages = Lineages(max_retries)

    def add_configuration(
        self,
        number: int,
        *,
        until: int,
        config: Mapping[str, Any] | None = None,
        point: Mapping[str, Any] | None = None,
    ) -> int:
        """Creates the first segment of a configuration, for whoever claims it; returns the id of its trial.

        `point` are the parameters that are given; the sampler draws the others.
        """
        attrs: dict[str, Any] = {"configuration": number, "parent": None, "until": until, "start": None}
        if config is not None:
            attrs["config"] = dict(config)
        return self._create(attrs, None, {FIXED: dict(point)} if point else {})

    def add_successor(self, lineage: Lineage, *, until: int, reopened: bool = False, **budget: Any) -> int:
        """Creates the segment that continues a configuration, for whoever claims it; returns the id of its trial.

        Retry, promotion, reopening and extending all come here. Two that continue the same segment do no harm: the
        lowest trial number wins. `budget` is what an extension gives it: `max_epochs` and `schedule`.
        """
        parent = lineage.head
        kept = ("configuration", "config", "run_id", "progress", "reopened", "max_epochs", "schedule")
        attrs = {name: parent.user_attrs[name] for name in kept if name in parent.user_attrs}
        attrs |= {"parent": parent.number, "until": until, "start": lineage.progress["checkpoint"]}
        if reopened:
            attrs |= {"reopened": True, "fresh": True}  # `fresh` is not handed on: failures are counted from here
        attrs |= budget
        # Without its `config` it was interrupted while it was drawn, and is drawn anew as a whole, but what was given.
        drawn = "config" in attrs
        given = {name: value for name, value in parent.system_attrs.items() if drawn or name == FIXED}
        return self._create(attrs, parent if drawn else None, given)

    def _create(self, attrs: dict[str, Any], like: FrozenTrial | None, system_attrs: dict[str, Any]) -> int:
        template = optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=like.params if like else {},
            distributions=like.distributions if like else {},
            intermediate_values=like.intermediate_values if like else {},
            system_attrs=system_attrs,
            user_attrs=attrs,
        )
        return int(self.storage.create_new_trial(self.id, template))

    def claim(self, trial: FrozenTrial) -> bool:
        """Makes a waiting trial this process's own. Returns False when another was faster.

        The heartbeat and the claimant are written first, so that whoever is killed right after the claim is
        found. Each claimant writes an attribute of its own: the slower would else overwrite the owner's name.
        """
        me = process.identity(self.supervisor)
        try:
            self._heartbeats.record_heartbeat(trial._trial_id)
            self.set(trial._trial_id, f"{CLAIMANT}{uuid.uuid4().hex[:12]}", me)
            try:
                if not self._once.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return False
            except Exception as error:
                if is_away(error):
                    # Nobody can tell whose it is by now. It is ended, and its successor is claimed.
                    self.end(trial._trial_id, TrialState.FAIL, PREEMPTED)
                    return False
                raise
            self.set(trial._trial_id, "worker", me)
        except (Fenced, optuna.exceptions.UpdateFinishedTrialError):
            return False
        return True

    def beat(self, trial_id: int) -> None:
        self._heartbeats.record_heartbeat(trial_id)

    def silences(self) -> dict[int, float]:
        """Seconds since the last heartbeat of each trial that runs, by the database's clock."""
        return self._heartbeats.silences(self.id)

    def set(self, trial_id: int, name: str, value: Any) -> None:
        """Sets an attribute of a trial. Raises: Fenced."""
        self._fenced(lambda: self.storage.set_trial_user_attr(trial_id, name, value))

    def report(self, trial_id: int, epoch: int, value: float) -> None:
        """Reports the monitored value after an epoch. Raises: Fenced."""
        self._fenced(lambda: self.storage.set_trial_intermediate_value(trial_id, epoch, value))

    def end(self, trial_id: int, state: TrialState, ended: str, *objectives: float) -> None:
        """Ends a trial for ever, with the values of its objectives if it is complete. Raises: Fenced."""
        self.set(trial_id, "ended", ended)
        values = objectives or None
        try:
            self._fenced(lambda: self._once.set_trial_state_values(trial_id, state, values))
        except Exception as error:
            if not is_away(error):
                raise
            if self.storage.get_trial(trial_id).state is not state:  # else it was done, and the answer was lost
                self.end(trial_id, state, ended, *objectives)

    def constrain(self, trial_id: int, name: str, value: float) -> None:
        """Sets a constraint as Optuna's `Trial.set_constraint` does, but also once more. Raises: Fenced."""
        self._fenced(lambda: self.storage.set_trial_system_attr(trial_id, f"constraints:{name}", value))

    def _fenced(self, write: Callable[[], T]) -> T:
        try:
            return write()
        except optuna.exceptions.UpdateFinishedTrialError as error:
            raise Fenced(str(error)) from error

    def close_dead(self, ended: str = LOST, *, trials: Sequence[FrozenTrial] | None = None) -> list[FrozenTrial]:
        """Ends the trials of processes that are gone, and those that lost against a lower number.

        `ended` is why the dead have ended: LOST counts against their configurations. `trials` are all of the study, if
        they have just been read.

        Returns the trials of the dead. Idempotent; it may be cut short anywhere.
        """
        try:
            trials = self.trials() if trials is None else trials
            stale = set(self._heartbeats._get_stale_trial_ids(self.id))
        except Exception:
            self.was_away()
            raise
        now_s = time.monotonic()
        if self._works_since_s is None:
            self._works_since_s = now_s
        if now_s - self._works_since_s < GRACE_S:
            stale = set()  # while the storage was away, the living could not say so either
        for trial in duplicates(trials):
            self._try_end(trial, DUPLICATE)
        return [
            trial
            for trial in trials
            if trial.state is TrialState.RUNNING and _gone(trial, stale) and self._try_end(trial, ended)
        ]

    def was_away(self) -> None:
        """Its storage did not answer: for a grace period nobody's silence means anything."""
        self._works_since_s = None

    def _try_end(self, trial: FrozenTrial, ended: str) -> bool:
        try:
            self.end(trial._trial_id, TrialState.FAIL, ended)
        except Fenced:
            return False
        return True


def _gone(trial: FrozenTrial, stale: set[int]) -> bool:
    attrs = trial.user_attrs
    # Killed between the claim and its next write, the owner is one of the claimants.
    owners = [attrs["worker"]] if "worker" in attrs else [v for n, v in attrs.items() if n.startswith(CLAIMANT)]
    if not owners:
        return trial._trial_id in stale
    return all(_is_gone(owner, is_silent=trial._trial_id in stale) for owner in owners)


def _is_gone(owner: Mapping[str, Any], *, is_silent: bool) -> bool:
    if process.is_elsewhere(owner):
        return is_silent
    if process.is_dead(owner):
        return not process.is_watched(owner)  # its supervisor closes it at once, and knows more about its end
    # A slow batch is no reason to take its trial away, while somebody is there to see whether it hangs.
    return is_silent and process.is_orphan(owner)
