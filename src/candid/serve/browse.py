"""Look-ups other than recommendations: model information, items and users by text, one user."""

from __future__ import annotations

from typing import Any

import polars as pl

from candid.serve.errors import RequestError
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id


def model_info(version: ModelVersion) -> dict[str, Any]:
    """Return properties of a model version and the requests it supports, as in ``ModelInfo``."""
    bundle, model = version.bundle, version.bundle.model
    return {
        "name": version.name,
        "version": version.number,
        "loaded": version.loaded.isoformat(timespec="seconds"),
        "fingerprint": bundle.fingerprint,
        "items": bundle.index.num_live,
        "users": bundle.dataset.num_users,
        "dim": bundle.dim,
        "index": bundle.index_name,
        "max_length": bundle.max_length,
        "filter_seen": bundle.filter_seen,
        "reads_history": model.reads_history,
        "reads_times": bundle.reads_times,
        "needs_history": model.needs_history,
        "needs_user": model.needs_user,
        "user_attributes": {name: str(dtype) for name, dtype in bundle.user_attributes.items()},
        "item_attributes": {name: str(dtype) for name, dtype in version.items.attributes.items()},
        "item_features": list(bundle.item_features),
        "context": sorted(bundle.context_columns),
        "event_types": list(bundle.dataset.event_type_names),
        "has_titles": version.items.has_titles,
        "probability": _capability(bundle.why_no_probability),
        "vectors": _capability(bundle.why_no_vectors),
        "item_updates": _capability(bundle.why_no_updates),
    }


def find_items(version: ModelVersion, query: str, limit: int) -> list[dict[str, Any]]:
    """Return items by title or source id, most popular first."""
    ids = version.items.find_by_title(query, limit, version.search.live_mask())
    return version.items.describe(ids, include_attributes=True)


def find_users(version: ModelVersion, query: str, limit: int) -> list[dict[str, Any]]:
    """Return users whose source id equals, starts with, or contains a text, in this order."""
    offsets = version.bundle.dataset.user_offsets
    text = query.strip()
    exact = version.users.find(text) if text else None
    user_ids = [] if exact is None else [exact]
    source_ids = version.bundle.dataset.users["source_id"].cast(pl.String)
    starts = source_ids.str.starts_with(text).arg_true().head(limit + 1).to_list()
    user_ids += [user_id for user_id in starts if user_id not in user_ids]
    if len(user_ids) < limit and text:
        contains = source_ids.str.contains(text, literal=True).arg_true().head(limit * 2).to_list()
        user_ids += [user_id for user_id in contains if user_id not in user_ids]
    user_ids = user_ids[:limit]
    return [
        {"user": source_id, "interactions": int(offsets[user_id + 1] - offsets[user_id])}
        for user_id, source_id in zip(user_ids, version.users.source_ids(user_ids), strict=True)
    ]


def user_info(version: ModelVersion, source_id: Id, limit: int) -> dict[str, Any]:
    """Return a user with the latest interactions, earliest first.

    Raises:
        RequestError: the user is unknown.
    """
    user_id = version.users.find(source_id)
    if user_id is None:
        raise RequestError("not_found", version.users.unknown_error(source_id, "id").message, "id")
    dataset = version.bundle.dataset
    start, stop = (int(end) for end in dataset.user_offsets[user_id : user_id + 2])
    item_ids = dataset.item_ids[max(start, stop - limit) : stop].tolist() if limit else []
    return {
        "model": version.name,
        "user": version.users.source_ids([user_id])[0],
        "interactions": stop - start,
        "history": version.items.describe(item_ids, include_attributes=True),
    }


def _capability(why_not: str | None) -> dict[str, Any]:
    return {"supported": why_not is None, "reason": why_not}
