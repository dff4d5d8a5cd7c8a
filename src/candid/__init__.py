"""candid: honest sampled softmax for retrieval models.

The names below are the front door; each is loaded from its part on first use, so that
``import candid`` costs nothing. So are the parts themselves: ``candid.samplers.Uniform``
works after ``import candid`` alone.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from candid.version import __version__

if TYPE_CHECKING:
    from candid.candidates import Candidates
    from candid.config import RunConfig, default_recipe, load_recipe
    from candid.data import DataConfig, PreparedDataset, open_dataset
    from candid.data.prepare import prepare
    from candid.errors import CandidError
    from candid.evaluation import evaluate
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
    from candid.runs import evaluate_run, load_run, train_run
    from candid.samplers import SAMPLERS, with_negatives
    from candid.towers import TOWERS, RetrievalModel

__all__ = [
    "INDEXES",
    "LOSSES",
    "SAMPLERS",
    "TOWERS",
    "CandidError",
    "Candidates",
    "DataConfig",
    "InBatchSoftmaxLoss",
    "LossOutput",
    "PreparedDataset",
    "RetrievalModel",
    "RunConfig",
    "SampledSoftmaxLoss",
    "__version__",
    "corrected_log_softmax",
    "default_recipe",
    "evaluate",
    "evaluate_run",
    "full_softmax",
    "in_batch_softmax",
    "load_recipe",
    "load_run",
    "open_dataset",
    "prepare",
    "sampled_softmax",
    "train_run",
    "with_negatives",
]

_HOMES = {
    "config": ("RunConfig", "default_recipe", "load_recipe"),
    "data": ("DataConfig", "PreparedDataset", "open_dataset", "prepare"),
    "errors": ("CandidError",),
    "evaluation": ("evaluate",),
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
    "candidates": ("Candidates",),
    "samplers": ("SAMPLERS", "with_negatives"),
    "runs": ("evaluate_run", "load_run", "train_run"),
    "towers": ("TOWERS", "RetrievalModel"),
}


def __getattr__(name: str) -> Any:
    home = next((part for part, names in _HOMES.items() if name in names), None)
    if home is not None:
        return getattr(import_module(f"candid.{home}"), name)
    if name.startswith("_") or find_spec(f"candid.{name}") is None:
        raise AttributeError(f"module 'candid' has no attribute {name!r}")
    return import_module(f"candid.{name}")


def __dir__() -> list[str]:
    return __all__
