"""Losses of a query against its positive and the other items.

Each is a pure function of tensors and a class that holds its settings. To add one, write a file
with the class and its nested ``Config``, and add a line to ``registry.py``.

``SampledSoftmaxLoss`` and ``InBatchSoftmaxLoss`` are modules for any training loop: they sample
their candidates themselves.

Each name is imported on first use, so that one module of this package does not load the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from candid.losses.registry import LOSSES

if TYPE_CHECKING:
    from candid.losses.config import LossComponent, LossConfig
    from candid.losses.corrected_softmax import corrected_log_softmax
    from candid.losses.correction import Correction
    from candid.losses.full import FullSoftmax, full_softmax
    from candid.losses.in_batch import in_batch_softmax
    from candid.losses.in_batch_softmax_loss import InBatchSoftmaxLoss
    from candid.losses.learnt_partition import LearntPartition
    from candid.losses.output import ItemEmbeddings, Loss, LossOutput
    from candid.losses.pointwise import BCE, GBCE, binary_cross_entropy
    from candid.losses.sampled import SampledSoftmax, sampled_softmax
    from candid.losses.sampled_loss import SampledLoss
    from candid.losses.sampled_softmax_loss import SampledSoftmaxLoss
    from candid.losses.sharded_full import sharded_full_softmax

_MODULES: Final = {
    "BCE": "pointwise",
    "GBCE": "pointwise",
    "Correction": "correction",
    "FullSoftmax": "full",
    "InBatchSoftmaxLoss": "in_batch_softmax_loss",
    "ItemEmbeddings": "output",
    "LearntPartition": "learnt_partition",
    "Loss": "output",
    "LossComponent": "config",
    "LossConfig": "config",
    "LossOutput": "output",
    "SampledLoss": "sampled_loss",
    "SampledSoftmax": "sampled",
    "SampledSoftmaxLoss": "sampled_softmax_loss",
    "binary_cross_entropy": "pointwise",
    "corrected_log_softmax": "corrected_softmax",
    "full_softmax": "full",
    "in_batch_softmax": "in_batch",
    "sampled_softmax": "sampled",
    "sharded_full_softmax": "sharded_full",
}

__all__ = [
    "BCE",
    "GBCE",
    "LOSSES",
    "Correction",
    "FullSoftmax",
    "InBatchSoftmaxLoss",
    "ItemEmbeddings",
    "LearntPartition",
    "Loss",
    "LossComponent",
    "LossConfig",
    "LossOutput",
    "SampledLoss",
    "SampledSoftmax",
    "SampledSoftmaxLoss",
    "binary_cross_entropy",
    "corrected_log_softmax",
    "full_softmax",
    "in_batch_softmax",
    "sampled_softmax",
    "sharded_full_softmax",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'candid.losses' has no attribute {name!r}")
    return getattr(import_module(f"candid.losses.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
