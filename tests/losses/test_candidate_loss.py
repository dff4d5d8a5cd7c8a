"""The step of a loss that samples its candidates: refresh, sample, observe, state."""

import pytest
import torch
from torch import nn

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ArtifactError, ConfigError, DataError
from candid.index import ExactIndex
from candid.losses import LOSSES
from candid.losses.candidate_loss import ObjectiveWithSampler
from candid.samplers import ExactNearest, ExactPopular, InBatch, Mixture, Sampler, Uniform

V, D = 20, 4


class Follower(Sampler):
    """A sample for each row from the softmax of stale item vectors times counts of positives."""

    extra_tensor_names = ("vectors",)

    def __init__(self, refresh_every, num_candidates=16):
        super().__init__(V)
        self.every = refresh_every
        self.num_candidates = num_candidates
        self.calls = []
        self.vectors = None
        self.register_buffer("seen", torch.ones(V))

    @property
    def refresh_every(self):
        return self.every

    def refresh(self, item_vectors):
        self.calls.append("refresh")
        self.vectors = item_vectors

    def observe(self, positive_ids, user_ids=None):
        self.calls.append("observe")
        self.seen = self.seen + torch.bincount(positive_ids, minlength=V)

    def metrics(self):
        return {"seen": float(self.seen.sum())}

    def get_extra_tensors(self):
        return {} if self.vectors is None else {"vectors": self.vectors}

    def set_extra_tensors(self, state):
        self.vectors = state.get("vectors", self.vectors)

    def sample(self, positive_ids, user_ids=None, query=None, generator=None):
        self.calls.append("sample")
        self.query = query
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


def loss_of(sampler, name="sampled_softmax", **settings):
    return ObjectiveWithSampler(LOSSES[name].Config().build(V), sampler, **settings)


def ids_of(*ids):
    return torch.tensor(ids)


