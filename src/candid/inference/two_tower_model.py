"""The model interface of inference: queries and items to vectors, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from candid.batches import Queries
from candid.towers import EncodeProgress

if TYPE_CHECKING:
    from typing_extensions import TypeIs

StageProgress = Callable[[str, int, int], None]
"""Progress callback of work in stages: (stage, number done, total)."""


class TwoTowerModel(Protocol):
    """A model that encodes queries and items into vectors whose dot product is the logit."""

    @property
    def reads_history(self) -> bool:
        """Whether the query vector depends on the history."""
        ...

    @property
    def needs_history(self) -> bool:
        """Whether the model cannot encode a query without a history."""
        ...

    @property
    def needs_user(self) -> bool:
        """Whether the model cannot encode a query of an anonymous user."""
        ...

    def encode_queries(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D]."""
        ...

    def encode_catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode all V items on the device of the model: [V, D].

        Args:
            progress: called with (items encoded, items in total) during slow encoding.
        """
        ...


@runtime_checkable
class ShardedModel(Protocol):
    """A model of which several processes hold parts: all of them encode at the same time."""

    @property
    def is_sharded(self) -> bool:
        """Whether it is sharded."""
        ...

    @property
    def own_items(self) -> range | None:
        """Items whose vectors this process has; None: it encodes the whole catalog."""
        ...

    def encode_own_items(self) -> Tensor:
        """Encode ``own_items``: [n, D]."""
        ...


def is_sharded(model: object) -> TypeIs[ShardedModel]:
    """Return whether several processes hold parts of a model."""
    return isinstance(model, ShardedModel) and model.is_sharded


def encode_catalog(model: TwoTowerModel, progress: StageProgress | None = None) -> Tensor:
    """Encode all V items and report progress as the stage "encoding items": [V, D]."""
    if progress is None:
        return model.encode_catalog()
    return model.encode_catalog(partial(progress, "encoding items"))


@contextmanager
def inference_mode(model: object) -> Iterator[None]:
    """Disable gradients and, for an ``nn.Module``, dropout; restore the module's mode at exit."""
    was_training = isinstance(model, nn.Module) and model.training
    if was_training and isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training and isinstance(model, nn.Module):
            model.train()
