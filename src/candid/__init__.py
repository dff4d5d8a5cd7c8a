"""Retrieval models for recommender systems, trained with a corrected sampled softmax.

The names below are the public interface. Each is imported on first use, so that ``import candid``
is fast and does not import torch. Packages are imported on first use as well:
``candid.samplers.Uniform`` works after ``import candid`` alone.

Example:
    >>> import candid
    >>> run = candid.train("data/films", out="runs/films")
    >>> run.recommend(users=[12], k=5)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from candid.version import __version__

if TYPE_CHECKING:
    from candid.candidates import Candidates
    from candid.config import RunConfig, default_recipe, load_recipe
    from candid.data import DataConfig, PreparedDataset, open_dataset, prepare
    from candid.errors import CandidError
    from candid.evaluation import EvaluationConfig, EvaluationReport, compare, evaluate
    from candid.features import FEATURES
    from candid.index import INDEXES
    from candid.losses import (
        LOSSES,
        InBatchSoftmaxLoss,
        LossOutput,
        SampledSoftmaxLoss,
        corrected_log_softmax,
        full_softmax,
        in_batch_softmax,
        sampled_softmax,
    )
    from candid.runs import (
        FittedBaseline,
        Run,
        evaluate_recommendations,
        fit_baseline,
        load,
        load_run,
        train,
        train_run,
        write_recommendations,
        write_similar,
    )
    from candid.samplers import SAMPLERS, with_negatives
    from candid.towers import TOWERS, RetrievalModel
    from candid.verification import verify

__all__ = [
    "FEATURES",
    "INDEXES",
    "LOSSES",
    "SAMPLERS",
    "TOWERS",
    "CandidError",
    "Candidates",
    "DataConfig",
    "EvaluationConfig",
    "EvaluationReport",
    "FittedBaseline",
    "InBatchSoftmaxLoss",
    "LossOutput",
    "PreparedDataset",
    "RetrievalModel",
    "Run",
    "RunConfig",
    "SampledSoftmaxLoss",
    "__version__",
    "compare",
    "corrected_log_softmax",
    "default_recipe",
    "evaluate",
    "evaluate_recommendations",
    "fit_baseline",
    "full_softmax",
    "in_batch_softmax",
    "load",
    "load_recipe",
    "load_run",
    "open_dataset",
    "prepare",
    "sampled_softmax",
    "train",
    "train_run",
    "verify",
    "with_negatives",
    "write_recommendations",
    "write_similar",
]

_PACKAGE_OF: Final = {
    name: package
    for package, names in {
        "candidates": ("Candidates",),
        "config": ("RunConfig", "default_recipe", "load_recipe"),
        "data": ("DataConfig", "PreparedDataset", "open_dataset", "prepare"),
        "errors": ("CandidError",),
        "evaluation": ("EvaluationConfig", "EvaluationReport", "compare", "evaluate"),
        "features": ("FEATURES",),
        "index": ("INDEXES",),
        "losses": (
            "LOSSES",
            "InBatchSoftmaxLoss",
            "LossOutput",
            "SampledSoftmaxLoss",
            "corrected_log_softmax",
            "full_softmax",
            "in_batch_softmax",
            "sampled_softmax",
        ),
        "runs": (
            "FittedBaseline",
            "Run",
            "evaluate_recommendations",
            "fit_baseline",
            "load",
            "load_run",
            "train",
            "train_run",
            "write_recommendations",
            "write_similar",
        ),
        "samplers": ("SAMPLERS", "with_negatives"),
        "towers": ("TOWERS", "RetrievalModel"),
        "verification": ("verify",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGE_OF:
        return getattr(import_module(f"candid.{_PACKAGE_OF[name]}"), name)
    if name.startswith("_") or find_spec(f"candid.{name}") is None:
        raise AttributeError(f"module 'candid' has no attribute {name!r}")
    return import_module(f"candid.{name}")


def __dir__() -> list[str]:
    return __all__
