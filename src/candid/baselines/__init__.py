"""Baselines: simple models that a trained model must beat, measured on the same targets.

registry         baselines by name
baseline         the base class, and the weights of a history
training_rows    the interactions that baselines are fitted to
neighbours       the base of baselines that add up neighbours of the items in a history
tuning           the choice of settings on the validation targets
measurement      several baselines fitted, tuned and measured
storage          the arrays of a fitted baseline in a file
report           results as a table and as JSON
beside           a trained model beside the baselines

Each baseline has a module of its own: ``popularity``, ``recent_popularity``, ``item_knn``,
``markov``, ``co_visits``, ``session_knn``, ``ease`` and ``als``.
"""

from candid.baselines.baseline import Baseline, history_matrix
from candid.baselines.beside import ModelBesideBaselines, ModelFacts
from candid.baselines.markov import pair_counts
from candid.baselines.measurement import (
    BaselineResult,
    BaselineResults,
    fit_tuned,
    measure_baselines,
)
from candid.baselines.registry import BASELINES
from candid.baselines.training_rows import TrainingRows, training_rows

__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineResult",
    "BaselineResults",
    "ModelBesideBaselines",
    "ModelFacts",
    "TrainingRows",
    "fit_tuned",
    "history_matrix",
    "measure_baselines",
    "pair_counts",
    "training_rows",
]
