"""Examples of all bodies in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

_ITEM = {
    "item": 318,
    "title": "Shawshank Redemption, The (1994)",
    "popularity": 2227,
    "attributes": {"genres": ["Drama"]},
}
_ANSWER = {
    "model": "ml1m",
    "version": 1,
    "items": [_ITEM | {"rank": 1, "score": 7.31, "probability": 0.0042}],
    "ignored": 0,
    "recommended_by": "model",
}

REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "RecommendRequest": {
        "a user of the data": {"user": 42, "k": 10},
        "a history": {"history": [260, 1196, 1210], "k": 10},
        "a history with times": {
            "history": [
                {"item": 260, "time": "2026-01-31T18:30:00Z"},
                {"item": 1196, "time": "2026-01-31T20:45:00Z"},
            ]
        },
        "a user who may be new": {"user": 99999, "fallback": "popular"},
        "a new user": {"attributes": {"age": 25, "gender": "F"}},
        "with filters": {
            "history": [260],
            "filters": {"genres": ["Comedy", "Drama"], "year": {"min": 1990}},
            "deny": [318],
        },
    },
    "BatchRequest": {"two users": {"queries": [{"user": 42}, {"user": 43, "k": 5}]}},
    "SimilarRequest": {"items near an item": {"item": 260, "k": 10}},
    "ItemRequest": {
        "a new film": {"title": "Another Dawn (2026)", "attributes": {"genres": ["Drama"]}}
    },
    "ReloadRequest": {"all models": {}, "one model": {"model": "ml1m"}},
}
"""By name of the schema, then by title."""

RESPONSES: Final[dict[str, Any]] = {
    "Answer": _ANSWER,
    "BatchAnswer": {"answers": [_ANSWER]},
    "ItemList": {"model": "ml1m", "items": [_ITEM]},
    "Item": _ITEM,
    "ItemMap": {
        "model": "ml1m",
        "explained": 0.21,
        "items": [_ITEM | {"attributes": None, "x": 0.31, "y": -0.12}],
    },
    "UserList": {"model": "ml1m", "users": [{"user": 42, "interactions": 231}]},
    "UserHistory": {"model": "ml1m", "user": 42, "interactions": 231, "history": [_ITEM]},
    "ItemUpdated": {"model": "ml1m", "item": 4001, "outcome": "added"},
    "Reloaded": {"models": {"ml1m": 2}, "seconds": 1.4},
    "Health": {"status": "ready"},
    "ModelList": {
        "models": [
            {
                "name": "ml1m",
                "version": 1,
                "loaded": "2026-01-31T18:30:00+00:00",
                "fingerprint": "5b2c",
                "items": 3706,
                "users": 6040,
                "dim": 64,
                "index": "exact",
                "max_length": 200,
                "filter_seen": True,
                "reads_history": True,
                "reads_times": False,
                "needs_history": True,
                "needs_user": False,
                "user_attributes": {},
                "item_attributes": {"genres": "List(String)"},
                "item_features": [],
                "context": [],
                "event_types": [],
                "has_titles": True,
                "probability": {"supported": True, "reason": None},
                "vectors": {"supported": True, "reason": None},
                "item_updates": {
                    "supported": False,
                    "reason": "this model has one embedding per item",
                },
            }
        ],
        "limits": {"max_k": 1000},
    },
}
"""By name of the schema."""
