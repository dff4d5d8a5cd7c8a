"""The true distribution of the synthetic data as a two-tower model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints, Queries, offsets_of, ranges
from candid.data import HeldOutTargets, PreparedDataset
from candid.errors import ArtifactError
from candid.synthetic import SyntheticData
from candid.synthetic.counter_rng import Floats
from candid.towers import EncodeProgress


class OracleModel:
    """The best possible model of synthetic data in mode ``softmax``: its own true vectors.

    Args:
        synthetic: the generator of the data.
        dataset: prepared from the generator's files, with all interactions.

    Raises:
        ArtifactError: the dataset contains users or items that the generator does not have.
        ConfigError: the true logits are not dot products (mode ``topics``, release times).
    """

    reads_history = True
    needs_history = False
    needs_user = True

    def __init__(self, synthetic: SyntheticData, dataset: PreparedDataset) -> None:
        self._synthetic = synthetic
        self._dataset = dataset
        config = synthetic.config
        self._users = _source_ids(dataset.users["source_id"].to_numpy(), config.num_users)
        self._items = _source_ids(dataset.items["source_id"].to_numpy(), config.num_items)
        self._item_vectors = torch.from_numpy(synthetic.item_vectors(self._items))

    def encode_queries(self, queries: Queries) -> Tensor:
        """Return the true queries, with a 1 for the popularity bias: [B, D + 1] float64."""
        user_ids = self._users[queries.user_ids.numpy()]
        if queries.history is None:
            no_offsets = np.zeros(len(user_ids) + 1, int)
            vectors = self._synthetic.query(user_ids, self._items[:0], no_offsets)
        else:
            history = self._items[queries.history.item_ids.numpy()]
            vectors = self._synthetic.query(user_ids, history, queries.history.offsets.numpy())
        return torch.from_numpy(np.hstack([vectors, np.ones((len(vectors), 1))]))

    def encode_catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Return the true item vectors with their popularity bias: [V, D + 1] float64."""
        return self._item_vectors

    def log_prob(self, held_out: HeldOutTargets) -> Floats:
        """Return the true log P(target | user, history) of each target: [M] float64."""
        dataset, history_length = self._dataset, self._synthetic.config.history_length
        starts = dataset.user_offsets[held_out.user_ids]
        starts = np.maximum(starts, held_out.history_stop - history_length)
        lengths = held_out.history_stop - starts
        return self._synthetic.log_prob(
            self._users[held_out.user_ids],
            self._items[dataset.item_ids[ranges(starts, lengths)]],
            offsets_of(lengths),
            self._items[held_out.target_ids],
            held_out.target_offsets,
        )


def _source_ids(values: Ints, count: int) -> Ints:
    ids = values.astype(np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= count):
        raise ArtifactError(
            f"the dataset has source ids outside 0 to {count - 1}; prepare it from the files of "
            "this synthetic data"
        )
    return ids
