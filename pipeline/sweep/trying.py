"""Trying out a study database: whether a trial can be claimed by one process only, and what time it is there."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import TrialState

from pipeline.errors import ThawError
from pipeline.sweep.lineage import PREEMPTED
from pipeline.sweep.storage import is_postgresql, open_storage
from pipeline.sweep.study import Study

ROUNDS = 20


def race_for_claims(url: str) -> None:
    """Two connections race for the trials of a study that is made for this, and deleted afterwards.

    Raises:
        ThawError: both of them got one, or neither did.
    """
    name = f"check-{uuid.uuid4().hex}"
    storage = open_storage(url)
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], name)
    rivals: list[Study] = []
    try:
        rivals += [Study.load(name, url), Study.load(name, url)]
        with ThreadPoolExecutor(len(rivals)) as threads:
            for number in range(ROUNDS):
                rivals[0].add_configuration(number, until=1)
                trial = rivals[0].trials()[number]
                start = Barrier(len(rivals))
                won = list(threads.map(lambda rival, t=trial, s=start: s.wait() >= 0 and rival.claim(t), rivals))
                if sum(won) != 1:
                    raise ThawError(f"{sum(won)} of two connections got the same trial; this database cannot be shared")
                rivals[0].end(trial._trial_id, TrialState.FAIL, PREEMPTED)
    finally:
        for rival in rivals:
            rival.close()
        storage.delete_study(study_id)
        storage.engine.dispose()


def ahead_s(url: str) -> float | None:
    """How far this machine's clock is ahead of the database's, in seconds; None where it is the same clock."""
    if not is_postgresql(url):
        return None
    storage = open_storage(url)
    with storage.engine.connect() as connection:
        before_s = time.time()
        there_s = float(
            connection.execute(sqlalchemy.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        )
        after_s = time.time()
    storage.engine.dispose()
    return (before_s + after_s) / 2 - there_s
