"""Drift of an estimator: how far training with it moves a model that is already right, in nats.

The model is put at its own distribution: positives are sampled from P(d | u), the softmax over
the catalog, and candidates from the sampler. b is the mean gradient with respect to the logits
over positives and candidates. It is 0 for the full softmax. Where it is not, training leaves the
true distribution, and to second order the excess negative log-likelihood at which it stops is

    drift(u) = 1/2 · Σ over items d of b(d)² / P(d | u)                                    (1)

Logits that were fitted to a known distribution of four items with the refined loss end at 1.05 to
1.1 times this value for n = 64, at 1.2 to 1.6 times for n = 16 and at 2 to 4 times for n = 4: the
prediction is too low where n is small. Above about half a nat a value only shows that the estimator
is far from the softmax.

The bias of the gradient given the positive is another measure. Training averages over positives,
so that biases of opposite sign cancel; only b remains.

b is measured in K independent blocks, and b(d)² in (1) is the product of two different blocks, so
that the noise of the samples adds nothing on average. A gradient is the estimated softmax of the
positive and the candidates minus 1 at the positive, and the mean of the ones is P: b is therefore
the mean of the estimated softmax minus P, which has no noise from the choice of the positive.

Candidates from batches are items of the data, not of the model: the other rows of a batch are
whole units of the loader, as in training (``AuditSampler``). Q is then the frequency of the dealt
targets, the rows of one user come together, and the drift includes the effect of these clusters.
Only the positive of the audited user is sampled from P(d | u).

Beside it stand the distances of the sampler's Q from P: chi2 = Σ P²/Q - 1, on which the number of
candidates that an estimator needs depends, and KL(P || Q).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from candid.audit.audit_input import AuditInput
from candid.audit.audit_sampler import AuditRows, AuditSampler, exact_ids
from candid.audit.gradients import gradients
from candid.audit.stacked_candidates import can_be_stacked, stacked
from candid.audit.statistics import NUM_GROUPS, off_diagonal_mean
from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.comparison import Comparison, compare
from candid.losses.estimator import Estimator


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftBudget:
    """Number of samples of a drift measurement.

    Attributes:
        repeats: samples of candidates for each user, at least 2 for each of the K = 8 blocks;
            rounded up to a multiple of K.
        num_positives: positives of each user that are compared with a sample.
        memory: bytes for the sums of gradients; users that do not fit together are measured one
            after the other.
        seed: of the positives.

    Raises:
        ConfigError: a number is too small.
    """

    repeats: int = 256
    num_positives: int = 16
    memory: int = 1 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 2 * NUM_GROUPS or self.num_positives < 1 or self.memory < 1:
            raise ConfigError(
                f"a drift needs repeats of at least {2 * NUM_GROUPS}, num_positives of at least 1 "
                f"and memory of at least 1, got {self.repeats}, {self.num_positives} and "
                f"{self.memory}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Drift:
    """Drift of one estimator with one sampler, in nats.

    Attributes:
        by_user: [U] float64, equation (1) of each user; below 0 where it is not different from 0.
        by_user_error: [U] float64, standard errors, from the blocks of samples.
        block_error: standard error of the mean over the users, from the blocks of samples: the
            users are taken as given.
    """

    by_user: Tensor
    by_user_error: Tensor
    block_error: float

    @property
    def mean(self) -> float:
        """Mean over the users."""
        return float(self.by_user.mean())

    @property
    def user_error(self) -> float:
        """Standard error of the mean from the differences of the users; nan for one user."""
        return float(self.by_user.std() / len(self.by_user) ** 0.5)

    @property
    def error(self) -> float:
        """Standard error of the mean for other users and other samples: both errors together."""
        if len(self.by_user) < 2:
            return self.block_error
        return float((self.user_error**2 + self.block_error**2) ** 0.5)


@dataclass(frozen=True, eq=False, kw_only=True)
class ProposalDistance:
    """Distances of a sampler's distribution Q from the model's P, by user.

    Attributes:
        chi2: [U] float64, Σ P²/Q - 1; inf where an item can never be sampled.
        kl: [U] float64, KL(P || Q) in nats; inf where an item can never be sampled.
    """

    chi2: Tensor
    kl: Tensor


def measure_drift(
    data: AuditInput,
    sampler: AuditSampler,
    estimators: Sequence[Estimator],
    budget: DriftBudget | None = None,
) -> list[Drift]:
    """Measure the drift of estimators for the users of an input, all on the same samples.

    A sample of candidates is shared by all users that are measured together, as in a batch. Time
    and memory grow with U · V. For a large catalog, pass a sample of the users.

    Args:
        data: queries of U users, and item vectors; ``positive_ids`` are not used.
        sampler: source of the candidates, for the same input.
        estimators: estimators that are defined for the sampler.
        budget: number of samples; None: the defaults of ``DriftBudget``.

    Returns:
        the drift of each estimator.

    Example:
        >>> import torch
        >>> from candid.audit import AuditInput, AuditSampler, Estimator, measure_drift
        >>> from candid.audit import sampler_config
        >>> ids = torch.arange(4)
        >>> data = AuditInput(
        ...     name="logits of two users",
        ...     query=torch.tensor([[0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0]]),
        ...     item_vectors=torch.eye(4),
        ...     positive_ids=ids[:2],
        ...     user_ids=ids[:2],
        ...     counts=torch.tensor([4, 3, 2, 1]),
        ...     training_positive_ids=ids,
        ...     training_user_ids=ids,
        ... )
        >>> config = sampler_config({"type": "popularity", "num_candidates": 2})
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler = AuditSampler(config, data, batch_rows=2, generator=generator)
        >>> drift = measure_drift(data, sampler, [Estimator("refined")])[0]
        >>> drift.mean > 3 * drift.block_error
        True
    """
    budget = budget or DriftBudget()
    generator = torch.Generator().manual_seed(budget.seed)
    blocks = [
        _measure_users(data, users, sampler, estimators, budget, generator)
        for users in _blocks_of_users(data, 8 * NUM_GROUPS * len(estimators), budget.memory)
    ]
    results = []
    for products in zip(*blocks, strict=True):
        # Products [U, K, K] of the blocks of samples, for one estimator.
        by_user, by_user_error = off_diagonal_mean(torch.cat(products))
        # Blocks of users have samples of their own: their errors are independent.
        variances = [
            (off_diagonal_mean(part.mean(dim=0))[1] * len(part) / len(by_user)).square()
            for part in products
        ]
        results.append(
            Drift(
                by_user=by_user / 2,
                by_user_error=by_user_error / 2,
                block_error=float(torch.stack(variances).sum().sqrt() / 2),
            )
        )
    return results


def proposal_distance(data: AuditInput, sampler: AuditSampler) -> ProposalDistance | None:
    """Compute chi2 and KL(P || Q) of each user of an input, exactly.

    Q(d) is the item's share of the expected counts of all items. For a set of distinct items
    these are inclusion probabilities.

    Args:
        data: queries of U users, and item vectors.
        sampler: source of the candidates, for the same input.

    Returns:
        the distances; None beside exact candidates, where the samples stand for a part of the
        catalog.
    """
    if sampler.has_exact:
        return None
    chi2, kl = [], []
    for users in _blocks_of_users(data, 8, 1 << 28):
        log_p, _ = _log_softmax(data, users)
        log_q = sampler.log_expected_counts(AuditRows.of(data, users)).double()
        log_q = log_q - log_q.logsumexp(dim=-1, keepdim=True)
        chi2.append(torch.exp(2.0 * log_p - log_q).sum(dim=1) - 1.0)
        kl.append((log_p.exp() * (log_p - log_q)).sum(dim=1))
    return ProposalDistance(chi2=torch.cat(chi2), kl=torch.cat(kl))


def add_estimated_softmax(
    sums: Tensor,
    comparison: Comparison,
    estimators: Sequence[Estimator],
    weights: Tensor,
    log_partition: Tensor,
) -> None:
    """Add the estimated softmax of rows to the sums of their users.

    Args:
        sums: [A, U, V], or [A, K, U, V] for users that occur in K blocks, float64, written to; A
            estimators.
        comparison: float64 scores of B rows, the same number for each user, one user after the
            other, block by block.
        estimators: A estimators.
        weights: [B], of the rows.
        log_partition: [B], the exact log Z of the rows.
    """
    num_items = sums.shape[-1]
    # Always a view: only dimensions that lie together are joined.
    flat = sums.flatten(1)
    num_users = flat.shape[1] // num_items
    result = gradients(comparison, estimators, log_partition)
    first = torch.arange(num_users)[:, None] * num_items

    def add(ids: Tensor, values: Tensor) -> None:
        """Add values [A, B, M] at ids [M], or [B, M]."""
        values = (values * weights[:, None]).unflatten(1, (num_users, -1))
        if ids.ndim == 1:
            values, ids = values.sum(dim=2), ids.expand(num_users, -1)
        positions = ids.reshape(num_users, -1) + first
        flat.index_add_(1, positions.flatten(), values.flatten(1))

    # The gradient is the estimated softmax minus 1 at the positive.
    add(comparison.positive_ids[:, None], result.positive[:, :, None] + 1.0)
    candidates = comparison.candidates
    add(candidates.by_row(candidates.ids), result.candidates)
    if candidates.exact is not None and result.exact is not None:
        add(exact_ids(candidates.exact, len(comparison.query)), result.exact)


def drift_products(deviations: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return the products Σ b_k(d) · b_l(d) / P(d) of mean gradients.

    Args:
        deviations: [..., K, V], mean gradients b_k with respect to the logits.
        log_probabilities: [..., V], log P.

    Returns:
        [..., K, K] float64; half of an entry is a drift in nats.
    """
    # Below 1e-300 neither the item nor its gradient matters.
    scale = torch.exp(-0.5 * log_probabilities.double().clamp(min=-690.0))
    scaled = deviations.double() * scale[..., None, :]
    return scaled @ scaled.mT


