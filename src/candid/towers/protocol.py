"""What a tower is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from candid.batches import Queries
from candid.component import ComponentConfig, tagged
from candid.features import FeatureTable
from candid.towers.padded import PaddedContext, PaddedModule, no_padded_form
from candid.towers.registry import TOWERS

EncodeProgress = Callable[[int, int], None]
"""Told of work that takes a while: (items encoded, items in all)."""


class QueryTower(nn.Module, ABC):
    """Users to vectors.

    Attributes:
        dim: D, the width of the output.
        reads_history: whether the tower's answer depends on the history.
        needs_history: whether it has no answer for a user without one.
        needs_user: whether it has no answer for someone who is no user of the dataset.
        reads_user_features: whether it depends on the features of the user.
        reads_context: whether it depends on the moment of the question.
    """

    dim: int
    reads_history: bool = False
    needs_history: bool
    needs_user: bool = False
    reads_user_features: bool = False
    reads_context: bool = False

    @abstractmethod
    def forward(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D] float."""

    def to_padded(self, context: PaddedContext) -> PaddedModule:
        """Return the tower as a computation on padded tensors, for ``candid export``.

        Args:
            context: longest history, and the form of the features.

        Raises:
            ConfigError: the tower has no padded form.
        """
        raise no_padded_form(self)


class ItemTower(nn.Module, ABC):
    """Items to vectors.

    Attributes:
        dim: D, the width of the output.
        num_items: V; ids are 0..V-1.
        reads_features: whether vectors depend on the features of the items.
    """

    dim: int
    num_items: int
    reads_features: bool = False

    @abstractmethod
    def forward(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64: [n, D] float."""

    @abstractmethod
    def catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode every item, with gradient: [V, D] float.

        Args:
            progress: told how far it is, where that takes more than a look-up.
        """

    def to_padded(self, context: PaddedContext) -> PaddedModule:
        """Return the computation from item features to vectors on padded tensors.

        ``candid export`` needs it only of a tower that reads features: every tower's catalog is
        exported as a table.

        Args:
            context: the form of the features.

        Raises:
            ConfigError: the tower has no padded form.
        """
        raise no_padded_form(self)


@dataclass(frozen=True, slots=True)
class TowerContext:
    """What a tower's config needs to know to build it.

    Attributes:
        num_users: U.
        num_items: V.
        max_length: L, the longest history a batch can hold.
        item_tower: the item tower, present when a query tower is built (so that it may share
            its vectors), None when the item tower itself is.
        item_features: features of the V items, or None where the recipe has none.
        user_features: features of the U users, or None.
        context_features: features of a question's moment (values of no rows: their form), or
            None.
        num_event_types: kinds of interaction that histories hold, 0 where there are none.
        item_is_trained: [V] bool, whether an item is ever a training target; None: all are.
        user_is_trained: [U] bool, whether a user has a training target; None: all have.
        empty_histories: whether training asks about people without a history too.
    """

    num_users: int
    num_items: int
    max_length: int
    item_tower: ItemTower | None = None
    item_features: FeatureTable | None = None
    user_features: FeatureTable | None = None
    context_features: FeatureTable | None = None
    num_event_types: int = 0
    item_is_trained: Tensor | None = None
    user_is_trained: Tensor | None = None
    empty_histories: bool = False


class TowerConfig(ComponentConfig, ABC):
    """Base of every tower's nested ``Config``."""

    @abstractmethod
    def build(self, context: TowerContext) -> QueryTower | ItemTower:
        """Make the tower for a dataset."""


TowerComponent = Annotated[TowerConfig, tagged(TOWERS, "tower")]
"""A config field that holds the config of any registered tower."""
