"""The record every proposal returns, and the protocol that it follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class Positives(Protocol):
    """All that a proposal needs of a batch."""

    @property
    def positive_ids(self) -> Tensor:
        """[B] int64."""
        ...

    @property
    def user_ids(self) -> Tensor:
        """[B] int64."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of one step with the expected count of each: no loss ever guesses it.

    Attributes:
        ids: [N] int64 (shared by all rows) or [B, N].
        log_count: float32, same shape as ``ids``: the *unconditional* log expected count of
            each candidate (log of n·Q(d) for draws, of the inclusion probability for a set of
            distinct items, 0 for an exact head).
        log_count_positive: [B] float32, what the same proposal expects of each row's positive
            (-inf where it can never be proposed).
        num_draws: n where the candidates are draws with replacement, so that a row's draws
            that hit its positive can be dropped and the rest renormalised (the paper's Q');
            None for sets and heads.
        owner: [N] int64, the user that a candidate came from, or None. A candidate is not a
            negative of a row of the same user; -1 where it belongs to no one user.
        row_user_ids: [B] int64, the user of each row; present exactly when ``owner`` is.
    """

    ids: Tensor
    log_count: Tensor
    log_count_positive: Tensor
    num_draws: int | None = None
    owner: Tensor | None = None
    row_user_ids: Tensor | None = None

    def for_rows(self, rows: slice) -> Candidates:
        """The same candidates as some of the rows see them."""
        is_shared = self.ids.ndim == 1
        row_user_ids = self.row_user_ids
        return replace(
            self,
            ids=self.ids if is_shared else self.ids[rows],
            log_count=self.log_count if is_shared else self.log_count[rows],
            log_count_positive=self.log_count_positive[rows],
            row_user_ids=None if row_user_ids is None else row_user_ids[rows],
        )


class Proposal(Protocol):
    """Where candidates come from."""

    def draw(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw the candidates of one step.

        Args:
            batch: ``positive_ids`` [B] and ``user_ids`` [B]; the candidates live on the
                device of ``positive_ids``.
            generator: source of randomness, on that device; same state, same candidates.
        """
        ...

    def log_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items, as a draw for ``batch`` would state it.

        Args:
            ids: int64, any shape.
            batch: as for ``draw``.

        Returns:
            float32, shape of ``ids``; -inf for an item that can never be proposed.
        """
        ...
