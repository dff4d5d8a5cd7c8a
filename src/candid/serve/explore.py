"""What the page asks beside recommendations: searches by name, facts, and one user."""

from __future__ import annotations

from typing import Any

import polars as pl

from candid.component import type_name
from candid.index import INDEXES
from candid.serve.problems import Problem
from candid.serve.schemas import Capability, Id, Item, ModelInfo
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
        event_types=list(parts.dataset.event_type_names),
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
    offsets = served.parts.dataset.user_offsets
    text = query.strip()
    exact = served.users.find(text) if text else None
    found = [] if exact is None else [exact]
    column = served.parts.dataset.users["source_id"].cast(pl.String)
    begins = column.str.starts_with(text).arg_true().head(limit + 1).to_list()
    found += [row for row in begins if row not in found]
    if len(found) < limit and text:
        holds = column.str.contains(text, literal=True).arg_true().head(limit * 2).to_list()
        found += [row for row in holds if row not in found]
    found = found[:limit]
    return [
        {"user": name, "interactions": int(offsets[row + 1] - offsets[row])}
        for row, name in zip(found, served.users.names(found), strict=True)
    ]


def user_info(served: Served, source_id: Id, limit: int) -> dict[str, Any]:
    """A user's latest interactions, earliest first.

    Raises:
        Problem: no such user.
    """
    found = served.users.find(source_id)
    if found is None:
        raise Problem("not_found", served.users.unknown(source_id, "id").message, "id")
    dataset = served.parts.dataset
    start, stop = (int(end) for end in dataset.user_offsets[found : found + 2])
    ids = dataset.item_ids[max(start, stop - limit) : stop].tolist() if limit else []
    return {
        "model": served.name,
        "user": served.users.names([found])[0],
        "interactions": stop - start,
        "history": served.items.describe(ids, with_attributes=True),
    }
