"""The registry of towers."""

from __future__ import annotations

from typing import Final

from candid.component import Registry

TOWERS: Final = Registry(
    {
        "causal_transformer": "candid.towers.transformer:CausalTransformer",
        "context_features": "candid.towers.context_tower:ContextFeatures",
        "item_embedding": "candid.towers.embedding:ItemEmbedding",
        "item_features": "candid.towers.feature_tower:ItemFeatures",
        "joined": "candid.towers.joined:Joined",
        "user_embedding": "candid.towers.embedding:UserEmbedding",
        "user_features": "candid.towers.feature_tower:UserFeatures",
    }
)
"""Query and item towers by the name used in recipes."""