def test_sampler_is_refreshed_before_the_first_step_and_at_its_interval():
    sampler, times = Follower(3), []

    def item_vectors():
        times.append(0)
        return torch.zeros(V, D)

    loss = loss_of(sampler)
    query = torch.zeros(2, D, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(4):
        loss(query, torch.zeros(V, D), ids_of(1, 2), item_vectors=item_vectors)
    step = ["sample", "observe"]
    assert sampler.calls == ["refresh", *step, *step, *step, "refresh", *step]
    assert len(times) == 2
    assert sampler.query.dtype == torch.float32
    assert not sampler.query.requires_grad


def test_evaluation_neither_observes_nor_counts_steps():
    sampler = Follower(2)
    loss = loss_of(sampler)
    table = torch.randn(V, D)
    loss.eval()(torch.zeros(2, D), table, ids_of(1, 2))
    assert (loss.num_steps, sampler.calls) == (0, ["refresh", "sample"])
    loss.train()
    for _ in range(3):
        loss(torch.zeros(2, D), lambda ids: table[ids], ids_of(1, 2))
    loss.eval()(torch.zeros(2, D), table, ids_of(1, 2))
    assert loss.num_steps == 3
    assert sampler.calls.count("refresh") == 3  # in evaluation, and in steps 0 and 2
    assert sampler.calls.count("observe") == 3
    torch.testing.assert_close(sampler.vectors, table)


def test_sampler_without_refresh_needs_no_vectors():
    def never():
        raise AssertionError

    for sampler in (Uniform(V, num_candidates=4), Mixture([Uniform(V, num_candidates=2)] * 2)):
        loss = loss_of(sampler)
        loss(torch.zeros(1, D), torch.zeros(V, D), ids_of(1), item_vectors=never)
        assert loss.state_dict().keys() == {"num_steps"}


def test_sampler_with_a_sample_per_row_is_called_once_for_several_groups():
    sampler = Follower(1)
    loss_of(sampler, num_groups=3)(torch.zeros(3, D), torch.zeros(V, D), ids_of(1, 2, 3))
    assert sampler.calls == ["refresh", "sample", "observe"]


def test_given_negatives_are_counted_before_the_batch_is_observed():
    negative_counts = []

    class Recorder:
        needs_candidates = True

        def __call__(self, query, items, positive_ids, candidates, *, effective_sample_size):
            negative_counts.append(candidates.exact.log_expected_count.exp())
            return (
                LOSSES["sampled_softmax"].Config().build(V)(query, items, positive_ids, candidates)
            )

    sampler = Follower(1)
    loss = ObjectiveWithSampler(Recorder(), sampler)
    for _ in range(2):
        before = sampler.seen.clone()
        loss(
            torch.zeros(2, D), torch.zeros(V, D), ids_of(7, 7), negative_ids=torch.tensor([[7]] * 2)
        )
        expected = 16 * float(before[7] / before.sum())
        assert negative_counts[-1].tolist() == [[pytest.approx(expected)]] * 2


def test_hooks_reach_nested_samplers():
    slow, quick = Follower(7), Follower(2)
    rest = Mixture([Uniform(V, num_candidates=4), slow, quick])
    sampler = ExactPopular(torch.ones(V), num_exact=2, rest=rest)
    assert sampler.refresh_every == 2
    vectors = torch.randn(V, D)
    sampler.refresh(vectors)
    sampler.observe(ids_of(3, 3))
    state = sampler.state_dict()
    assert state.keys() == {
        f"rest.components.{part}.{name}" for part in (1, 2) for name in ("seen", "vectors")
    }
    assert sampler.metrics() == {"rest/1/seen": 22.0, "rest/2/seen": 22.0}
    others = Follower(7), Follower(2)
    rest = Mixture([Uniform(V, num_candidates=4), *others])
    ExactPopular(torch.ones(V), num_exact=2, rest=rest).load_state_dict(state)
    for other in others:
        assert torch.equal(other.vectors, vectors)
        assert other.seen[3] == 3


def test_state_dict_continues_the_steps(tmp_path):
    table = torch.randn(V, D)
    query, generator = torch.randn(2, D), torch.Generator().manual_seed(1)
    loss = loss_of(Follower(4))
    for _ in range(3):
        loss(query, table, ids_of(1, 2), generator=generator)
    other = loss_of(Follower(4))
    other.load_state_dict(loss.state_dict())
    assert other.num_steps == 3
    assert other.metrics() == {"sampler/seen": 26.0}
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    for one, two in zip(
        *(
            [each(query, 2 * table, ids_of(1, 2), generator=seed) for _ in range(2)]
            for each, seed in zip((loss, other), seeds, strict=True)
        ),
        strict=True,
    ):
        assert torch.equal(one, two)
    assert other.sampler.calls == ["sample", "observe", "refresh", "sample", "observe"]


def test_index_of_nearest_candidates_is_not_stale_after_updates_in_place():
    """The index keeps the vectors of the refresh: its bounds on scores hold only for them."""
    generator = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(V, D, generator=generator))
    before = table.detach().clone()
    rest = Uniform(V, num_candidates=4)
    sampler = ExactNearest(V, num_exact=6, rest=rest, k=3, refresh_every=100)
    loss = loss_of(sampler)
    query = torch.randn(5, D, generator=generator)
    loss(query, table, torch.arange(5), generator=generator).backward()
    with torch.no_grad():
        table.mul_(-7.0).add_(3.0)  # in place, like an optimizer step
    index = sampler.item_vectors.structure
    expected = ExactIndex.Config().build(before)
    nearest, expected_nearest = index.search(query, 3), expected.search(query, 3)
    assert torch.equal(nearest.item_ids, expected_nearest.item_ids)
    assert torch.equal(nearest.scores, expected_nearest.scores)
    assert torch.equal(sampler.item_vectors.vectors, before)
    assert torch.equal(loss.state_dict()["sampler.item_vectors.vectors"], before)
    # The scores are exact products with the vectors of the refresh.
    exact = (query @ before.T).gather(1, nearest.item_ids)
    torch.testing.assert_close(nearest.scores, exact)


