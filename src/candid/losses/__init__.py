"""Objectives over a query, its positive and the other items.

Each is a pure function of tensors and a class that holds its settings. To add one: a file
with the class and its nested ``Config``, and one line in ``LOSSES``. ``SampledSoftmaxLoss`` and
``InBatchSoftmaxLoss`` are for training loops that are not ours: modules that draw as well.
"""

import typing
from importlib import import_module
from typing import Any, Final

from candid.losses.config import LossComponent, LossConfig
from candid.losses.corrected import Correction, corrected_log_softmax
from candid.losses.full_softmax import FullSoftmax, full_softmax
from candid.losses.in_batch_softmax import in_batch_softmax
from candid.losses.output import ItemEmbeddings, Loss, LossOutput
from candid.losses.pointwise import BCE, GBCE, binary_cross_entropy
from candid.losses.sampled_softmax import SampledSoftmax, sampled_softmax

if typing.TYPE_CHECKING:
    from candid.losses.in_batch_softmax_loss import InBatchSoftmaxLoss
    from candid.losses.sampled_softmax_loss import SampledSoftmaxLoss

LOSSES: Final = {
    "full_softmax": FullSoftmax,
    "sampled_softmax": SampledSoftmax,
    "bce": BCE,
    "gbce": GBCE,
}
"""Losses by the name used in recipes."""

__all__ = [
    "BCE",
    "GBCE",
    "LOSSES",
    "Correction",
    "FullSoftmax",
    "InBatchSoftmaxLoss",
    "ItemEmbeddings",
    "Loss",
    "LossComponent",
    "LossConfig",
    "LossOutput",
    "SampledSoftmax",
    "SampledSoftmaxLoss",
    "binary_cross_entropy",
    "corrected_log_softmax",
    "full_softmax",
    "in_batch_softmax",
    "sampled_softmax",
]

_ON_FIRST_USE = {
    "InBatchSoftmaxLoss": "in_batch_softmax_loss",
    "SampledSoftmaxLoss": "sampled_softmax_loss",
}
"""Modules for other training loops: they load torch's compiler, which takes a second."""


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'candid.losses' has no attribute {name!r}")
    return getattr(import_module(f"candid.losses.{_ON_FIRST_USE[name]}"), name)
