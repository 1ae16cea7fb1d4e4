"""A tracking database, as in the tests of tracking."""

from tests.tracking.conftest import experiment_id, tracking

__all__ = ["experiment_id", "tracking"]
