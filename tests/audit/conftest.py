"""A catalog so small that every draw can be listed."""

import itertools
import math

import numpy as np
import pytest
import torch

from candid.audit import Subject

COUNTS = (8, 4, 3, 1)
SCORES = ((0.3, -0.5, 1.1, 0.2), (-1.0, 0.8, 0.0, 1.5), (2.0, 0.1, -0.3, 0.4))
POSITIVES = (1, 0, 3)


def tiny_subject(**changes):
    """Three rows over four items; the queries are unit vectors, so the items hold the scores."""
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
    return Subject(**(settings | changes))


def refined_gradient(scores, positive, ids, expected):
    """Loss, gradient [4] and effective number of the refined loss, written out."""
    weights = [math.exp(scores[d]) / expected[d] for d in ids if d != positive]
    others = [d for d in ids if d != positive]
    gradient = np.zeros(4)
    if not others:
        return 0.0, gradient, 0.0
    z, row_candidates = sum(weights), math.exp(scores[positive])
    for d, weight in zip(others, weights, strict=True):
        gradient[d] += weight / (z + row_candidates)
    gradient[positive] = -z / (z + row_candidates)
    return math.log(1 + z / row_candidates), gradient, z**2 / sum(w * w for w in weights)


def enumerated(n, distinct, q=None):
    """Exact bias, RMSE, loss bias and effective number over all 4^n draws, pooled over rows."""
    q = np.array(COUNTS) / sum(COUNTS) if q is None else q
    squared = spread = length = loss_bias = effective = 0.0
    for scores, positive in zip(SCORES, POSITIVES, strict=True):
        probabilities = np.exp(scores) / np.exp(scores).sum()
        exact = probabilities - np.eye(4)[positive]
        mean = np.zeros(4)
        for draw in itertools.product(range(4), repeat=n):
            chance = math.prod(q[d] for d in draw)
            valid = sum(d != positive for d in draw)
            ids = sorted(set(draw)) if distinct else draw
            expected = 1 - (1 - q) ** n if distinct else max(valid, 1) * q / (1 - q[positive])
            loss, gradient, count = refined_gradient(scores, positive, ids, expected)
            mean += chance * gradient
            spread += chance * ((gradient - exact) ** 2).sum()
            loss_bias += chance * (loss + math.log(probabilities[positive])) / 3
            effective += chance * count / 3
        squared += ((mean - exact) ** 2).sum()
        length += (exact**2).sum()
    return {
        "bias": math.sqrt(squared / length),
        "rmse": math.sqrt(spread / length),
        "loss_bias": loss_bias,
        "effective": effective,
    }


@pytest.fixture
def tiny():
    return tiny_subject()
