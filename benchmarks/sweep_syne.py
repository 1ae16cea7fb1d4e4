"""The script that Syne Tune starts for each trial."""

from benchmarks.sweep_peers import syne_trial

syne_trial()
