"""Optuna's database storage, which reads trials as plain rows.

Optuna's own makes an object of every parameter, attribute and reported value, and those of trials that run are read
anew each time: with many of them, that is most of what a claim takes.
"""

import gc
import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import select

MOST_IDS = 50_000  # in one statement, whose length SQLite limits to 1 MB
T = TypeVar("T")


class RowStorage(RDBStorage):
    """Differs in how quickly it reads, and in nothing that it gives."""

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        trial = models.TrialModel
        earlier = {number for number in included_trial_ids if number <= trial_id_greater_than}
        wanted = [trial.study_id == study_id]
        if trial_id_greater_than > -1 and len(earlier) <= MOST_IDS:
            # In the statement itself: a parameter each would cost more than the rows.
            ids: Any = sqlalchemy.bindparam("ids", sorted(earlier), expanding=True, literal_execute=True)
            wanted.append(sqlalchemy.or_(trial.trial_id > trial_id_greater_than, trial.trial_id.in_(ids)))
        if states is not None:
            wanted.append(trial.state.in_([state for state in TrialState if state in states]))

        with _create_scoped_session(self.scoped_session) as session, _uncollected():
            rows = session.connection()

            def read(model: Any, build: Callable[..., Iterable[T]], *columns: str) -> dict[int, list[T]]:
                """What is built of its columns, for each trial in the order in which the rows were written."""
                (key,) = sqlalchemy.inspect(model).primary_key
                query = select(model.trial_id, *(getattr(model, column) for column in columns))
                found = defaultdict(list)
                if cells := rows.execute(query.join(trial).where(*wanted).order_by(key)).all():
                    ids, *given = zip(*cells, strict=True)
                    for trial_id, built in zip(ids, build(*given), strict=True):
                        found[trial_id].append(built)
                return found

            models.StudyModel.find_or_raise_by_id(study_id, session)
            times = (trial._datetime_start_utc, trial._datetime_complete_utc)
            query = select(trial.trial_id, trial.number, trial.state, *times).where(*wanted).order_by(trial.trial_id)
            heads = [
                head
                for head in rows.execute(query).all()
                if head.trial_id > trial_id_greater_than or head.trial_id in earlier
            ]
            if not heads:
                return []
            parameters = read(models.TrialParamModel, _parameters, "param_name", "param_value", "distribution_json")
            values = read(models.TrialValueModel, _values, "objective", "value", "value_type")
            user_attrs = read(models.TrialUserAttributeModel, _attributes, "key", "value_json")
            system_attrs = read(models.TrialSystemAttributeModel, _attributes, "key", "value_json")
            columns = ("step", "intermediate_value", "intermediate_value_type")
            reports = read(models.TrialIntermediateValueModel, _reports, *columns)

        return [
            FrozenTrial(
                number=number,
                state=state,
                value=None,
                values=[value for _, value in sorted(values[trial_id])] if trial_id in values else None,
                datetime_start=_local(start),
                datetime_complete=_local(complete),
                params={name: value for name, value, _ in parameters.get(trial_id, ())},
                distributions={name: distribution for name, _, distribution in parameters.get(trial_id, ())},
                user_attrs=dict(user_attrs.get(trial_id, ())),
                system_attrs=dict(system_attrs.get(trial_id, ())),
                intermediate_values=dict(reports.get(trial_id, ())),
                trial_id=trial_id,
            )
            for trial_id, number, state, start, complete in heads
        ]

    def silences(self, study_id: int) -> dict[int, float]:
        """Seconds since the last heartbeat of each trial that runs, by its id and the database's clock."""
        trial, heartbeat = models.TrialModel, models.TrialHeartbeatModel
        query = (
            select(trial.trial_id, heartbeat.heartbeat, sqlalchemy.func.now())
            .join(heartbeat, heartbeat.trial_id == trial.trial_id)
            .where(trial.study_id == study_id, trial.state == TrialState.RUNNING)
        )
        with _create_scoped_session(self.scoped_session) as session:
            found = session.connection().execute(query).all()
        return {trial_id: (now.replace(tzinfo=None) - beat).total_seconds() for trial_id, beat, now in found}

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        assert self.grace_period is not None
        return [trial_id for trial_id, silent_s in self.silences(study_id).items() if silent_s > self.grace_period]


class CachedRows(_CachedStorage):
    """Optuna's cache of trials that have ended, over `RowStorage`."""

    def newer_trials(self, study_id: int, trial_id: int) -> list[FrozenTrial]:
        """The trials that were created after this one, by their ids; all for -1."""
        with self._lock:
            found = self._backend._get_trials(study_id, None, set(), trial_id)
            self._studies.setdefault(study_id, _StudyInfo())
            self._add_trials_to_cache(study_id, found)  # it draws parameters for no trial that it does not know
        return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """In this block Python looks for no garbage.

    Among so many new objects that all live on, it would go through everything there is over and over again: with 1,000
    trials that took longer than all else.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


_distribution = lru_cache(10_000)(json_to_distribution)


def _parameters(
    names: Sequence[str], values: Sequence[float], distributions: Sequence[str]
) -> Iterable[tuple[str, Any, BaseDistribution]]:
    for name, value, text in zip(names, values, distributions, strict=True):
        distribution = _distribution(text)
        yield name, distribution.to_external_repr(value), distribution


def _attributes(names: Sequence[str], values: Sequence[str]) -> Iterable[tuple[str, Any]]:
    return zip(names, json.loads(f"[{','.join(values)}]"), strict=True)  # one call: they are many


def _values(objectives: Sequence[int], *stored: Sequence[Any]) -> Iterable[tuple[int, float]]:
    return zip(objectives, map(models.TrialValueModel.stored_repr_to_value, *stored), strict=True)


def _reports(steps: Sequence[int], *stored: Sequence[Any]) -> Iterable[tuple[int, float]]:
    read = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    return zip(steps, map(read, *stored), strict=True)


def _local(utc: datetime | None) -> datetime | None:
    """As Optuna gives times: this machine's, without a zone."""
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
