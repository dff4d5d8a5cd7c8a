"""Optuna: the values of the next trial, and whether a trial is worse than the earlier ones.

The file of trials is the only storage: each choice builds a study in memory from it. The values
of a trial depend on the seed, its number and the earlier trials, so a resumed search makes the
same choices as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from candid.errors import ConfigError
from candid.tuning.space import Choices, Space
from candid.tuning.trials import Trial, TrialStatus

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

RANDOM_TRIALS: Final = 8
"""Trials with random values before the sampler models the results (TPE)."""

FULL_TRIALS: Final = 4
"""Complete trials before one may be pruned."""

ATTEMPTS: Final = 50
"""Samples of values, all of earlier trials, after which the space counts as exhausted."""


def check_optuna() -> None:
    """Refuse to search without Optuna.

    Raises:
        ConfigError: it is not installed; the message has the command.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "candid tune needs optuna, which is not installed; run pip install "
            "'candid-retrieval[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def next_values(space: Space, trials: Sequence[Trial], seed: int) -> dict[str, Any] | None:
    """Choose the values of the next trial by a tree-structured Parzen estimator.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011, as in
    Optuna's ``TPESampler``.

    Args:
        space: of the search.
        trials: all earlier trials, ended.
        seed: of the search.

    Returns:
        the values by key, which no earlier trial has; None if ``ATTEMPTS`` samples found only
        values of earlier trials.
    """
    import optuna

    distributions = _distributions(space)
    earlier = [trial.values for trial in trials]
    for attempt in range(ATTEMPTS):
        entropy = np.random.SeedSequence([seed, len(trials), attempt])
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS,
            multivariate=False,
            constant_liar=False,
            seed=int(entropy.generate_state(1)[0]),
        )
        study = _study(space, trials, distributions, sampler)
        chosen = _values(space, study.ask(distributions).params)
        if chosen not in earlier:
            return chosen
    return None


def is_worse(trial: Trial, trials: Sequence[Trial], warmup: int) -> bool:
    """Whether a running trial should be pruned.

    The best value of the trial so far is below the median of the earlier complete trials after
    the same epoch (the median rule of Golovin et al., Google Vizier, KDD 2017, as in Optuna's
    ``MedianPruner``).

    Args:
        trial: with at least one validation.
        trials: all earlier trials.
        warmup: epochs during which no trial is pruned.
    """
    import optuna

    study = optuna.create_study(direction="maximize")
    study.add_trials([_frozen(one, {}, {}) for one in trials if one.validations])
    pruner = optuna.pruners.MedianPruner(n_startup_trials=FULL_TRIALS, n_warmup_steps=warmup)
    running = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, intermediate_values=dict(trial.validations)
    )
    return pruner.prune(study, running)


def _study(
    space: Space,
    trials: Sequence[Trial],
    distributions: dict[str, BaseDistribution],
    sampler: Any,
) -> Study:
    import optuna

    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        params = {key: _param(space, key, value) for key, value in trial.values.items()}
        study.add_trial(_frozen(trial, params, {key: distributions[key] for key in params}))
    return study


def _frozen(
    trial: Trial, params: dict[str, Any], distributions: dict[str, BaseDistribution]
) -> FrozenTrial:
    """Return a trial as a record of Optuna; a failed one counts as the worst of all."""
    import optuna

    failed = trial.status is TrialStatus.FAILED
    complete = trial.status is TrialStatus.COMPLETE
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.COMPLETE if complete else states.PRUNED,
        value=trial.best if complete else None,
        params=params,
        distributions=distributions,
        intermediate_values={} if failed else dict(trial.validations),
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    distributions: dict[str, BaseDistribution] = {}
    for key, dimension in space.dimensions.items():
        values = dimension.values
        if isinstance(values, Choices):
            # By position: a value may be a table.
            distributions[key] = CategoricalDistribution(tuple(range(len(values.values))))
            continue
        low, high, step = values.low, values.high, values.step
        if step is not None:
            # Rounded: Optuna warns of 6 · 0.1, which is not 0.6.
            high = round(low + math.floor((high - low) / step + 1e-9) * step, 10)
        if values.is_integer:
            distributions[key] = IntDistribution(
                int(low), int(high), log=values.log, step=int(step or 1)
            )
        else:
            distributions[key] = FloatDistribution(
                float(low), float(high), log=values.log, step=step
            )
    return distributions


def _values(space: Space, params: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe for the parameters of a trial of Optuna."""
    chosen = {}
    for key, dimension in space.dimensions.items():
        values, param = dimension.values, params[key]
        chosen[key] = values.values[param] if isinstance(values, Choices) else values.rounded(param)
    return chosen


def _param(space: Space, key: str, value: Any) -> Any:
    values = space.dimensions[key].values
    return values.values.index(value) if isinstance(values, Choices) else value
