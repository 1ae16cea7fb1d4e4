"""A machine that is cut off from the others and comes back."""

from tests.namespaces import run_alone


def test_a_machine_that_was_cut_off_has_lost_its_trial():
    run_alone("integration/cut_off_alone.py")
