"""quick.py, each batch of which takes BATCH_S seconds."""

import os
import time

import quick

from pipeline import Run

_note = quick.note


def note(run: Run, epoch: int, batch: int) -> None:
    _note(run, epoch, batch)
    time.sleep(float(os.environ.get("BATCH_S", "0")))


quick.note = note
experiment = quick.experiment
