"""The jackknife of a sampled softmax: the loss without each group of candidates, in closed form.

Candidates of one user depend on each other, so that users are left out and not candidates: a
group is all candidates of one owner. Candidates without an owner are groups of their own. With
D = exp(s(p)) + Z' the denominator of the softmax, t(j) the share of group j in D, m(j) its size,
and n and T the size and the share of all groups of its kind (with or without an owner), the
denominator without group j is d(j) · D,

    d(j) = 1 - T + (T - t(j)) · n / (n - m(j)) = 1 + (T - t(j)) · m(j) / (n - m(j)) - t(j)      (1)

because the expected counts are then those of n - m(j) candidates. The positive, the exact
candidates and the other kind keep their shares. With L(-j) = L + log d(j) the jackknife is

    L + Σ w(j) · (L - L(-j)) = L - Σ w(j) · log d(j),    w(j) = (G - 1) / G                     (2)

with G the number of groups of the kind (Quenouille, Biometrika 1956; for one kind it is
G·L - (G - 1)/G · Σ L(-j)). Masked candidates belong to no group. A kind with one group has weight
0, because one group does not show its variance.

Two kinds are two strata of a mixture: the candidates from the batch, and independent samples. Each
sum over a kind estimates a fixed part of Z', which need not be its share n of the candidates. If a
group were left out and *all* others rescaled, the estimates would move with the kind of the group.

The groups have unequal sizes. In batches of users both the size of a group and its sum are random,
and Z' is a ratio of two sums over independent groups. Equal weights remove the 1/G term of the bias
of every smooth function of such sums. The weights 1 - m(j)/n of Busing, Meijer and van der Leeden
(Statistics and Computing, 1999) assume a bias of order 1/n that depends on n alone; they agree for
independent candidates, and leave the term in the covariance of size and sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from candid.candidates import NO_OWNER


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of candidates that are left out together; each lives in one of N columns.

    Attributes:
        column: [N] or [B, N] int64, the column of each candidate's group, which is the position
            of the first candidate of the group; None where each candidate is its own group.
        is_single: [N] or [B, N] bool, True for candidates without an owner; None where ``column``
            is None.
    """

    column: Tensor | None = None
    is_single: Tensor | None = None

    @classmethod
    def of_owners(cls, owner: Tensor | None) -> Groups:
        """Group candidates by owner.

        Args:
            owner: [N] or [B, N] int64, -1 for candidates that belong to no single user; None
                where no candidate has an owner.
        """
        if owner is None:
            return cls()
        ordered, order = owner.sort(dim=-1, stable=True)
        is_single = owner == NO_OWNER
        begins = ordered == NO_OWNER
        begins[..., :1] = True
        begins[..., 1:] |= ordered[..., 1:] != ordered[..., :-1]
        position = torch.arange(owner.shape[-1], device=owner.device).expand(owner.shape)
        # The number of groups is not read: that would force a synchronisation on a GPU.
        first = (
            torch.where(begins, position, 0).cummax(dim=-1).values if position.numel() else order
        )
        column = torch.empty_like(order).scatter(-1, order, order.gather(-1, first))
        return cls(column, is_single)

    def sums(self, values: Tensor) -> Tensor:
        """Sum the candidates' values [B, N] by group: [B, N] by column, 0 in the others."""
        if self.column is None:
            return values
        index = self.column.expand(values.shape)
        return torch.zeros_like(values).scatter_add(1, index, values)

    def of_candidates(self, values: Tensor) -> Tensor:
        """Return for each candidate the value of its group, from values [B, N] by column."""
        return values if self.column is None else values.gather(1, self.column.expand(values.shape))

    def of_kinds(self, values: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Split values [B, N] by kind.

        Returns:
            for each kind the mask, [N] or [B, N], of its columns, and the values, 0 in the others.
        """
        if self.is_single is None:
            return ((torch.ones_like(values, dtype=torch.bool), values),)
        masks = (~self.is_single, self.is_single)
        return tuple((is_kind, torch.where(is_kind, values, 0.0)) for is_kind in masks)

    def kind_sums(self, values: Tensor) -> Tensor:
        """Sum values [B, N] over all columns of the same kind, for each column."""
        if self.is_single is None:
            return values.sum(dim=1, keepdim=True).expand_as(values)
        of_single = torch.where(self.is_single, values, 0.0).sum(dim=1, keepdim=True)
        of_owned = torch.where(self.is_single, 0.0, values).sum(dim=1, keepdim=True)
        return torch.where(self.is_single, of_single, of_owned)

    def is_kind_of(self, column: Tensor) -> Tensor:
        """[B, N] bool, whether a candidate is of the kind of the group at ``column`` [B, 1]."""
        if self.is_single is None:
            return torch.ones_like(column, dtype=torch.bool)
        shape = (len(column), self.is_single.shape[-1])
        is_single = self.is_single.expand(shape)
        return is_single == is_single.gather(1, column)


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """What leaving out a group does to the others of its kind, for each row and column.

    Attributes:
        weight: [B, N], w(j); 0 in columns without a group, and for a kind with fewer than two.
        excess: [B, N], m(j) / (n - m(j)), so that the others count 1 + excess times; 0 where
            the weight is 0.
    """

    weight: Tensor
    excess: Tensor

    @classmethod
    def of(cls, groups: Groups, is_valid: Tensor, dtype: torch.dtype) -> LeaveOneOut:
        """Count the valid candidates of each group.

        Args:
            groups: the groups.
            is_valid: [B, N] bool, False for accidental hits.
            dtype: of the result.
        """
        size = groups.sums(is_valid.to(dtype))
        num_candidates = groups.kind_sums(size)
        is_group = size > 0
        num_groups = groups.kind_sums(is_group.to(dtype))
        is_left_out = is_group & (num_groups > 1)
        others = torch.where(is_left_out, num_candidates - size, 1.0)
        return cls(
            weight=torch.where(is_left_out, (num_groups - 1.0) / num_groups.clamp(min=1.0), 0.0),
            excess=torch.where(is_left_out, size / others, 0.0),
        )


def jackknife(
    loss: Tensor,
    positive: Tensor,
    logits: Tensor,
    is_valid: Tensor,
    groups: Groups,
    log_exact: Tensor | None = None,
) -> Tensor:
    """Compute equation (2) for each row; a row in which no group is left out keeps its loss.

    Args:
        loss: [B], L.
        positive: [B], shifted.
        logits: [B, N], shifted.
        is_valid: [B, N] bool, False for accidental hits.
        groups: the groups of the candidates.
        log_exact: [B], the logsumexp of the exact candidates, or None.

    Returns:
        [B], with gradient.
    """
    if logits.shape[1] < 2:
        return loss
    log_total = positive + loss
    # The loss of a positive that can never be sampled (its shifted score is inf) is 0.
    is_valid = is_valid & torch.isfinite(log_total)[:, None]
    left_out = LeaveOneOut.of(groups, is_valid, loss.dtype)
    log_share = torch.where(is_valid, logits - log_total[:, None], -torch.inf)
    share = groups.sums(torch.exp(log_share))
    change = (groups.kind_sums(share) - share) * left_out.excess - share

    # log1p(change) is accurate for shares up to 1/2, so for all groups but the largest. Without
    # the largest the other terms are summed, in log space: their sum may be far below 1.
    largest = share.detach().argmax(dim=1, keepdim=True)
    column = torch.arange(logits.shape[1], device=logits.device)
    is_largest = column == largest
    scale = torch.where(groups.is_kind_of(largest), left_out.excess.gather(1, largest), 0.0)
    is_other = is_valid & ~groups.of_candidates(is_largest)
    log_others = _masked_logsumexp(log_share + torch.log1p(scale), is_other)
    log_without = torch.logaddexp(log_others, -loss)
    if log_exact is not None:
        log_without = torch.logaddexp(log_without, log_exact - log_total)

    log_change = torch.where(
        is_largest, log_without[:, None], torch.log1p(torch.where(is_largest, 0.0, change))
    )
    return loss - torch.where(left_out.weight > 0, left_out.weight * log_change, 0.0).sum(dim=1)


def _masked_logsumexp(values: Tensor, is_term: Tensor) -> Tensor:
    """Logsumexp over the terms of each row; -inf with gradient 0 for a row without terms."""
    is_empty = ~is_term.any(dim=1)
    fill = torch.where(is_empty, 0.0, -torch.inf).to(values.dtype)
    log_sum = torch.logsumexp(torch.where(is_term, values, fill[:, None]), dim=1)
    return log_sum.masked_fill(is_empty, -torch.inf)
