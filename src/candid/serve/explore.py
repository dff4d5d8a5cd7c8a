"""What the page asks beside recommendations: searches by name, facts, and a map of the items."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch

from candid.component import type_name
from candid.index import INDEXES
from candid.serve.schemas import Capability, Item, ModelInfo
from candid.serve.served import Served


def model_info(served: Served) -> ModelInfo:
    """What a model is and what may be asked of it."""
    parts, model = served.parts, served.parts.model
    no_changes = None if parts.new_rows is not None else "this model knows items by their ids alone"
    return ModelInfo(
        name=served.name,
        generation=served.number,
        loaded=served.loaded.isoformat(timespec="seconds"),
        fingerprint=parts.snapshot.fingerprint,
        items=parts.index.num_live,
        users=parts.dataset.num_users,
        dim=parts.dim,
        index=type_name(INDEXES, "index", parts.snapshot.config),
        max_length=parts.max_length,
        reads_history=model.reads_history,
        needs_history=model.needs_history,
        needs_user=model.needs_user,
        user_attributes={name: str(dtype) for name, dtype in parts.user_attributes.items()},
        item_attributes={name: str(dtype) for name, dtype in served.items.attributes.items()},
        item_features=list(parts.item_features),
        context=sorted(parts.context_columns),
        actions=list(parts.dataset.action_names),
        has_titles=served.items.has_titles,
        probability=Capability(supported=parts.no_probability is None, reason=parts.no_probability),
        item_changes=Capability(supported=no_changes is None, reason=no_changes),
    )


def find_items(served: Served, query: str, limit: int) -> list[Item]:
    """Items by title or source id, the most popular first."""
    ids = served.items.search(query, limit, served.catalog.is_live())
    return [Item(**entry) for entry in served.items.describe(ids, with_attributes=True)]


def find_users(served: Served, query: str, limit: int) -> list[dict[str, Any]]:
    """Users whose source id is a text, then whose begins with it, then whose holds it."""
    names, offsets = served.users.names, served.parts.dataset.user_offsets
    text = query.strip()
    exact = served.users.find(text) if text else None
    found = [] if exact is None else [exact]
    column = served.parts.dataset.users["source_id"].cast(pl.String)
    begins = column.str.starts_with(text).arg_true().head(limit + 1).to_list()
    found += [row for row in begins if row not in found]
    if len(found) < limit and text:
        holds = column.str.contains(text, literal=True).arg_true().head(limit * 2).to_list()
        found += [row for row in holds if row not in found]
    return [
        {"user": names[row], "interactions": int(offsets[row + 1] - offsets[row])}
        for row in found[:limit]
    ]


def item_map(served: Served, limit: int) -> list[dict[str, Any]]:
    """The most popular live items at the two principal components of their directions.

    Vectors are scaled to unit length first: length tells of popularity, direction of kind.
    """
    counts = served.parts.dataset.train_counts
    live = served.catalog.is_live()[: len(counts)]
    ranked = np.argsort(-counts, kind="stable")
    ids = ranked[live[ranked]][:limit]
    if not len(ids):
        return []
    vectors = served.parts.index.vectors_of(torch.from_numpy(ids)).double()
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    centred = vectors - vectors.mean(0)
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)
    # The sign of an eigenvector is anybody's choice: the largest entry is positive.
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    places = (centred @ basis).tolist()
    entries = served.items.describe(ids.tolist(), with_attributes=False)
    return [
        entry | {"x": place[0], "y": place[1] if len(place) > 1 else 0.0}
        for entry, place in zip(entries, places, strict=True)
    ]
