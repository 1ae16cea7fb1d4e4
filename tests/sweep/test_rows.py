"""Trials read as rows are those that Optuna itself reads."""

import math
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from pipeline.sweep import rows
from pipeline.sweep.storage import open_storage, prepare_storage

STATES = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SPACE = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "width": IntDistribution(4, 128, step=4),
    "kind": CategoricalDistribution(["ä", None, True, 0.5]),
}


def trial(chance: random.Random) -> optuna.trial.FrozenTrial:
    """With anything that a trial may have, or nothing."""
    state = chance.choice(STATES)
    names = chance.sample(sorted(SPACE), chance.randint(0, len(SPACE)))
    params = {"lr": 10 ** chance.uniform(-5, 0), "width": 4 * chance.randint(1, 32), "kind": chance.choice(["ä", None])}
    attrs = {f"a{n}": chance.choice([None, 1, "é", [1, {"b": 0.1}], math.pi]) for n in range(chance.randint(0, 4))}
    values = [chance.choice([0.5, -1e300, math.inf, -math.inf]) for _ in range(2)]
    reports = {step: chance.choice([0.1, math.inf, -math.inf]) for step in range(chance.randint(0, 5))}
    return create_trial(
        state=state,
        values=values if state is TrialState.COMPLETE else None,
        params={name: params[name] for name in names},
        distributions={name: SPACE[name] for name in names},
        user_attrs=attrs,
        system_attrs=dict(reversed(attrs.items())),
        intermediate_values=reports,
    )


@pytest.fixture
def storage(url):
    """Two studies whose trials lie between each other."""
    prepare_storage(url)
    found = open_storage(url)
    assert isinstance(found, rows.RowStorage)
    chance = random.Random(7)
    directions = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    studies = [found.create_new_study(directions, name) for name in ("one", "other")]
    for _ in range(60):
        found.create_new_trial(chance.choice(studies), trial(chance))
    yield found, studies
    found.engine.dispose()


def assert_alike(storage, *arguments):
    mine, optunas = storage._get_trials(*arguments), RDBStorage._get_trials(storage, *arguments)
    assert mine == optunas
    # The order of its parameters is what a trial's are drawn in.
    assert [list(one.params) for one in mine] == [list(one.params) for one in optunas]
    return mine


def test_they_are_alike_whichever_are_asked_for(storage, monkeypatch):
    storage, studies = storage
    for study in studies:
        everything = assert_alike(storage, study, None, set(), -1)
        assert len(everything) > 20
        ids = [one._trial_id for one in everything]
        for states in ((), (TrialState.RUNNING,), (TrialState.COMPLETE, TrialState.FAIL)):
            assert_alike(storage, study, states, set(), -1)
        earlier, last = set(ids[3:15:3]), ids[20]
        some = assert_alike(storage, study, None, earlier, last)
        assert [one._trial_id for one in some] == sorted(earlier) + ids[21:]
        assert assert_alike(storage, study, None, {last, ids[-1]}, ids[-1])
        assert assert_alike(storage, study, None, set(), ids[-1]) == []
        with monkeypatch.context() as few:
            few.setattr(rows, "MOST_IDS", 2)
            assert storage._get_trials(study, None, earlier, last) == some
    with pytest.raises(KeyError):
        storage.get_all_trials(studies[-1] + 1)


def test_a_report_that_is_no_number_stays_none(storage):
    storage, (study, _) = storage
    number = storage.create_new_trial(study)
    storage.set_trial_intermediate_value(number, 3, math.nan)
    found = storage._get_trials(study, None, set(), number - 1)[0]
    assert math.isnan(found.intermediate_values[3])
