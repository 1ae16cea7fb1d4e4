"""What a command can be told, where one flag has no sense without another."""

import pytest

from pipeline import UsageError
from pipeline.commands import ResumeOptions, SweepOptions, WorkerOptions
from pipeline.session import Reopening


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"configuration": 7, "top": 3}, "give either --configuration NUMBER or --top COUNT"),
        ({"top": 0, "max_epochs": 81}, "--top 0: expected at least 1"),
        ({"max_epochs": 81}, "--max-epochs 81: of which"),
        ({"configuration": 7, "schedule": "keep"}, "--schedule keep: it is for more epochs than planned"),
    ],
)
def test_flags_of_resume_that_make_no_sense_together_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        ResumeOptions(study="s", **options)


def test_what_is_reopened_is_what_was_said():
    assert ResumeOptions(study="s").reopening() is None
    assert ResumeOptions(study="s", configuration=7).reopening() == Reopening(configuration=7)
    assert ResumeOptions(study="s", top=3).reopening() == Reopening(top=3)
    told = ResumeOptions(study="s", top=3, max_epochs=81, schedule="stretch")
    assert told.reopening() == Reopening(top=3, max_epochs=81, schedule="stretch")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"once": True, "forever": True}, "give either --once or --forever"),
        ({"workers": 0}, "--workers 0: expected at least 1"),
        ({"grace_s": 0.0}, "--grace-s 0.0: expected more than 0"),
    ],
)
def test_flags_of_worker_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        WorkerOptions(study="s", **options)


def test_how_long_a_worker_works_is_what_was_said():
    assert WorkerOptions(study="s").how().until == "over"
    assert WorkerOptions(study="s", once=True).how().until == "segment"
    assert WorkerOptions(study="s", forever=True).how().until == "stopped"


def test_the_processes_of_a_trial_are_one_or_more():
    assert SweepOptions().how().processes is None
    assert SweepOptions(workers=3, processes_per_trial=2).processes == 6
    assert SweepOptions(processes_per_trial=2).how().processes == 2
    with pytest.raises(UsageError, match="--processes-per-trial 0: expected at least 1"):
        SweepOptions(processes_per_trial=0)