@pytest.mark.parametrize("name", ["bce", "gbce", "sampled_softmax"])
def test_every_loss_with_candidates_has_the_same_driver(name):
    table = torch.randn(V, D, requires_grad=True)
    loss = loss_of(InBatch(torch.ones(V)), name)
    output = loss.compare(torch.randn(3, D), table, ids_of(1, 2, 3), ids_of(0, 1, 2))
    output.loss.sum().backward()
    assert output.loss.shape == (3,)
    assert bool(torch.isfinite(table.grad).all())


class Stated(Sampler):
    """Items 3 and 5, one of them with an impossible count."""

    def __init__(self, exact=None):
        super().__init__(V)
        self.exact = exact

    def sample(self, positive_ids, user_ids=None, query=None, generator=None):
        ids = torch.tensor([3, 5])
        exact = None
        if self.exact is not None:
            exact = ExactCandidates(torch.tensor(self.exact), torch.zeros(len(self.exact)))
        log_counts = torch.tensor([0.0, -torch.inf])
        return Candidates(ids, log_counts, torch.zeros(len(positive_ids)), 2, exact=exact)

    def log_expected_count_of(self, ids, positive_ids, user_ids=None, query=None):
        return torch.zeros(ids.shape)


def test_candidate_with_expected_count_zero_is_named():
    table = torch.randn(V, D, requires_grad=True)
    with pytest.raises(DataError, match="returned item 5 and states that its expected count is 0"):
        loss_of(Stated())(torch.randn(1, D), table, ids_of(1))
    # If it is also an exact candidate, it is masked, and no gradient is NaN.
    loss_of(Stated(exact=[5]))(torch.randn(1, D), table, ids_of(1)).backward()
    assert bool(torch.isfinite(table.grad).all())


def test_refresh_with_vectors_that_are_not_finite_names_the_item():
    rest = Uniform(V, num_candidates=4)
    loss = loss_of(ExactNearest(V, num_exact=6, rest=rest, k=3))
    table = torch.randn(V, D)
    table[11] = torch.nan
    with pytest.raises(ArtifactError, match="the vector of item 11"):
        loss(torch.randn(2, D), table, ids_of(1, 2))


def test_tables_move_but_keep_their_dtype():
    counts = torch.tensor([1e6, 3.0] + [1.0] * (V - 2))
    sampler = Mixture(
        [
            InBatch.Config(frequency={"type": "streaming", "num_buckets": 64}).build(counts),
            ExactPopular(counts, num_exact=1, rest=Uniform(V, num_candidates=3)).rest,
        ]
    )
    loss = loss_of(sampler)
    loss.sampler.observe(torch.arange(V))
    before = sampler.log_expected_count_of(torch.arange(V), ids_of(1, 2))
    loss.bfloat16()
    assert torch.equal(sampler.log_expected_count_of(torch.arange(V), ids_of(1, 2)), before)
    assert all(buffer.is_cpu for buffer in loss.buffers())
    loss.to("meta")
    assert all(buffer.is_meta for buffer in loss.buffers())


def test_positives_on_another_device_are_refused_with_the_remedy():
    loss = loss_of(Uniform(V, num_candidates=4))
    query = torch.zeros(2, D, device="meta")
    message = r"positive_ids are on meta, but .* on cpu: call loss.to\('meta'\) first"
    with pytest.raises(ConfigError, match=message):
        loss(query, torch.zeros(V, D, device="meta"), ids_of(1, 2).to("meta"))


def test_tensor_as_sampler_is_refused():
    with pytest.raises(ConfigError, match="must be a candid sampler, got Tensor: write for"):
        loss_of(torch.ones(V))
