"""What the demo measures beside the ordinary evaluation: what lists hold, and honesty."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints, held_out_queries
from candid.data import HeldOut, PreparedDataset
from candid.evaluation import TwoTowerModel, inference
from candid.index import ExactIndex
from candid.report import Curve

_BINS = np.linspace(-14.0, 0.0, 29)
"""Edges of the bins of log predicted probability."""


def _encoded(
    model: TwoTowerModel, dataset: PreparedDataset, questions: HeldOut, max_length: int
) -> Iterator[Tensor]:
    for _, queries in held_out_queries(dataset, questions, max_length, batch_size=512):
        yield model.encode_queries(queries)


def recommended_counts(
    model: TwoTowerModel, dataset: PreparedDataset, questions: HeldOut, max_length: int, k: int
) -> Ints:
    """How often each item is in a user's top k: [V] int64."""
    counts = np.zeros(dataset.num_items, dtype=np.int64)
    with inference(model):
        index = ExactIndex(model.encode_catalog().float())
        for query in _encoded(model, dataset, questions, max_length):
            found = index.search(query.float(), k).item_ids.numpy()
            counts += np.bincount(found.ravel(), minlength=dataset.num_items)
    return counts


def calibration_curve(
    model: TwoTowerModel,
    truth: TwoTowerModel,
    dataset: PreparedDataset,
    questions: HeldOut,
    max_length: int,
) -> Curve:
    """Mean true probability of the user-item pairs that a model gives one probability.

    All pairs of the questions and the catalog are binned by the model's probability; a point
    is the mean of both sides in a bin that holds at least 20 pairs. Because the truth is
    known, the points carry no sampling error of targets.
    """
    size = len(_BINS) + 1
    pairs, predicted, true = np.zeros(size), np.zeros(size), np.zeros(size)
    with inference(model), inference(truth):
        items, true_items = model.encode_catalog(), truth.encode_catalog()
        for query, true_query in zip(
            _encoded(model, dataset, questions, max_length),
            _encoded(truth, dataset, questions, max_length),
            strict=True,
        ):
            log_probs = torch.log_softmax(query @ items.T, dim=1).numpy().ravel()
            true_probs = torch.softmax(true_query @ true_items.T, dim=1).numpy().ravel()
            bins = np.digitize(log_probs, _BINS)
            pairs += np.bincount(bins, minlength=size)
            predicted += np.bincount(bins, np.exp(log_probs), minlength=size)
            true += np.bincount(bins, true_probs, minlength=size)
    kept = pairs >= 20
    return Curve((predicted[kept] / pairs[kept]).tolist(), (true[kept] / pairs[kept]).tolist())
