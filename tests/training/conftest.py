"""A sampler that follows the model and learns from the stream, as simple as can be."""

import pytest
import torch

from candid.candidates import Candidates

NUM_ITEMS = 20


class Follower:
    """Draws for each row from the softmax of stale vectors and of a memory of positives."""

    def __init__(self, refresh_every, num_candidates=16):
        self.refresh_every = refresh_every
        self.num_candidates = num_candidates
        self.calls = []
        self.vectors = None
        self.seen = torch.ones(NUM_ITEMS)

    def refresh(self, item_vectors):
        self.calls.append("refresh")
        self.vectors = item_vectors.clone()

    def observe(self, batch):
        self.calls.append("observe")
        self.seen = self.seen + torch.bincount(batch.positive_ids, minlength=NUM_ITEMS)

    def state(self):
        return {"seen": self.seen, "refresh/vectors": self.vectors}

    def restore(self, state):
        self.vectors, self.seen = state["refresh/vectors"], state["seen"]

    def sample(self, batch, generator=None):
        self.calls.append("draw")
        assert batch.query.dtype == torch.float32
        assert not batch.query.requires_grad
        q = self.probability(batch)
        ids = torch.multinomial(q, self.num_candidates, replacement=True, generator=generator)
        log_expected_count = (self.num_candidates * q).log()
        return Candidates(
            ids=ids,
            log_expected_count=log_expected_count.gather(1, ids),
            log_expected_count_positive=log_expected_count.gather(1, batch.positive_ids[:, None])[
                :, 0
            ],
            num_groups=self.num_candidates,
        )

    def log_expected_count_of(self, ids, batch):
        return (self.num_candidates * self.probability(batch)).log().gather(1, ids)

    def probability(self, batch):
        return torch.softmax(batch.query @ self.vectors.T + self.seen.log(), dim=1)


@pytest.fixture
def follower():
    return Follower
