"""A catalog small enough to enumerate every sample of candidates."""

import itertools
import math

import numpy as np
import polars as pl
import pytest
import torch

from candid.audit import AuditInput
from candid.audit.batch_source import TrainingRows, UnitBatches
from candid.batches import offsets_of, target_counts, unit_targets
from candid.data import PreparedDataset, Role

COUNTS = (8, 4, 3, 1)
SCORES = ((0.3, -0.5, 1.1, 0.2), (-1.0, 0.8, 0.0, 1.5), (2.0, 0.1, -0.3, 0.4))
POSITIVES = (1, 0, 3)


def tiny_input(**changes):
    """Three rows over four items; queries are unit vectors, so item vectors are the scores."""
    items = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    settings = {
        "name": "tiny",
        "query": torch.eye(3),
        "item_vectors": torch.tensor(SCORES).T.contiguous(),
        "positive_ids": torch.tensor(POSITIVES),
        "user_ids": torch.arange(3),
        "counts": torch.tensor(COUNTS),
        "training_positive_ids": items,
        "training_user_ids": 100 + torch.arange(len(items)),
    }
    return AuditInput(**(settings | changes))


def refined_gradient(scores, positive, ids, expected):
    """Loss, gradient [4], effective sample size and Z' of the refined loss, by its formula."""
    weights = [math.exp(scores[d]) / expected[d] for d in ids if d != positive]
    others = [d for d in ids if d != positive]
    gradient = np.zeros(4)
    if not others:
        return 0.0, gradient, 0.0, 0.0
    z, exp_positive = sum(weights), math.exp(scores[positive])
    for d, weight in zip(others, weights, strict=True):
        gradient[d] += weight / (z + exp_positive)
    gradient[positive] = -z / (z + exp_positive)
    return math.log(1 + z / exp_positive), gradient, z**2 / sum(w * w for w in weights), z


def enumerate_statistics(n, distinct, q=None):
    """Exact bias, RMSE, loss bias, ESS, mean and sd of Z' over all 4^n samples, over rows."""
    q = np.array(COUNTS) / sum(COUNTS) if q is None else q
    bias_square = mse = exact_square = loss_bias = sample_size = z_mean = z_variance = 0.0
    for scores, positive in zip(SCORES, POSITIVES, strict=True):
        probabilities = np.exp(scores) / np.exp(scores).sum()
        exact = probabilities - np.eye(4)[positive]
        mean = np.zeros(4)
        z_row = z_square = 0.0
        z_exact = np.exp(scores).sum() - math.exp(scores[positive])
        for sample in itertools.product(range(4), repeat=n):
            chance = math.prod(q[d] for d in sample)
            valid = sum(d != positive for d in sample)
            ids = sorted(set(sample)) if distinct else sample
            expected = 1 - (1 - q) ** n if distinct else max(valid, 1) * q / (1 - q[positive])
            loss, gradient, count, z = refined_gradient(scores, positive, ids, expected)
            mean += chance * gradient
            mse += chance * ((gradient - exact) ** 2).sum()
            loss_bias += chance * (loss + math.log(probabilities[positive])) / 3
            sample_size += chance * count / 3
            z_row += chance * z / z_exact
            z_square += chance * (z / z_exact) ** 2
        bias_square += ((mean - exact) ** 2).sum()
        exact_square += (exact**2).sum()
        z_mean += z_row / 3
        z_variance += (z_square - z_row**2) / 3
    return {
        "bias": math.sqrt(bias_square / exact_square),
        "rmse": math.sqrt(mse / exact_square),
        "loss_bias": loss_bias,
        "effective_sample_size": sample_size,
        "z_mean": z_mean,
        "z_sd": math.sqrt(z_variance),
    }


@pytest.fixture
def tiny():
    return tiny_input()


def clustered_dataset(num_users=60, num_items=40, seed=0):
    """Users of 2 to 12 interactions, most of them from one of four groups of items.

    Item i belongs to group i % 4. The first item of each user, which is never a target of a loader
    of histories, is one of the four items 20 to 23.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 13, num_users)
    popularity = 1.0 / np.arange(1, num_items + 1)
    items = []
    for length in lengths:
        weights = popularity * np.where(np.arange(num_items) % 4 == rng.integers(4), 30.0, 1.0)
        chosen = rng.choice(num_items, length, replace=False, p=weights / weights.sum())
        items += [rng.integers(20, 24), *chosen[1:]]
    return PreparedDataset(
        item_ids=np.array(items, dtype=np.int32),
        user_offsets=offsets_of(lengths),
        roles=np.full(len(items), Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(num_items)}),
    )


def clustered_input(dataset, config, *, dim=6, seed=0):
    """The first row of each unit of a loader, with item vectors that are alike in a group."""
    generator = torch.Generator().manual_seed(seed)
    targets = unit_targets(dataset, config)
    item_ids = torch.from_numpy(dataset.item_ids[targets.events].astype(np.int64))
    rows = TrainingRows(item_ids, torch.from_numpy(targets.user_ids))
    first = torch.from_numpy(targets.offsets[:-1])
    counts = torch.from_numpy(target_counts(dataset, config))
    query = torch.randn(len(first), dim, generator=generator)
    of_group = torch.randn(4, dim, generator=generator)
    item_vectors = torch.randn(dataset.num_items, dim, generator=generator) * 0.3
    item_vectors += 0.8 * of_group[torch.arange(dataset.num_items) % 4]
    return AuditInput(
        name="clustered",
        query=query,
        item_vectors=item_vectors,
        positive_ids=rows.positive_ids[first],
        user_ids=rows.user_ids[first],
        counts=counts,
        training_positive_ids=rows.positive_ids,
        training_user_ids=rows.user_ids,
        batches=UnitBatches(rows, targets.offsets, config.batch_size, drop_last=config.drop_last),
    )
