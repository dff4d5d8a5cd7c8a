"""Where candidates come from, and how often each was expected.

A proposal draws the candidates of a step and states the log expected count of each. To add
one: a file with the class and its nested ``Config``, and one line in ``PROPOSALS``.
"""

from typing import Final

from candid.proposals.adaptive import (
    AdaptiveProposal,
    Compound,
    EncodedBatch,
    Observer,
    Reporter,
    Stateful,
    checked_item_vectors,
    query_of,
)
from candid.proposals.candidates import Candidates, Head, Positives, Proposal, several_draws
from candid.proposals.config import ProposalComponent, ProposalConfig
from candid.proposals.count_min_frequency import CountMinFrequency
from candid.proposals.frequency import (
    ExactFrequency,
    Frequency,
    FrequencyComponent,
    FrequencyConfig,
    StreamFrequency,
)
from candid.proposals.frequency_error import FrequencyError, frequency_error
from candid.proposals.head_and_tail import HeadAndTail
from candid.proposals.in_batch import InBatch
from candid.proposals.memory import Memory
from candid.proposals.mixture import Mixture
from candid.proposals.nearest_head import NearestHead
from candid.proposals.negatives import with_negatives
from candid.proposals.popularity import Popularity
from candid.proposals.quadratic import Quadratic
from candid.proposals.random_fourier import RandomFourier
from candid.proposals.reach import Reaching, check_catalog_is_reached, check_reach, reached
from candid.proposals.streaming_frequency import StreamingFrequency
from candid.proposals.uniform import Uniform

PROPOSALS: Final = {
    "uniform": Uniform,
    "popularity": Popularity,
    "in_batch": InBatch,
    "memory": Memory,
    "random_fourier": RandomFourier,
    "quadratic": Quadratic,
    "head_and_tail": HeadAndTail,
    "nearest_head": NearestHead,
    "mixture": Mixture,
}
"""Proposals by the name used in recipes."""

FREQUENCIES: Final = {
    "exact": ExactFrequency,
    "streaming": StreamingFrequency,
    "count_min": CountMinFrequency,
}
"""Item frequencies by the name used in recipes."""

__all__ = [
    "FREQUENCIES",
    "PROPOSALS",
    "AdaptiveProposal",
    "Candidates",
    "Compound",
    "CountMinFrequency",
    "EncodedBatch",
    "ExactFrequency",
    "Frequency",
    "FrequencyComponent",
    "FrequencyConfig",
    "FrequencyError",
    "Head",
    "HeadAndTail",
    "InBatch",
    "Memory",
    "Mixture",
    "NearestHead",
    "Observer",
    "Popularity",
    "Positives",
    "Proposal",
    "ProposalComponent",
    "ProposalConfig",
    "Quadratic",
    "RandomFourier",
    "Reaching",
    "Reporter",
    "Stateful",
    "StreamFrequency",
    "StreamingFrequency",
    "Uniform",
    "check_catalog_is_reached",
    "check_reach",
    "checked_item_vectors",
    "frequency_error",
    "query_of",
    "reached",
    "several_draws",
    "with_negatives",
]
