"""Samplers: sources of candidates that state the expected count of each.

To add one, write a file with a subclass of ``Sampler`` and its nested ``Config``, and add a
line to ``SAMPLERS``. ``candid.testing.check_sampler`` checks its promises.
"""

from candid.candidates import Candidates, ExactCandidates
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.count_min_frequency import CountMinFrequency
from candid.samplers.cross_batch_memory import CrossBatchMemory
from candid.samplers.exact_and_sampled import ExactAndSampled
from candid.samplers.exact_nearest import ExactNearest
from candid.samplers.exact_popular import ExactPopular
from candid.samplers.frequency import (
    ExactFrequency,
    Frequency,
    FrequencyComponent,
    FrequencyConfig,
    FrequencyError,
    frequency_error,
)
from candid.samplers.in_batch import InBatch
from candid.samplers.item_vectors import checked_item_vectors
from candid.samplers.mixture import Mixture
from candid.samplers.negatives import with_negatives
from candid.samplers.popularity import Popularity
from candid.samplers.quadratic import Quadratic
from candid.samplers.random_fourier import RandomFourier
from candid.samplers.registry import FREQUENCIES, SAMPLERS
from candid.samplers.sampler import Sampler, sample_groups
from candid.samplers.streaming_frequency import StreamingFrequency
from candid.samplers.support import check_support, check_support_covers
from candid.samplers.uniform import Uniform

__all__ = [
    "FREQUENCIES",
    "SAMPLERS",
    "Candidates",
    "CountMinFrequency",
    "CrossBatchMemory",
    "ExactAndSampled",
    "ExactCandidates",
    "ExactFrequency",
    "ExactNearest",
    "ExactPopular",
    "Frequency",
    "FrequencyComponent",
    "FrequencyConfig",
    "FrequencyError",
    "InBatch",
    "Mixture",
    "Popularity",
    "Quadratic",
    "RandomFourier",
    "Sampler",
    "SamplerComponent",
    "SamplerConfig",
    "StreamingFrequency",
    "Uniform",
    "check_support",
    "check_support_covers",
    "checked_item_vectors",
    "frequency_error",
    "sample_groups",
    "with_negatives",
]
