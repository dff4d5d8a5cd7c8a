"""When a sampler is refreshed, what it sees, and what survives a cut."""

from types import SimpleNamespace

import pytest
import torch

from candid.samplers import AdaptiveSampler, ExactPopular, Mixture, Observer, Stateful, Uniform
from candid.training.candidate_source import CandidateSource

NUM_ITEMS = 20


def batch_of(positive_ids):
    ids = torch.tensor(positive_ids)
    return SimpleNamespace(positive_ids=ids, user_ids=torch.arange(len(ids)))


def test_refreshes_before_the_first_step_and_then_at_its_interval(follower):
    sampler, times = follower(3), []
    source = CandidateSource(
        sampler, 1, torch.Generator(), lambda: times.append(0) or torch.zeros(NUM_ITEMS, 4)
    )
    query = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(4):
        source.candidates(batch_of([1, 2]), query)
    step = ["draw", "observe"]
    assert sampler.calls == ["refresh", *step, *step, *step, "refresh", *step]
    assert len(times) == 2


def test_a_draw_for_every_row_is_one_draw_however_many_are_asked(follower):
    source = CandidateSource(follower(1), 3, torch.Generator(), lambda: torch.zeros(NUM_ITEMS, 4))
    assert source.candidates(batch_of([1, 2, 3]), torch.zeros(3, 4)).ids.shape == (3, 16)
    assert source.sampler.calls == ["refresh", "draw", "observe"]


def test_what_follows_nothing_needs_no_vectors():
    def never():
        raise AssertionError

    mixture = Mixture([Uniform(5, 2), Uniform(5, 3)])
    assert mixture.refresh_every is None
    for sampler in (Uniform(5, 4), mixture):
        source = CandidateSource(sampler, 1, torch.Generator(), never)
        source.candidates(batch_of([1]), torch.zeros(1, 4))
        assert source.state().keys() == {"steps"}


def test_compounds_do_all_for_their_parts(follower):
    slow, quick = follower(7), follower(2)
    quick.seen = torch.arange(NUM_ITEMS)
    sampler = ExactPopular(torch.ones(NUM_ITEMS), Mixture([Uniform(20, 4), slow, quick]), 2)
    for protocol in (AdaptiveSampler, Observer, Stateful):
        assert isinstance(sampler, protocol)
    assert sampler.refresh_every == 2
    vectors = torch.randn(NUM_ITEMS, 4)
    sampler.refresh(vectors)
    sampler.observe(batch_of([3, 3]))
    state = sampler.state()
    assert state.keys() == {
        f"tail/{part}/{name}" for part in (1, 2) for name in ("seen", "refresh/vectors")
    }
    others = follower(7), follower(2)
    ExactPopular(torch.ones(NUM_ITEMS), Mixture([Uniform(20, 4), *others]), 2).restore(state)
    for one, other in zip((slow, quick), others, strict=True):
        assert torch.equal(one.seen, other.seen)
        assert torch.equal(one.vectors, other.vectors)
        assert torch.equal(other.vectors, vectors)
    assert others[0].seen[3] == 3
    assert others[1].seen[3] == 5


def test_given_negatives_are_stated_before_the_batch_is_learnt_from(follower):
    source = CandidateSource(follower(1), 1, torch.Generator(), lambda: torch.zeros(NUM_ITEMS, 4))
    negatives = torch.tensor([[7], [7]])
    for _ in range(2):
        before = source.sampler.seen.clone()
        candidates = source.candidates(batch_of([7, 7]), torch.zeros(2, 4), negatives)
        expected = 16 * before[7] / before.sum()
        assert (
            candidates.head.log_expected_count.exp().tolist()
            == [[pytest.approx(expected.item())]] * 2
        )
