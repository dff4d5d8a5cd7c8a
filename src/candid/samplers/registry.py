"""Registries of samplers and of item frequencies, by the names used in recipes."""

from typing import Final

from candid.component import Registry

SAMPLERS: Final = Registry(
    {
        "uniform": "candid.samplers.uniform:Uniform",
        "popularity": "candid.samplers.popularity:Popularity",
        "in_batch": "candid.samplers.in_batch:InBatch",
        "cross_batch_memory": "candid.samplers.cross_batch_memory:CrossBatchMemory",
        "random_fourier": "candid.samplers.random_fourier:RandomFourier",
        "quadratic": "candid.samplers.quadratic:Quadratic",
        "exact_popular": "candid.samplers.exact_popular:ExactPopular",
        "exact_nearest": "candid.samplers.exact_nearest:ExactNearest",
        "mixture": "candid.samplers.mixture:Mixture",
    }
)
"""Samplers by the name used in recipes."""

FREQUENCIES: Final = Registry(
    {
        "exact": "candid.samplers.frequency:ExactFrequency",
        "streaming": "candid.samplers.streaming_frequency:StreamingFrequency",
        "count_min": "candid.samplers.count_min_frequency:CountMinFrequency",
    }
)
"""Item frequencies by the name used in recipes."""
