"""The registry of feature types."""

from __future__ import annotations

from typing import Final

from candid.component import Registry

FEATURES: Final = Registry(
    {
        "bag": "candid.features.bag:Bag",
        "categorical": "candid.features.categorical:Categorical",
        "clock": "candid.features.clock:Clock",
        "hashed": "candid.features.hashed:Hashed",
        "number": "candid.features.number:Number",
        "text": "candid.features.text:Text",
        "vector": "candid.features.vector:Vector",
    }
)
"""Types of feature by the name used in recipes."""
