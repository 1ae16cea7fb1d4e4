"""Ray, where nothing but loopback is."""

from tests.namespaces import run_alone


def test_a_sweep_on_ray_survives_kills_and_outages():
    run_alone("integration/ray_alone.py")
