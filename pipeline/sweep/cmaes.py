"""CMA-ES (Hansen 2016, arXiv:1604.00772) that keeps no state: it is told all generations again for each draw.

Optuna's own pickles its optimizer into the study's database, in the trial that closes a generation: when that trial is
continued or fails, the state falls back. What is kept here is the generation that each point was drawn in.
"""

from collections.abc import Mapping
from typing import Any

import cmaes
import numpy as np
import optuna
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

GENERATION = "cmaes:generation"  # system attribute of a trial


class CmaEs(RandomSampler):
    """Draws numbers by CMA-ES; categories, and whatever the first configuration needs, at random."""

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed)
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        space = IntersectionSearchSpace().calculate(study, use_cache=True)
        return {
            name: distribution
            for name, distribution in space.items()
            if isinstance(distribution, FloatDistribution | IntDistribution) and not distribution.single()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        space = _SearchSpaceTransform(dict(search_space), transform_0_1=True)
        sign = 1 if study.direction is optuna.study.StudyDirection.MINIMIZE else -1
        results = [
            (one, space.transform({name: one.params[name] for name in search_space}), sign * float(one.value or 0))
            for one in study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)
        ]
        optimizer = self._fresh(space, [(x, value) for one, x, value in results if one.number < 0])
        generations: dict[int, list[tuple[Any, float]]] = {}
        for one, x, value in results:
            if GENERATION in one.system_attrs:
                generations.setdefault(one.system_attrs[GENERATION], []).append((x, value))
        while len(told := generations.get(optimizer.generation, [])) >= optimizer.population_size:
            optimizer.tell(told[: optimizer.population_size])
        optimizer._rng.seed(self._seed)  # of this configuration: a state that is the same draws another point
        study._storage.set_trial_system_attr(trial._trial_id, GENERATION, optimizer.generation)
        return space.untransform(optimizer.ask())

    def _fresh(self, space: _SearchSpaceTransform, others: list[tuple[Any, float]]) -> cmaes.CMA:
        """Starts in the middle; with results of another study from what they say is good."""
        mean, sigma, cov = np.full(len(space.bounds), 0.5), 1 / 6, None
        if others:
            mean, sigma, cov = cmaes.get_warm_start_mgd(others)
        return cmaes.CMA(
            mean=mean,
            sigma=max(sigma, 1e-10),
            cov=cov,
            bounds=space.bounds,
            n_max_resampling=10 * len(space.bounds),
            seed=self._seed,
        )
