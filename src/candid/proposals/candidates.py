"""The record every proposal returns, and the protocol that it follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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
class Head:
    """Items that every row is compared with, whatever was drawn: their expected count is 1.

    The draws are then those outside the head: a drawn item that the head holds is dropped, and
    the rest stand for the items outside. Any head will do; the better it covers a row's
    partition function, the less is left to chance.

    Attributes:
        ids: [H] int64, distinct, shared by all rows; or [B, H], each row's own, where -1 fills
            up a shorter one and a repeated item counts once.
        log_count: float32, same shape: the unconditional log expected count of each *among the
            draws* (anything where ids is -1).
        own: beside shared ``ids`` [H], each row's own further items, a head [B, S]; what the
            shared part holds counts once. None where there are none, and for ids [B, H].
    """

    ids: Tensor
    log_count: Tensor
    own: Head | None = None

    @property
    def parts(self) -> tuple[Head, ...]:
        """The shared part and the rows' own, where both are there; else this head alone."""
        return (self,) if self.own is None else (replace(self, own=None), self.own)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of one step with the expected count of each: no loss ever guesses it.

    Attributes:
        ids: [N] int64, shared by all rows, or [G, N], each for a run of ceil(B / G)
            consecutive rows (the last may be shorter); [B, N] is a draw for every row.
        log_count: float32, same shape as ``ids``: the *unconditional* log expected count of
            each candidate (log of n·Q(d) for draws, of the inclusion probability for a set of
            distinct items, 0 for an exact head). inf in a [G, N] fills up a shorter set: no
            candidate.
        log_count_positive: [B] float32, what the same proposal expects of each row's positive
            (-inf where it can never be proposed).
        num_draws: n where the candidates are draws with replacement, so that a row's draws
            that hit its positive can be dropped and the rest renormalised (the paper's Q');
            None for sets and heads.
        owner: int64, same shape as ``ids``, the user that a candidate came from, or None. A
            candidate is not a negative of a row of the same user; -1 where it belongs to no
            one user.
        row_user_ids: [B] int64, the user of each row; present exactly when ``owner`` is.
        head: items compared exactly beside the draws, or None.
    """

    ids: Tensor
    log_count: Tensor
    log_count_positive: Tensor
    num_draws: int | None = None
    owner: Tensor | None = None
    row_user_ids: Tensor | None = None
    head: Head | None = None

    def by_row(self, values: Tensor) -> Tensor:
        """What each row sees of ``values``, of the shape of ``ids``: [N] shared, or [B, N]."""
        if values.ndim == 1:
            return values
        num_rows = len(self.log_count_positive)
        if len(values) == num_rows:
            return values
        return values.repeat_interleave(-(-num_rows // len(values)), dim=0)[:num_rows]


def several_draws(
    proposal: Proposal,
    batch: Positives,
    num_draws: int,
    generator: torch.Generator | None = None,
) -> Candidates:
    """Independent draws of a proposal, each shared by an equal part of the batch's rows.

    Args:
        proposal: where they come from.
        batch: see ``Proposal.draw``.
        num_draws: how many, at least 1; no more than one for each row are made.
        generator: see ``Proposal.draw``.

    Returns:
        one draw as the proposal made it, several as ids [G, N]. A proposal that draws for each
        row apart has no more independent draws to give: its first is returned.
    """
    num_rows = len(batch.positive_ids)
    size = max(1, -(-num_rows // num_draws))
    first = proposal.draw(batch, generator)
    num_groups = max(1, -(-num_rows // size))
    if num_groups == 1 or first.ids.ndim > 1:
        return first
    draws = [first, *(proposal.draw(batch, generator) for _ in range(num_groups - 1))]
    owners = [draw.owner for draw in draws if draw.owner is not None]
    return replace(
        first,
        ids=pad_sequence([draw.ids for draw in draws], batch_first=True),
        log_count=pad_sequence(
            [draw.log_count for draw in draws], batch_first=True, padding_value=float("inf")
        ),
        owner=pad_sequence(owners, batch_first=True, padding_value=-1) if owners else None,
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
