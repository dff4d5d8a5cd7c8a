"""The interface of models that score the whole catalog without vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from candid.batches import Queries
from candid.inference.two_tower_model import TwoTowerModel

if TYPE_CHECKING:
    from typing_extensions import TypeIs


class ScoringModel(Protocol):
    """A model that scores every item for a query, such as a baseline.

    The difference to a ``TwoTowerModel`` is that scores need not be dot products of vectors.
    """

    @property
    def reads_history(self) -> bool:
        """Whether the scores depend on the history."""
        ...

    @property
    def needs_history(self) -> bool:
        """Whether the model cannot score for a query without a history."""
        ...

    @property
    def needs_user(self) -> bool:
        """Whether the model cannot score for an anonymous user."""
        ...

    @property
    def estimates_probability(self) -> bool:
        """Whether the softmax of the scores over the catalog is a probability."""
        ...

    def score_catalog(self, queries: Queries) -> Tensor:
        """Score all V items for B queries: [B, V] float32, finite, larger is better."""
        ...


def accepts_histories(model: TwoTowerModel | ScoringModel, *, with_features: bool) -> bool:
    """Return whether a model has an answer for an anonymous user with a history.

    A model that scores the catalog and reads no history has the same list for everyone. A model of
    vectors that reads no history needs features of the user.

    Args:
        model: the model.
        with_features: whether features of the user are given.
    """
    if model.needs_user:
        return False
    return model.reads_history or with_features or scores_catalog(model)


def scores_catalog(model: TwoTowerModel | ScoringModel) -> TypeIs[ScoringModel]:
    """Return whether a model offers scores of the whole catalog instead of vectors."""
    return callable(getattr(model, "score_catalog", None))
