"""What evaluation and serving need of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from candid.batches import Queries


class Encoder(Protocol):
    """Users and items to vectors whose dot product is the logit."""

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

    def encode_catalog(self) -> Tensor:
        """Encode every item, on the device of the model: [V, D]."""
        ...


@contextmanager
def inference(model: Encoder) -> Iterator[None]:
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
