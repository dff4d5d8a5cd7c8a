"""Where candidates come from, and how often each was expected.

A sampler draws the candidates of a step and states the log expected count of each. To add
one: a file with the class and its nested ``Config``, and one line in ``SAMPLERS``.
"""

from candid.candidates import Candidates, ExactCandidates, Positives
from candid.samplers.adaptive import (
    AdaptiveSampler,
    Compound,
    EncodedBatch,
    Observer,
    Reporter,
    Stateful,
    checked_item_vectors,
    query_of,
)
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.count_min_frequency import CountMinFrequency
from candid.samplers.cross_batch_memory import CrossBatchMemory
from candid.samplers.exact_nearest import ExactNearest
from candid.samplers.exact_popular import ExactPopular
from candid.samplers.frequency import (
    ExactFrequency,
    Frequency,
    FrequencyComponent,
    FrequencyConfig,
    StreamFrequency,
)
from candid.samplers.frequency_error import FrequencyError, frequency_error
from candid.samplers.in_batch import InBatch
from candid.samplers.mixture import Mixture
from candid.samplers.negatives import with_negatives
from candid.samplers.popularity import Popularity
from candid.samplers.quadratic import Quadratic
from candid.samplers.random_fourier import RandomFourier
from candid.samplers.registry import FREQUENCIES, SAMPLERS
from candid.samplers.sampler import Sampler, sample_groups
from candid.samplers.streaming_frequency import StreamingFrequency
from candid.samplers.support import HasSupport, check_support, check_support_covers, support
from candid.samplers.uniform import Uniform

__all__ = [
    "FREQUENCIES",
    "SAMPLERS",
    "AdaptiveSampler",
    "Candidates",
    "Compound",
    "CountMinFrequency",
    "CrossBatchMemory",
    "EncodedBatch",
    "ExactCandidates",
    "ExactFrequency",
    "ExactNearest",
    "ExactPopular",
    "Frequency",
    "FrequencyComponent",
    "FrequencyConfig",
    "FrequencyError",
    "HasSupport",
    "InBatch",
    "Mixture",
    "Observer",
    "Popularity",
    "Positives",
    "Quadratic",
    "RandomFourier",
    "Reporter",
    "Sampler",
    "SamplerComponent",
    "SamplerConfig",
    "Stateful",
    "StreamFrequency",
    "StreamingFrequency",
    "Uniform",
    "check_support",
    "check_support_covers",
    "checked_item_vectors",
    "frequency_error",
    "query_of",
    "sample_groups",
    "support",
    "with_negatives",
]
