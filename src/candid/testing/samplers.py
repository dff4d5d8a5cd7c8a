"""Checks of the contract that every sampler must keep."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor

from candid.candidates import Candidates
from candid.component import ComponentConfig
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.sampler import Sampler

_NUM_USERS = 4
_WIDTH = 6


def check_sampler(
    sampler: Any,
    *,
    is_registered: bool = True,
    counts: Tensor | None = None,
    num_rows: int = 8,
    num_trials: int = 400,
) -> None:
    """Check that a sampler keeps the promises of ``Sampler`` and ``SamplerConfig``.

    The sampler is built for a small catalog, refreshed with random item vectors if it follows the
    model, and sampled. The checks cover shapes and dtypes of the record; that
    ``log_expected_count_of`` agrees with it; that the stated counts are those of ``num_trials``
    samples (unless candidates come from the batch); that the sample depends only on the
    generator; that ``state_dict`` restores the sampler; and that the properties of its config are
    true.

    Args:
        sampler: the class, whose ``Config`` must have a default for each setting, or a config;
            it must fit a catalog of ``len(counts)`` items.
        is_registered: also write the config as a table and read it back, which needs the
            registered name.
        counts: [V] training counts of the catalog; None for 30 items of decreasing popularity.
        num_rows: B, rows of the batch.
        num_trials: number of samples that the stated counts are compared with.

    Raises:
        AssertionError: a promise is broken; the message states which one.

    Example:
        >>> from candid.samplers import Uniform
        >>> from candid.testing import check_sampler
        >>> check_sampler(Uniform.Config(num_candidates=8))
    """
    config: SamplerConfig = sampler if isinstance(sampler, SamplerConfig) else sampler.Config()
    counts = torch.arange(30, 0, -1) if counts is None else counts
    batch = _batch(counts, num_rows)
    before = copy.deepcopy((counts, batch))
    built = _build(config, counts)
    sampled = built.sample(*batch, _generator())
    _check(built.num_items == len(counts), "num_items must be the number of counts")
    _check_record(sampled, batch, len(counts))
    _check_counts(built, sampled, batch)
    _check_randomness(built, sampled, batch)
    _check_query(built, sampled, batch)
    _check_config(config, built, sampled, num_rows)
    _check_state(config, counts, built, batch)
    _check_support(built, sampled, counts)
    if not config.reads_batch:
        _check_trials(built, batch, num_trials)
    if is_registered:
        _check_registry(config)
    for one, other in zip((before[0], *before[1]), (counts, *batch), strict=True):
        _check(torch.equal(one, other), "the sampler must not write to its arguments")


def _batch(counts: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = _generator()
    positive_ids = torch.multinomial(counts.double(), num_rows, True, generator=generator)
    user_ids = torch.randint(_NUM_USERS, (num_rows,), generator=generator)
    return positive_ids, user_ids, torch.randn(num_rows, _WIDTH, generator=generator)


def _build(config: SamplerConfig, counts: Tensor) -> Sampler:
    sampler = config.build(counts)
    _check(isinstance(sampler, Sampler), "build() must return a candid.samplers.Sampler")
    if sampler.refresh_every is not None:
        _check(sampler.refresh_every >= 1, "refresh_every must be None or at least 1")
        sampler.refresh(torch.randn(len(counts), _WIDTH, generator=_generator()))
    return sampler


def _check_record(
    sampled: Candidates, batch: tuple[Tensor, Tensor, Tensor], num_items: int
) -> None:
    num_rows = len(batch[0])
    ids, log_counts = sampled.ids, sampled.log_expected_count
    _check(ids.dtype == torch.int64, "ids must be int64")
    _check(
        ids.ndim == 1 or (ids.ndim == 2 and len(ids) == num_rows),
        f"ids must be [N] or [B, N], got {list(ids.shape)}",
    )
    _check(bool(((ids >= 0) & (ids < num_items)).all()), "ids must be 0 to V - 1")
    _check(log_counts.shape == ids.shape, "log_expected_count must have the shape of ids")
    _check(
        bool(torch.isfinite(log_counts).all()),
        "log_expected_count of a candidate must be finite: it was sampled",
    )
    positive = sampled.log_expected_count_positive
    _check(positive.shape == (num_rows,), "log_expected_count_positive must be [B]")
    for name, value in (
        ("log_expected_count", log_counts),
        ("log_expected_count_positive", positive),
    ):
        _check(value.dtype == torch.float32, f"{name} must be float32")
        _check(not value.requires_grad, f"{name} must not carry a gradient")
    _check(
        (sampled.owner is None) == (sampled.row_user_ids is None),
        "owner and row_user_ids must be present together",
    )
    if sampled.owner is not None and sampled.row_user_ids is not None:
        _check(sampled.owner.shape == ids.shape, "owner must have the shape of ids")
        _check(torch.equal(sampled.row_user_ids, batch[1]), "row_user_ids must be user_ids")
    if sampled.num_samples is not None:
        _check(sampled.num_samples == ids.shape[-1], "num_samples must be the number of candidates")


def _check_counts(
    sampler: Sampler, sampled: Candidates, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    log_counts = sampler.log_expected_count_of(sampled.ids, *batch)
    _check(
        torch.allclose(log_counts, sampled.log_expected_count, rtol=0, atol=1e-4),
        "log_expected_count_of(ids) must be log_expected_count of the sample",
    )
    positive = sampler.log_expected_count_of(batch[0], *batch)
    _check(
        _equal_counts(positive, sampled.log_expected_count_positive),
        "log_expected_count_of(positive_ids) must be log_expected_count_positive",
    )
    num_rows = len(batch[0])
    catalog = torch.arange(sampler.num_items).expand(num_rows, -1)
    by_row = sampler.log_expected_count_of(catalog, *batch)
    _check(by_row.shape == catalog.shape, "log_expected_count_of must keep the shape of ids")
    columns = [sampler.log_expected_count_of(column, *batch) for column in catalog.T]
    _check(
        _equal_counts(by_row, torch.stack(columns, dim=1)),
        "log_expected_count_of must not depend on the shape of ids",
    )
    if sampled.num_samples is not None:
        total = by_row.double().exp().sum(dim=1)
        _check(
            bool(((total - sampled.num_samples).abs() < 1e-3 * sampled.num_samples).all()),
            f"expected counts over the catalog must sum to num_samples = {sampled.num_samples}, "
            f"got {total.tolist()}",
        )


def _check_config(
    config: SamplerConfig, sampler: Sampler, sampled: Candidates, num_rows: int
) -> None:
    for name, stated, actual in (
        ("is_set", config.is_set, sampled.num_samples is None),
        ("is_set of the sampler", sampler.is_set, sampled.num_samples is None),
        ("has_exact", config.has_exact, sampled.exact is not None),
        ("has_exact of the sampler", sampler.has_exact, sampled.exact is not None),
        ("samples_per_row", config.samples_per_row, sampled.ids.ndim == 2),
        ("reads_batch", config.reads_batch, _reads_batch(sampler)),
    ):
        _check(stated == actual, f"{name} is {stated}, but the sample gives {actual}")
    exact = 0 if sampled.exact is None else sampled.exact.ids.shape[-1]
    largest = config.candidates_per_row(num_rows)
    _check(
        sampled.ids.shape[-1] + exact <= largest,
        f"candidates_per_row is {largest}, but a row has {sampled.ids.shape[-1] + exact}",
    )


def _reads_batch(sampler: Sampler) -> bool:
    """Return whether the same generator gives other candidates for other positives."""
    num_items = sampler.num_items
    query = torch.randn(2, _WIDTH, generator=_generator())
    user_ids = torch.tensor([0, 1])
    first, second = (
        sampler.sample(torch.tensor(ids), user_ids, query, _generator())
        for ids in ([0, 0], [num_items - 1, num_items - 1])
    )
    return not torch.equal(first.ids, second.ids)


def _check_query(built: Sampler, sampled: Candidates, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    if not built.reads_query:
        again = built.sample(batch[0], batch[1], None, _generator())
        _check(
            torch.equal(again.ids, sampled.ids),
            "reads_query is False, but the sample depends on the query",
        )


def _check_randomness(
    sampler: Sampler, sampled: Candidates, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    again = sampler.sample(*batch, _generator())
    _check(torch.equal(sampled.ids, again.ids), "the same generator must give the same sample")
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        copied = other.sample(*batch, _generator())
        _check(torch.equal(sampled.ids, copied.ids), "a copy must give the same sample")


def _check_state(
    config: SamplerConfig,
    counts: Tensor,
    sampler: Sampler,
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    sampler.observe(*batch[:2])
    state = sampler.state_dict()
    _check(
        all(isinstance(value, Tensor) for value in state.values()),
        "state_dict must hold tensors only, so that safetensors can store it",
    )
    expected = sampler.sample(*batch, _generator())
    restored = config.build(counts)
    restored.load_state_dict(copy.deepcopy(state))
    for name, other in (("load_state_dict", restored), ("bfloat16()", sampler.bfloat16())):
        sampled = other.sample(*batch, _generator())
        _check(
            torch.equal(sampled.ids, expected.ids)
            and torch.equal(sampled.log_expected_count, expected.log_expected_count),
            f"a sampler must give the same sample after {name}: keep what it needs in buffers",
        )
    _check(
        all(isinstance(value, float) for value in sampler.metrics().values()),
        "metrics() must return floats",
    )


def _check_support(sampler: Sampler, sampled: Candidates, counts: Tensor) -> None:
    support = sampler.support(counts > 0)
    _check(
        support.dtype == torch.bool and support.shape == counts.shape,
        "support() must return [V] bool",
    )
    _check(bool(support[sampled.ids].all()), "support() must contain every candidate")


def _check_trials(sampler: Sampler, batch: tuple[Tensor, Tensor, Tensor], num_trials: int) -> None:
    generator = _generator()
    num_rows, num_items = len(batch[0]), sampler.num_items
    occurrences = torch.zeros(num_rows, num_items, dtype=torch.float64)
    for _ in range(num_trials):
        ids = sampler.sample(*batch, generator).ids.expand(num_rows, -1)
        occurrences.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float64))
    catalog = torch.arange(num_items).expand(num_rows, -1)
    expected_counts = sampler.log_expected_count_of(catalog, *batch).double().exp()
    # The variance of a count is at most its mean; an item that is expected less than once in
    # all trials may still occur.
    tolerance = 6 * (expected_counts / num_trials).sqrt() + 6 / num_trials
    error = (occurrences / num_trials - expected_counts).abs()
    if not bool((error <= tolerance).all()):
        row, item = divmod(int((error - tolerance).argmax()), num_items)
        raise AssertionError(
            f"item {item} occurs {occurrences[row, item] / num_trials:.4f} times per sample of row "
            f"{row}, but its stated expected count is {expected_counts[row, item]:.4f}"
        )


def _check_registry(config: SamplerConfig) -> None:
    recipe = _Recipe(sampler=config)
    table = recipe.model_dump(mode="json")
    _check(_Recipe.model_validate(table) == recipe, f"the config must be readable from {table}")


class _Recipe(ComponentConfig):
    """A recipe with a sampler alone."""

    sampler: SamplerComponent


def _equal_counts(one: Tensor, other: Tensor) -> bool:
    """Return whether log counts agree; -inf equals -inf."""
    return torch.allclose(one.exp(), other.exp(), rtol=1e-4, atol=1e-7)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _check(condition: bool, promise: str) -> None:
    if not condition:
        raise AssertionError(promise)
