"""A trained run on another dataset: its model, with items and users mapped by source id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.batches import History, Queries
from candid.data import PreparedDataset
from candid.runs.build import build_model, pick_device, set_threads
from candid.runs.earlier_run import open_earlier_run
from candid.runs.features import read_features
from candid.runs.run import Run
from candid.runs.trained_ids import earlier_rows
from candid.runs.warm_start import check_same_event_types, served_weights
from candid.towers import QueryTower, row_tables

Bools = npt.NDArray[np.bool_]


def mapped_run(folder: Path | str, dataset: PreparedDataset) -> Run:
    """Open a run with the ids of another dataset, such as yesterday's run on today's data.

    - An item that the model does not have is never ranked: as a target it is a miss, and histories
      are encoded without it. A model that reads the features of items has every item.
    - A user that the model does not have is encoded by the history. A model with one vector for
      each user, and a history without any known item, give a vector of zeros: all items tie.

    Args:
        folder: of the run.
        dataset: another one than the run was trained on.

    Returns:
        the run; items without a vector are retired in its dataset.

    Raises:
        ArtifactError: not a run, or its checkpoint or ids are damaged or missing.
        ConfigError: event types or shapes differ.
        DataError: source ids are of another type.
    """
    earlier = open_earlier_run(folder)
    config = earlier.config
    check_same_event_types(earlier, dataset)
    set_threads(config.threads)
    fitted = earlier.manifest.get("features")
    features = read_features(config.features, dataset, earlier.folder, fitted)
    rows, is_trained = {}, {}
    for kind in ("item", "user"):
        before, now = getattr(earlier.ids, f"{kind}s"), getattr(dataset, f"{kind}s")
        rows[kind] = earlier_rows(before, now, kind, str(folder))
        is_trained[kind] = np.append(before["is_trained"].to_numpy(), False)[rows[kind]]
    model = build_model(config, dataset, features, is_read=True, is_trained=is_trained)
    model.load_state_dict(served_weights(earlier, dataset, model, rows), strict=False)
    unknown_users = torch.from_numpy(np.flatnonzero(rows["user"] < 0))
    for _, table in row_tables(model):
        if table.rows_of == "user":
            with torch.no_grad():
                table.weight[unknown_users + table.first_row] = 0
    retired = dataset.retired_items
    is_known = rows["item"] >= 0
    if not model.reads_item_features and not is_known.all():
        retired = ~is_known if retired is None else retired | ~is_known
        if model.reads_history:
            model.query_tower = KnownItems(model.query_tower, is_known)
    model.to(pick_device(config.device)).eval()
    mapped = replace(dataset, retired_items=retired)
    return Run(earlier.folder, config, model, mapped, earlier.manifest, features)


class KnownItems(QueryTower):
    """A query tower that encodes histories without the items that it does not have.

    Args:
        tower: encodes the rest; a row without a rest has a vector of zeros if it needs a history.
        is_known: [V] bool.
    """

    is_known: Tensor

    def __init__(self, tower: QueryTower, is_known: Bools) -> None:
        super().__init__()
        self.tower = tower
        self.dim = tower.dim
        self.reads_history = tower.reads_history
        self.reads_times = tower.reads_times
        self.needs_history = tower.needs_history
        self.needs_user = tower.needs_user
        self.reads_user_features = tower.reads_user_features
        self.reads_context = tower.reads_context
        self.register_buffer("is_known", torch.from_numpy(is_known), persistent=False)

    def forward(self, queries: Queries) -> Tensor:
        """Encode the queries: [B, D]."""
        assert queries.history is not None
        history = _only(queries.history, self.is_known[queries.history.item_ids])
        is_empty = history.query_positions < 0
        if not (self.needs_history and bool(is_empty.any())):
            vectors: Tensor = self.tower(replace(queries, history=history))
            return vectors
        if len(history.item_ids) == 0:
            return torch.zeros(len(queries), self.dim, device=is_empty.device)
        # Any token stands in for the rows without one; their vectors are replaced.
        positions = history.query_positions.clamp(min=0)
        vectors = self.tower(replace(queries, history=replace(history, query_positions=positions)))
        return vectors.masked_fill(is_empty[:, None], 0.0)


def _only(history: History, is_kept: Tensor) -> History:
    """Return the histories without the other interactions.

    Args:
        history: of T interactions.
        is_kept: [T] bool.
    """
    before = torch.nn.functional.pad(is_kept.cumsum(0), (1, 0))
    sequence = torch.searchsorted(history.offsets, history.query_positions, right=True) - 1
    start = before[history.offsets[sequence.clamp(min=0)]]
    stop = before[history.query_positions + 1]
    has_any = (history.query_positions >= 0) & (stop > start)
    return History(
        item_ids=history.item_ids[is_kept],
        offsets=before[history.offsets],
        query_positions=torch.where(has_any, stop - 1, -1),
        event_types=None if history.event_types is None else history.event_types[is_kept],
        times=None if history.times is None else history.times[is_kept],
    )
