"""The world as a model: its own query and item vectors, asked like any other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints, Queries, offsets_of, ranges
from candid.data import HeldOut, PreparedDataset
from candid.errors import ArtifactError
from candid.synthetic import World
from candid.synthetic.counters import Floats
from candid.towers import EncodeProgress


class TrueModel:
    """The best model there can be of a world in mode ``softmax``.

    Args:
        world: who made the data.
        dataset: prepared from the world's files, with all interactions kept.

    Raises:
        ArtifactError: the dataset holds users or items that are not the world's.
        ConfigError: the world's truth is not a dot product.
    """

    reads_history = True
    needs_history = False
    needs_user = True

    def __init__(self, world: World, dataset: PreparedDataset) -> None:
        self._world = world
        self._dataset = dataset
        self._users = _source_ids(dataset.users["source_id"].to_numpy(), world.config.num_users)
        self._items = _source_ids(dataset.items["source_id"].to_numpy(), world.config.num_items)
        self._item_vectors = torch.from_numpy(world.item_vectors(self._items))

    def encode_queries(self, queries: Queries) -> Tensor:
        """True queries, with a 1 for the popularity bias: [B, D + 1] float64."""
        user_ids = self._users[queries.user_ids.numpy()]
        if queries.history is None:
            vectors = self._world.query(user_ids, self._items[:0], np.zeros(len(user_ids) + 1, int))
        else:
            history = self._items[queries.history.item_ids.numpy()]
            vectors = self._world.query(user_ids, history, queries.history.offsets.numpy())
        return torch.from_numpy(np.hstack([vectors, np.ones((len(vectors), 1))]))

    def encode_catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """True item vectors with their popularity bias: [V, D + 1] float64."""
        return self._item_vectors

    def log_prob(self, questions: HeldOut) -> Floats:
        """True log P(target | user, history) of each target: [M] float64."""
        dataset, memory = self._dataset, self._world.config.memory
        starts = dataset.user_offsets[questions.user_ids]
        starts = np.maximum(starts, questions.history_stop - memory)
        lengths = questions.history_stop - starts
        return self._world.log_prob(
            self._users[questions.user_ids],
            self._items[dataset.item_ids[ranges(starts, lengths)]],
            offsets_of(lengths),
            self._items[questions.target_ids],
            questions.target_offsets,
        )


def _source_ids(values: Ints, count: int) -> Ints:
    found = values.astype(np.int64)
    if len(found) and (found.min() < 0 or found.max() >= count):
        raise ArtifactError("the dataset was not prepared from this world's files")
    return found
