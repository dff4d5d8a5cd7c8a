"""What evaluation and serving need of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from candid.batches import Queries
from candid.towers import EncodeProgress

StageProgress = Callable[[str, int, int], None]
"""Told of work in stages: (stage, done, in all)."""


class TwoTowerModel(Protocol):
    """Users and items to vectors whose dot product is the logit."""

    @property
    def reads_history(self) -> bool:
        """Whether the answer depends on the history."""
        ...

    @property
    def needs_history(self) -> bool:
        """Whether a query without history has no answer."""
        ...

    @property
    def needs_user(self) -> bool:
        """Whether someone who is no user of the dataset has no answer."""
        ...

    def encode_queries(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D]."""
        ...

    def encode_catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode every item, on the device of the model: [V, D].

        Args:
            progress: called with (items encoded, items in all) where that takes a while.
        """
        ...


def encoded_catalog(model: TwoTowerModel, progress: StageProgress | None) -> Tensor:
    """Encode every item, in a stage of its own: [V, D]."""
    if progress is None:
        return model.encode_catalog()
    return model.encode_catalog(partial(progress, "encoding items"))


@contextmanager
def inference(model: TwoTowerModel) -> Iterator[None]:
    """Run without gradients and, for a module, without dropout; its mode is put back."""
    was_training = isinstance(model, nn.Module) and model.training
    if was_training and isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training and isinstance(model, nn.Module):
            model.train()
