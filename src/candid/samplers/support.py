"""Checks that a sampler can draw every item that its softmax is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.samplers.sampler import Sampler


def check_support_covers(
    sampler: Sampler,
    is_positive: Tensor,
    softmax_over: Literal["all", "trained"],
    source_ids: Sequence[object] | None = None,
    key: str = "training.softmax_over",
    may_miss: Tensor | None = None,
) -> None:
    """Refuse a sampler that can never draw an item of the catalog that a softmax is over.

    Args:
        sampler: the whole sampler; a mixture samples an item if one of its components does.
        is_positive: [V] bool on the CPU, whether an item is ever the positive of a row.
        softmax_over: "trained" if only items that are ever a positive must be sampled.
        source_ids: [V], names of the items in messages; None: their ids.
        key: setting that holds ``softmax_over``, for messages.
        may_miss: [V] bool, items that need not be sampled, because no list ranks them; None: none.

    Raises:
        ConfigError: an item cannot be sampled (the message has the first); or the sampler belongs
            to another catalog.
    """
    support = sampler.support(is_positive)
    if support.shape != is_positive.shape:
        raise ConfigError(
            f"the sampler has {len(support)} items, but the catalog has {len(is_positive)}"
        )
    unreachable = ~support
    if softmax_over == "trained":
        unreachable &= is_positive
    if may_miss is not None:
        unreachable &= ~may_miss
    alternative = ""
    if not bool((unreachable & is_positive).any()):
        alternative = f", or leave out items that are never a training target: {key} = 'trained'"
    _refuse(unreachable, source_ids, alternative)


def check_support(log_expected_count: Tensor) -> None:
    """Refuse a sampler that can never draw some item.

    The estimate misses the item's share of the partition function for any number of samples.

    Args:
        log_expected_count: [V] or [B, V], ``log_expected_count_of`` for every item.

    Raises:
        ConfigError: an item has expected count 0 (for some row); names the first.
    """
    _refuse(log_expected_count.isneginf().view(-1, log_expected_count.shape[-1]).any(dim=0))


def _refuse(
    unreachable: Tensor, source_ids: Sequence[object] | None = None, alternative: str = ""
) -> None:
    items = torch.nonzero(unreachable)[:, 0]
    if len(items):
        first = int(items[0])
        name = first if source_ids is None else repr(source_ids[first])
        raise ConfigError(
            f"item {name} can never be sampled: "
            f"its probability is 0, as that of {len(items)} of {len(unreachable)} items in total, "
            "and the estimate of the softmax misses them; set min_count of a popularity sampler "
            f"above 0, or mix the sampler with uniform samples{alternative}"
        )


def check_set_size(num_candidates: int, num_items: int) -> None:
    """Refuse a set of distinct candidates that is larger than the catalog.

    Raises:
        ConfigError: ``num_candidates`` is more than V = ``num_items``.
    """
    if num_candidates > num_items:
        raise ConfigError(
            f"num_candidates is {num_candidates}, but the catalog has {num_items} items: a set "
            "of distinct candidates cannot be larger (full_softmax compares with all of them)"
        )
