"""A minimal sampler that follows the model and observes the stream; imports of this folder."""

import sys
from pathlib import Path

import pytest
import torch

from candid.candidates import Candidates
from candid.samplers import Sampler

sys.path.append(str(Path(__file__).parent))  # for step_cases.py

NUM_ITEMS = 20


class Follower(Sampler):
    """A sample for each row from the softmax of stale item vectors times counts of positives."""

    extra_tensor_names = ("vectors",)

    def __init__(self, refresh_every, num_candidates=16):
        super().__init__(NUM_ITEMS)
        self.every = refresh_every
        self.num_candidates = num_candidates
        self.calls = []
        self.vectors = None
        self.register_buffer("seen", torch.ones(NUM_ITEMS))

    @property
    def refresh_every(self):
        return self.every

    def refresh(self, item_vectors):
        self.calls.append("refresh")
        self.vectors = item_vectors

    def observe(self, positive_ids, user_ids=None):
        self.calls.append("observe")
        self.seen = self.seen + torch.bincount(positive_ids, minlength=NUM_ITEMS)

    def get_extra_tensors(self):
        return {} if self.vectors is None else {"vectors": self.vectors}

    def set_extra_tensors(self, state):
        self.vectors = state.get("vectors", self.vectors)

    def sample(self, positive_ids, user_ids=None, query=None, generator=None):
        self.calls.append("sample")
        q = self.probability(query)
        ids = torch.multinomial(q, self.num_candidates, replacement=True, generator=generator)
        log_counts = (self.num_candidates * q).log()
        return Candidates(
            ids=ids,
            log_expected_count=log_counts.gather(1, ids),
            log_expected_count_positive=log_counts.gather(1, positive_ids[:, None])[:, 0],
            num_samples=self.num_candidates,
        )

    def log_expected_count_of(self, ids, positive_ids, user_ids=None, query=None):
        return (self.num_candidates * self.probability(query)).log().gather(1, ids)

    def probability(self, query):
        return torch.softmax(query @ self.vectors.T + self.seen.log(), dim=1)


@pytest.fixture
def follower():
    return Follower
