"""Metrics that only the demo has: recommendation counts and calibration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints
from candid.data import HeldOutTargets, PreparedDataset
from candid.index import ExactIndex
from candid.inference import (
    TwoTowerModel,
    held_out_queries,
    inference_mode,
    search_with_tie_order,
    tie_ranks,
)
from candid.report import Curve

_BINS = np.linspace(-14.0, 0.0, 29)
"""Edges of the bins of log predicted probability."""
_MIN_PAIRS = 20
"""Minimum number of user-item pairs of a bin on the calibration curve."""


def recommended_counts(
    model: TwoTowerModel,
    dataset: PreparedDataset,
    held_out: HeldOutTargets,
    max_length: int,
    k: int,
) -> Ints:
    """Count in how many users' top k each item is: [V] int64.

    Items of equal score are in the order of recommended lists (``tie_ranks``).
    """
    ranks = tie_ranks(dataset.train_counts, dataset.items["source_id"])
    counts = np.zeros(dataset.num_items, dtype=np.int64)
    with inference_mode(model):
        index = ExactIndex(model.encode_catalog().float())
        for query in _encoded_queries(model, dataset, held_out, max_length):
            result = search_with_tie_order(index, query.float(), k, None, lambda: ranks)
            item_ids = result.item_ids.numpy()
            counts += np.bincount(item_ids.ravel(), minlength=dataset.num_items)
    return counts


def calibration_curve(
    model: TwoTowerModel,
    oracle: TwoTowerModel,
    dataset: PreparedDataset,
    held_out: HeldOutTargets,
    max_length: int,
) -> Curve:
    """Return mean true probability against mean predicted probability.

    All pairs of a held-out user and an item are binned by the model's probability. A point is
    the pair of means in a bin that holds at least 20 pairs. The points have no sampling error
    of targets, because the true probabilities are known.
    """
    size = len(_BINS) + 1
    pairs, predicted, true = np.zeros(size), np.zeros(size), np.zeros(size)
    with inference_mode(model), inference_mode(oracle):
        items, true_items = model.encode_catalog(), oracle.encode_catalog()
        for query, true_query in zip(
            _encoded_queries(model, dataset, held_out, max_length),
            _encoded_queries(oracle, dataset, held_out, max_length),
            strict=True,
        ):
            log_probs = torch.log_softmax(query @ items.T, dim=1).numpy().ravel()
            true_probs = torch.softmax(true_query @ true_items.T, dim=1).numpy().ravel()
            bins = np.digitize(log_probs, _BINS)
            pairs += np.bincount(bins, minlength=size)
            predicted += np.bincount(bins, np.exp(log_probs), minlength=size)
            true += np.bincount(bins, true_probs, minlength=size)
    mask = pairs >= _MIN_PAIRS
    return Curve((predicted[mask] / pairs[mask]).tolist(), (true[mask] / pairs[mask]).tolist())


def _encoded_queries(
    model: TwoTowerModel, dataset: PreparedDataset, held_out: HeldOutTargets, max_length: int
) -> Iterator[Tensor]:
    for _, queries in held_out_queries(dataset, held_out, max_length=max_length, batch_size=512):
        yield model.encode_queries(queries)
