"""The registry of baselines."""

from __future__ import annotations

from typing import Final

from candid.component import Registry

BASELINES: Final = Registry(
    {
        "popularity": "candid.baselines.popularity:Popularity",
        "recent_popularity": "candid.baselines.recent_popularity:RecentPopularity",
        "item_knn": "candid.baselines.item_knn:ItemKNN",
        "markov": "candid.baselines.markov:Markov",
        "co_visits": "candid.baselines.co_visits:CoVisits",
        "session_knn": "candid.baselines.session_knn:SessionKNN",
        "ease": "candid.baselines.ease:EASE",
        "als": "candid.baselines.als:ALS",
    }
)
"""Baselines by name, in the order in which they are fitted: cheap ones first."""
