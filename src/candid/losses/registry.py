"""The losses by the name used in recipes."""

from typing import Final

from candid.component import Registry

LOSSES: Final = Registry(
    {
        "full_softmax": "candid.losses.full:FullSoftmax",
        "sampled_softmax": "candid.losses.sampled:SampledSoftmax",
        "learnt_partition": "candid.losses.learnt_partition:LearntPartition",
        "bce": "candid.losses.pointwise:BCE",
        "gbce": "candid.losses.pointwise:GBCE",
    }
)
"""Losses by the name used in recipes."""
