"""The fit of a baseline to a dataset, with tuned or given settings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candid.component import lookup
from candid.config import default_recipe, validated
from candid.data import PreparedDataset, as_dataset
from candid.evaluation import EvaluationConfig
from candid.runs.baseline_folder import FORMAT
from candid.runs.fitted_baseline import FittedBaseline
from candid.runs.folder import dataset_facts
from candid.version import __version__

if TYPE_CHECKING:
    from candid.baselines import Baseline


def fit_baseline(
    data: PreparedDataset | Path | str,
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    tuning: bool = True,
    evaluation: EvaluationConfig | None = None,
    seconds: float | None = None,
) -> FittedBaseline:
    """Fit a baseline to the training rows of a dataset, tuned on its validation targets.

    Args:
        data: a prepared dataset, or its folder.
        name: in ``candid.baselines.BASELINES``, such as "item_knn".
        settings: keys of the baseline's ``Config``; nothing is tuned. None: tuned ones.
        tuning: whether to tune; a dataset without validation targets gives the defaults.
        evaluation: metric of the tuning, and whether seen items are hidden; None: those of the
            default recipe for the dataset.
        seconds: CPU time after which tuning stops; None: no limit.

    Raises:
        ConfigError: the name or a setting is unknown, or the baseline cannot be fitted to such
            data.
        DataError: the dataset has no training interaction, or no validation target that can be
            measured.

    Example:
        >>> baseline = candid.fit_baseline("data/films", "markov")
        >>> baseline.recommend(histories=[[260, 1196]], k=5)
    """
    # Here, because only these functions need scipy.
    from candid.baselines import BASELINES, fit_tuned, training_rows

    dataset = as_dataset(data)
    baseline = lookup(BASELINES, "baseline", name)
    config = default_recipe(dataset=dataset).evaluation if evaluation is None else evaluation
    if settings is not None:
        model = baseline.fit(
            training_rows(dataset), validated(baseline.Config, settings, f"baseline {name}")
        )
        return fitted_baseline(name, model, dataset, config)
    tuned = fit_tuned(dataset, name, config, tuning=tuning, seconds=seconds)
    return fitted_baseline(name, tuned.model, dataset, config, tuned.validation, tuned.trials)


def fitted_baseline(
    name: str,
    model: Baseline,
    dataset: PreparedDataset,
    evaluation: EvaluationConfig,
    validation: float | None = None,
    trials: int = 0,
) -> FittedBaseline:
    """Return a fitted baseline with its dataset, ready to be saved.

    Args:
        name: in ``candid.baselines.BASELINES``.
        model: fitted to ``dataset``.
        dataset: the prepared dataset.
        evaluation: settings of evaluations.
        validation: validation metric of the settings; None: they were not tuned.
        trials: settings that were measured on validation.
    """
    manifest = {
        "format": FORMAT,
        "candid": __version__,
        "baseline": name,
        "settings": model.config.model_dump(mode="json"),
        "tuning": None
        if validation is None
        else {"metric": evaluation.metric, "validation": validation, "trials": trials},
        "evaluation": evaluation.model_dump(mode="json"),
        "dataset": dataset_facts(dataset),
        "command": shlex.join(sys.argv),
    }
    return FittedBaseline(name, model, dataset, evaluation, manifest)