def _measure_users(
    data: AuditInput,
    users: slice,
    sampler: AuditSampler,
    estimators: Sequence[Estimator],
    budget: DriftBudget,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return the products [U, K, K] of each estimator, for users with common samples."""
    log_p, log_partition = _log_softmax(data, users)
    num_users, num_items = log_p.shape
    cumulative = log_p.exp().cumsum(dim=1)
    rows = torch.arange(users.start, users.stop).repeat_interleave(budget.num_positives)
    query, user_ids = data.query[rows], data.user_ids[rows]
    log_partition = log_partition.repeat_interleave(budget.num_positives)
    shape = (len(estimators), NUM_GROUPS, num_users, num_items)
    sums = torch.zeros(shape, dtype=torch.float64)
    repeats = -(-budget.repeats // NUM_GROUPS)
    for _ in range(repeats):
        # One sample for each block. All are scored together, as samples of further users.
        positive_ids = [
            _sample_positives(cumulative, budget.num_positives, generator).flatten()
            for _ in range(NUM_GROUPS)
        ]
        samples = [sampler.sample(AuditRows(query, ids, user_ids)) for ids in positive_ids]
        if can_be_stacked(samples):
            ids = torch.cat(positive_ids)
            _add_samples(sums, data, query, log_partition, ids, stacked(samples), estimators)
            continue
        for group, (ids, sample) in enumerate(zip(positive_ids, samples, strict=True)):
            part = sums[:, group : group + 1]
            _add_samples(part, data, query, log_partition, ids, sample, estimators)
    sums /= repeats
    sums -= log_p.exp()
    return [drift_products(part, log_p) for part in sums.transpose(1, 2)]


def _add_samples(
    sums: Tensor,
    data: AuditInput,
    query: Tensor,
    log_partition: Tensor,
    positive_ids: Tensor,
    candidates: Candidates,
    estimators: Sequence[Estimator],
) -> None:
    """Add a sample for each of K blocks, with the same queries [R, D], to the sums [A, K, U, V].

    Args:
        sums: see ``add_estimated_softmax``.
        data: the item vectors.
        query: [R, D].
        log_partition: [R], log Z of the queries.
        positive_ids: [K·R].
        candidates: of the K blocks.
        estimators: A estimators.
    """
    num_rows = len(query) // sums.shape[2]

    def vectors(ids: Tensor) -> Tensor:
        return data.item_vectors[ids].double()

    wide_query = query.double().repeat(sums.shape[1], 1)
    comparison = compare(wide_query, vectors, positive_ids, candidates)
    weights = torch.full((len(wide_query),), 1.0 / num_rows)
    log_partition = log_partition.repeat(sums.shape[1])
    add_estimated_softmax(sums, comparison, estimators, weights, log_partition)


def _sample_positives(cumulative: Tensor, num_positives: int, generator: torch.Generator) -> Tensor:
    """Sample [U, M] items from the distributions with these cumulative sums [U, V].

    Systematic sampling: one random offset, M points at equal distances. Each point alone has the
    distribution, and the mean over the M varies less than that of independent points.
    """
    shape = (len(cumulative), 1)
    offset = torch.rand(shape, generator=generator, dtype=torch.float64)
    points = (offset + torch.arange(num_positives)) / num_positives
    ids = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    return ids.clamp(max=cumulative.shape[1] - 1)


def _log_softmax(data: AuditInput, users: slice) -> tuple[Tensor, Tensor]:
    """[users, V] and [users] float64, the log-softmax over the catalog and log Z."""
    logits = data.query[users].double() @ data.item_vectors.double().T
    log_partition = logits.logsumexp(dim=1)
    return logits.sub_(log_partition[:, None]), log_partition


def _blocks_of_users(data: AuditInput, bytes_per_item: int, memory: int) -> list[slice]:
    """Return slices of the users, each with at most ``memory`` bytes of sums."""
    num_users = len(data.query)
    size = max(1, memory // (bytes_per_item * data.num_items))
    return [slice(first, min(first + size, num_users)) for first in range(0, num_users, size)]
