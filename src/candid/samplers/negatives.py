"""Given negatives: hard ones, or items that were shown and not chosen."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ConfigError, DataError
from candid.samplers.sampler import Sampler


def with_negatives(
    candidates: Candidates,
    negative_ids: Tensor,
    sampler: Sampler,
    positive_ids: Tensor,
    user_ids: Tensor | None = None,
    query: Tensor | None = None,
) -> Candidates:
    """Add given negatives to the candidates, as exact candidates of each row.

    A given negative was chosen and not sampled, so its expected count is 1 for any
    sampler, and samples of it are masked in that row: the estimate of Z' stays
    that of the catalog. Correcting a given negative as a sample would add a bias.

    A row's positive among its negatives, an item named twice and an item of shared exact
    candidates add nothing. A negative may come from the row's own user (it was shown to them):
    only samples are masked by their owner.

    The negatives [B, S] become each row's own exact candidates. Shared exact candidates stay
    shared, and so does their matrix product. The vectors of the negatives are gathered for
    every row: S·B·D numbers, so S should be a few dozen at most.

    Args:
        candidates: sampled by ``sampler`` for the same batch; not changed.
        negative_ids: [B, S] integers, -1 where a row has fewer than S.
        sampler: states the expected counts of the negatives among the samples.
        positive_ids: as for ``Sampler.sample``.
        user_ids: as for ``Sampler.sample``.
        query: as for ``Sampler.sample``.

    Returns:
        the candidates with the negatives as exact candidates.

    Raises:
        ConfigError: ``negative_ids`` is not a matrix of integers with one row for each row of
            the batch, or the candidates have exact candidates of another number of rows.
        DataError: an id below -1 (checked on the CPU, where it needs no device
            synchronisation).

    Example:
        >>> import torch
        >>> from candid.samplers import Uniform, with_negatives
        >>> sampler, positive_ids = Uniform(10, num_candidates=4), torch.tensor([3, 5])
        >>> candidates, negative_ids = sampler.sample(positive_ids), torch.tensor([[7], [-1]])
        >>> with_negatives(candidates, negative_ids, sampler, positive_ids).exact.ids.tolist()
        [[7], [-1]]
    """
    num_rows = len(positive_ids)
    check_negatives(negative_ids, num_rows)
    ids = negative_ids.to(torch.int64)
    log_counts = sampler.log_expected_count_of(ids.clamp(min=0), positive_ids, user_ids, query)
    negatives = ExactCandidates(ids, log_counts)
    exact = candidates.exact
    if exact is None:
        return replace(candidates, exact=negatives)
    last = exact.parts[-1]
    if last.ids.ndim == 1:
        return replace(candidates, exact=replace(exact, row_candidates=negatives))
    if len(last.ids) != num_rows:
        raise ConfigError(
            f"negatives of {num_rows} rows cannot join exact candidates of {len(last.ids)} rows: "
            "pass the batch that the candidates were sampled for"
        )
    joined = ExactCandidates(
        torch.cat([last.ids, negatives.ids], dim=1),
        torch.cat([last.log_expected_count, negatives.log_expected_count], dim=1),
    )
    return replace(
        candidates,
        exact=joined if exact.row_candidates is None else replace(exact, row_candidates=joined),
    )


def check_negatives(negative_ids: Tensor, num_rows: int) -> None:
    """Refuse negatives that are not [B, S] ids or -1.

    Raises:
        ConfigError: another shape, or not integers.
        DataError: an id below -1, on the CPU.
    """
    if negative_ids.ndim != 2 or len(negative_ids) != num_rows:
        raise ConfigError(
            f"negative_ids must be [B, S] with one row for each of the {num_rows} rows of the "
            f"batch, got shape {tuple(negative_ids.shape)}: pad shorter rows with -1"
        )
    if negative_ids.is_floating_point() or negative_ids.dtype == torch.bool:
        raise ConfigError(f"negative_ids must be integers, got {negative_ids.dtype}")
    if negative_ids.device.type == "cpu" and negative_ids.numel():
        lowest = int(negative_ids.min())
        if lowest < -1:
            row = int((negative_ids == lowest).any(dim=1).nonzero()[0])
            raise DataError(
                f"negative_ids holds {lowest} in row {row}: ids start at 0, and -1 pads a row"
            )
