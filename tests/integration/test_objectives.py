"""A study with several objectives and a constraint, as Optuna has it afterwards."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from tests.integration.in_process import enter, in_process
from tests.integration.sweeps import QUICK

SEVERAL = QUICK.with_name("several.py")
CONFIGURATIONS = 4


def sweep(folder: Path, results: Connection) -> None:
    import optuna

    from pipeline import UsageError
    from pipeline.experiment import load_experiment
    from pipeline.planning import Plan
    from pipeline.results import Study
    from pipeline.session import Session
    from pipeline.signals import StopRequest
    from pipeline.sweep.pulse import Pulse
    from pipeline.sweep.segment import Keeping
    from pipeline.sweep.worker import work

    session = enter(folder, lambda: Session(None, StopRequest(), None))
    plan = Plan(
        configurations=CONFIGURATIONS, max_epochs=None, min_epochs=1, eta=3, pruner="none", sampler="tpe", seed=0
    )
    file = load_experiment(SEVERAL)
    study = session.open_sweep(file, None, name="several", plan=plan, workers=1, accept_change=False)
    pulse = Pulse(multiprocessing.get_context(), None)
    assert work(study, StopRequest(), pulse=pulse, keeping=Keeping()) == "done"
    found = Study.load("several")
    try:
        refusal = str(found.best)
    except UsageError as error:
        refusal = str(error)
    stored = optuna.load_study(study_name="several", storage=f"sqlite:///{folder / 'optuna.db'}")
    trials = [(trial.params["x"], trial.values, trial.constraints) for trial in stored.trials]
    best = [trial.user_attrs["configuration"] for trial in stored.best_trials]
    results.send((trials, sorted(best), sorted(found.pareto.index), refusal))


def test_each_configuration_has_the_objectives_and_the_constraint_of_its_best_epoch(tmp_path):
    trials, best, pareto, refusal = in_process(sweep, tmp_path)
    assert len(trials) == CONFIGURATIONS
    for x, values, constraints in trials:
        assert values == [x, x]
        assert constraints == {"above": x - 0.7}
    feasible = [number for number, (x, _, _) in enumerate(trials) if x <= 0.7]
    assert 0 < len(feasible) < CONFIGURATIONS
    assert pareto == best == feasible  # of two that are at odds none beats another
    assert refusal == f"study 'several': several objectives leave {len(best)} best ones; see .pareto"
