"""Common behaviour of kernel samplers, and the kernels of both."""

import pickle
from collections import namedtuple

import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.samplers import (
    Quadratic,
    RandomFourier,
    check_support,
)

MAKERS = {
    "random_fourier": lambda **kw: RandomFourier(20, num_candidates=6, block_size=4, **kw),
    "quadratic": lambda **kw: Quadratic(20, num_candidates=6, block_size=4, **kw),
}

Rows = namedtuple("Rows", "positive_ids user_ids query", defaults=(None,))


def vectors(seed=0, num_items=20, width=5):
    return torch.randn(num_items, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=MAKERS)
def sampler(request):
    new_sampler = MAKERS[request.param]()
    new_sampler.refresh(vectors())
    return new_sampler


@pytest.fixture
def batch():
    return Rows(torch.tensor([3, 19, 0]), torch.arange(3), vectors(1, 3))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_sampling_needs_item_vectors(make, batch):
    for act in (
        lambda p: p.sample(*batch),
        lambda p: p.log_expected_count_of(batch.positive_ids, *batch),
        lambda p: p.update(torch.tensor([1]), torch.ones(1, 5)),
    ):
        with pytest.raises(ConfigError, match=r"refresh\(item_vectors\) before the first sample"):
            act(make())


def test_sampling_needs_queries(sampler, rows):
    with pytest.raises(ConfigError, match=r"pass query \[B, D\]"):
        sampler.sample(rows.positive_ids, rows.user_ids)


def test_query_that_is_not_finite_is_named(sampler, batch):
    batch.query[2, 1] = float("nan")
    with pytest.raises(ArtifactError, match="query of row 2 "):
        sampler.sample(*batch)
    batch.query[1] = float("inf")
    with pytest.raises(ArtifactError, match="query of row 1 "):
        sampler.log_expected_count_of(batch.positive_ids, *batch)


def test_item_vectors_that_are_not_finite_are_named(sampler):
    bad = vectors()
    bad[17, 2] = float("nan")
    with pytest.raises(ArtifactError, match="item 17 "):
        sampler.refresh(bad)
    with pytest.raises(ArtifactError, match=r"item 1 .*row 1 "):
        sampler.update(torch.tensor([4, 9]), torch.tensor([[0.0] * 5, [float("inf")] * 5]))
    with pytest.raises(ConfigError, match=r"\[20, D\]"):
        sampler.refresh(vectors(num_items=19))
    with pytest.raises(ConfigError, match=r"2 items need vectors \[2, 5\], got \[2, 4\]"):
        sampler.update(torch.tensor([4, 9]), torch.zeros(2, 4))


def test_ids_belong_to_rows_or_are_shared(sampler, batch):
    of_all = sampler.log_expected_count_of(torch.tensor([[7, 8]]), *batch)
    assert of_all.shape == (3, 2)
    of_each = sampler.log_expected_count_of(torch.tensor([[7, 8]] * 3), *batch)
    assert torch.equal(of_all, of_each)
    one = sampler.log_expected_count_of(torch.tensor([8, 8, 8]), *batch)
    torch.testing.assert_close(one, of_all[:, 1], rtol=0, atol=1e-6)
    for wrong in (torch.tensor([1, 2]), torch.zeros(2, 3).long(), torch.zeros(3, 1, 1).long()):
        with pytest.raises(ConfigError, match=r"\[3\], \[3, n\] or \[1, n\]"):
            sampler.log_expected_count_of(wrong, *batch)


def test_every_item_can_be_sampled(sampler, batch):
    extreme = Rows(batch.positive_ids, batch.user_ids, -20 * batch.query)
    check_support(sampler.log_expected_count_of(torch.arange(20)[None], *extreme))


def test_query_of_zeros_is_accepted(sampler, batch):
    zero = Rows(batch.positive_ids, batch.user_ids, torch.zeros(3, 5))
    log_q = sampler.log_expected_count_of(torch.arange(20)[None], *zero) - torch.tensor(6.0).log()
    assert log_q.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_state_dict_restores_the_samples(sampler, batch):
    other = type(sampler)(20, num_candidates=6, block_size=4)
    assert other.state_dict() == {}
    other.load_state_dict(sampler.state_dict())
    sampled, again = (p.sample(*batch, torch.Generator().manual_seed(3)) for p in (sampler, other))
    assert torch.equal(sampled.ids, again.ids)
    assert torch.equal(sampled.log_expected_count, again.log_expected_count)
    with pytest.raises(ArtifactError, match="has 20 item vectors, but the catalog has 21"):
        type(sampler)(21, num_candidates=6).load_state_dict(sampler.state_dict())


