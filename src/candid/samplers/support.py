"""Which items of a catalog a sampler can draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.samplers.sampler import Sampler


@runtime_checkable
class HasSupport(Protocol):
    """A sampler by which some items may never be candidates, and which says so."""

    def support(self, is_positive: Tensor) -> Tensor:
        """Which items every row is compared with sooner or later.

        Args:
            is_positive: [V] bool on the CPU, whether an item is ever the positive of a row.

        Returns:
            [V] bool on the CPU.
        """
        ...


def support(sampler: Sampler, is_positive: Tensor) -> Tensor:
    """Which items a sampler can draw: all, where it does not say; see ``HasSupport.support``.

    Raises:
        ConfigError: the sampler is of another catalog.
    """
    if not isinstance(sampler, HasSupport):
        return torch.ones_like(is_positive)
    can = sampler.support(is_positive)
    if can.shape != is_positive.shape:
        raise ConfigError(
            f"the sampler draws from {len(can)} items, but the catalog has {len(is_positive)}"
        )
    return can


def check_support_covers(
    sampler: Sampler,
    is_positive: Tensor,
    catalog: Literal["all", "trained"],
    source_ids: Sequence[object] | None = None,
    key: str = "training.softmax_over",
) -> None:
    """Refuse a sampler that can never draw an item of the catalog that a softmax is over.

    Args:
        sampler: as a whole: a mixture reaches what any of its components does.
        is_positive: [V] bool on the CPU, whether an item is ever the positive of a row.
        catalog: "trained" where only items that are ever a positive need be support.
        source_ids: [V], what to call the items; None: by their ids.
        key: the setting that says ``catalog``, to name it.

    Raises:
        ConfigError: an item cannot be drawn; names the first.
    """
    unreachable = ~support(sampler, is_positive)
    if catalog == "trained":
        unreachable &= is_positive
    way_out = ""
    if not bool((unreachable & is_positive).any()):
        way_out = f", or keep items that are never a training target out of it: {key} = 'trained'"
    _refuse(unreachable, source_ids, way_out)


def check_support(log_expected_count: Tensor) -> None:
    """Refuse a sampler by which an item can never be drawn.

    Such an item's share of the partition function is missed, however many draws there are.

    Args:
        log_expected_count: [V] or [B, V], what ``log_expected_count_of`` says of every item of the catalog.

    Raises:
        ConfigError: an item whose expected count is 0 (for some row); names the first.
    """
    _refuse(log_expected_count.isneginf().view(-1, log_expected_count.shape[-1]).any(dim=0))


def _refuse(
    unreachable: Tensor, source_ids: Sequence[object] | None = None, way_out: str = ""
) -> None:
    items = torch.nonzero(unreachable)[:, 0]
    if len(items):
        first = int(items[0])
        raise ConfigError(
            f"item {first if source_ids is None else repr(source_ids[first])} can never be drawn, "
            f"its probability is 0, as it is for {len(items)} of {len(unreachable)} items, so that "
            "the estimate of the softmax misses them: give a popularity sampler a floor above 0, "
            f"mix the sampler with uniform draws{way_out}"
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
