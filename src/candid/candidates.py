"""The candidates of a training step, with the expected count of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


class Positives(Protocol):
    """All that a sampler needs of a batch."""

    @property
    def positive_ids(self) -> Tensor:
        """[B] int64."""
        ...

    @property
    def user_ids(self) -> Tensor:
        """[B] int64."""
        ...


@dataclass(frozen=True, slots=True)
class ExactCandidates:
    """Items that every row is compared with, whatever was drawn: their expected count is 1.

    The draws are then those outside the head: a drawn item that the head holds is dropped, and
    the rest stand for the items outside. Any head will do; the better it covers a row's
    partition function, the less is left to chance.

    Attributes:
        ids: [H] int64, distinct, shared by all rows; or [B, H], each row's own, where -1 fills
            up a shorter one and a repeated item counts once.
        log_expected_count: float32, same shape: the unconditional log expected count of each *among the
            draws* (anything where ids is -1).
        own: beside shared ``ids`` [H], each row's own further items, a head [B, S]; what the
            shared part holds counts once. None where there are none, and for ids [B, H].
    """

    ids: Tensor
    log_expected_count: Tensor
    row_candidates: ExactCandidates | None = None

    @property
    def parts(self) -> tuple[ExactCandidates, ...]:
        """The shared part and the rows' own, where both are there; else this head alone."""
        return (
            (self,)
            if self.row_candidates is None
            else (replace(self, row_candidates=None), self.row_candidates)
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of one step with the expected count of each: no loss ever guesses it.

    Attributes:
        ids: [N] int64, shared by all rows, or [G, N], each for a run of ceil(B / G)
            consecutive rows (the last may be shorter); [B, N] is a draw for every row.
        log_expected_count: float32, same shape as ``ids``: the *unconditional* log expected count of
            each candidate (log of n·Q(d) for draws, of the inclusion probability for a set of
            distinct items, 0 for an exact head). inf in a [G, N] fills up a shorter set: no
            candidate.
        log_expected_count_positive: [B] float32, what the same sampler expects of each row's positive
            (-inf where it can never be proposed).
        num_samples: n where the candidates are draws with replacement, so that a row's draws
            that hit its positive can be dropped and the rest renormalised (the paper's Q');
            None for sets and heads.
        owner: int64, same shape as ``ids``, the user that a candidate came from, or None. A
            candidate is not a negative of a row of the same user; -1 where it belongs to no
            one user.
        row_user_ids: [B] int64, the user of each row; present exactly when ``owner`` is.
        head: items compared exactly beside the draws, or None.
    """

    ids: Tensor
    log_expected_count: Tensor
    log_expected_count_positive: Tensor
    num_samples: int | None = None
    owner: Tensor | None = None
    row_user_ids: Tensor | None = None
    exact: ExactCandidates | None = None

    def by_row(self, values: Tensor) -> Tensor:
        """What each row sees of ``values``, of the shape of ``ids``: [N] shared, or [B, N]."""
        if values.ndim == 1:
            return values
        num_rows = len(self.log_expected_count_positive)
        if len(values) == num_rows:
            return values
        return values.repeat_interleave(-(-num_rows // len(values)), dim=0)[:num_rows]