def test_update_changes_the_vectors_in_state_dict(sampler):
    item_vectors = vectors()
    sampler.refresh(item_vectors)
    sampler.update(torch.tensor([2]), torch.zeros(1, 5))
    assert torch.equal(item_vectors, vectors()), "the vectors of the caller must not change"
    expected = vectors()
    expected[2] = 0
    assert torch.equal(sampler.state_dict()["item_vectors.vectors"], expected)
    other = type(sampler)(20, num_candidates=6, block_size=4)
    other.load_state_dict(sampler.state_dict())
    other.update(torch.tensor([3]), torch.zeros(1, 5))
    expected[3] = 0
    assert torch.equal(other.state_dict()["item_vectors.vectors"], expected)


def test_expected_counts_carry_no_gradient(sampler, batch):
    items = vectors().requires_grad_()
    sampler.refresh(items)
    assert not sampler.sample(*batch).log_expected_count.requires_grad


def test_pickle_keeps_the_item_vectors(sampler, batch):
    copied = pickle.loads(pickle.dumps(sampler))
    expected_counts = sampler.log_expected_count_of(batch.positive_ids, *batch)
    assert torch.equal(copied.log_expected_count_of(batch.positive_ids, *batch), expected_counts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFourier(0, num_candidates=4), "num_items"),
        (lambda: Quadratic(5, num_candidates=0), "num_candidates"),
        (lambda: Quadratic(5, num_candidates=3, block_size=0), "block_size"),
        (lambda: Quadratic(5, num_candidates=3, refresh_every=0), "refresh_every"),
        (lambda: RandomFourier(5, num_candidates=3, nu=0.0), "nu must be"),
        (lambda: RandomFourier(5, num_candidates=3, kernel_floor=0.0), "kernel_floor"),
        (lambda: Quadratic(5, num_candidates=3, scale=float("inf")), "scale must be"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_quadratic_is_the_kernel_of_the_paper(batch):
    sampler = Quadratic(20, num_candidates=6, scale=3.0, block_size=4)
    items = vectors()
    sampler.refresh(items)
    kernel = 3.0 * (batch.query.double() @ items.double().T) ** 2 + 1.0
    expected_counts = sampler.log_expected_count_of(torch.arange(20)[None], *batch).double().exp()
    torch.testing.assert_close(
        expected_counts, 6 * kernel / kernel.sum(dim=1, keepdim=True), rtol=1e-4, atol=0
    )


def test_fourier_features_estimate_the_kernel():
    sampler = RandomFourier(20, num_candidates=6, nu=1.7, num_features=20_000)
    kernel = sampler.kernel(5, torch.device("cpu"))
    query, items = vectors(1, 6), vectors(2, 8)
    estimate = kernel.query_features(query) @ kernel.query_features(3 * items).T
    unit = [v / v.norm(dim=1, keepdim=True) for v in (query, items)]
    distance = torch.cdist(*unit)
    expected = torch.exp(-1.7 * distance.square() / 2)
    assert (estimate - expected).abs().max() < 5 / 20_000**0.5


def test_fourier_samples_have_less_variance_than_uniform_ones():
    """Relative variance of an estimate of Z from one sample, on items in clusters."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, generator=generator)
    items = centres[torch.arange(1000) % 10] + 0.4 * torch.randn(1000, 16, generator=generator)
    items = items / items.norm(dim=1, keepdim=True)
    query = 8.0 * centres / centres.norm(dim=1, keepdim=True)
    batch = Rows(torch.zeros(10).long(), torch.arange(10), query)
    p = (query @ items.T).double().softmax(dim=1)
    uniform = (p.square() * 1000).sum(dim=1) - 1
    for sampler, factor in (
        (RandomFourier(1000, num_candidates=1), 10),
        (Quadratic(1000, num_candidates=1), 3),
    ):
        sampler.refresh(items)
        q = sampler.log_expected_count_of(torch.arange(1000)[None], *batch).double().exp()
        assert bool(((p.square() / q).sum(dim=1) - 1 < uniform / factor).all())
