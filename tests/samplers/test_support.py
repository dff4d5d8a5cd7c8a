import pytest
import torch

from candid.errors import ConfigError
from candid.samplers import (
    SAMPLERS,
    ExactNearest,
    ExactPopular,
    InBatch,
    Mixture,
    Popularity,
    Uniform,
    check_support,
    check_support_covers,
)

CATALOG = torch.arange(10)
SEEN = torch.arange(10) < 9  # the last item of the counts has none
EVERY, NOT_9 = [True] * 10, SEEN.tolist()


def test_item_that_cannot_be_sampled_is_named(counts, rows):
    with pytest.raises(ConfigError, match=r"item 9 can never be sampled.*1 of 10 items"):
        check_support(Popularity(counts, num_candidates=4).log_expected_count_of(CATALOG, *rows))
    with pytest.raises(ConfigError, match="item 9 can never be sampled"):
        Popularity.Config(every_item=True).build(counts)


def test_item_that_one_row_cannot_sample_is_named():
    log_expected_count = torch.zeros(2, 5)
    log_expected_count[1, 3] = -torch.inf
    with pytest.raises(ConfigError, match=r"item 3 .*1 of 5"):
        check_support(log_expected_count)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_min_count_reaches_every_item(counts, rows, exponent):
    sampler = Popularity(
        counts, num_candidates=4, exponent=exponent, min_count=2.0, every_item=True
    )
    weights = torch.tensor([40, 25, 15, 8, 5, 3, 2, 2, 2, 2]).double() ** exponent
    expected_counts = sampler.log_expected_count_of(CATALOG, *rows).double().exp()
    torch.testing.assert_close(expected_counts, 4 * weights / weights.sum(), rtol=1e-5, atol=0)


def test_mixture_with_uniform_samples_reaches_every_item(counts, rows):
    mixture = Mixture([Popularity(counts, num_candidates=4), Uniform(10, num_candidates=1)])
    check_support(mixture.log_expected_count_of(CATALOG, *rows))


def test_set_larger_than_the_catalog_is_refused(counts):
    message = "num_candidates is 11, but the catalog has 10 items"
    for make in (
        lambda: Uniform(10, num_candidates=11, distinct=True),
        lambda: Popularity(counts, num_candidates=11, distinct=True),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    assert Uniform(10, num_candidates=10, distinct=True).num_candidates == 10
    assert Uniform(10, num_candidates=11).num_candidates == 11


@pytest.mark.parametrize("min_count", [-1.0, float("nan")])
def test_bad_min_count_is_refused(counts, min_count):
    with pytest.raises(ConfigError, match="min_count must be"):
        Popularity(counts, num_candidates=3, min_count=min_count)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda counts: Uniform(10, num_candidates=4), EVERY),
        (lambda counts: Popularity(counts, num_candidates=4), NOT_9),
        (lambda counts: Popularity(counts, num_candidates=4, exponent=0.0), NOT_9),
        (lambda counts: Popularity(counts, num_candidates=4, min_count=0.5), EVERY),
        (lambda counts: InBatch(counts), NOT_9),
        (lambda counts: InBatch.Config(frequency={"type": "streaming"}).build(counts), NOT_9),
        (lambda counts: SAMPLERS["cross_batch_memory"](counts, size=8), NOT_9),
        (lambda counts: SAMPLERS["quadratic"](10, num_candidates=4), EVERY),
        (lambda counts: Mixture([Popularity(counts, num_candidates=4), InBatch(counts)]), NOT_9),
        (
            lambda counts: Mixture(
                [Popularity(counts, num_candidates=4), Uniform(10, num_candidates=1)]
            ),
            EVERY,
        ),
        (
            lambda counts: ExactPopular(
                counts, num_exact=3, rest=Popularity(counts, num_candidates=4)
            ),
            NOT_9,
        ),
        (
            lambda counts: ExactPopular(
                counts, num_exact=10, rest=Popularity(counts, num_candidates=4)
            ),
            EVERY,
        ),
        (
            lambda counts: ExactPopular(counts, num_exact=3, rest=Uniform(10, num_candidates=4)),
            EVERY,
        ),
        (
            lambda counts: ExactNearest(
                10, num_exact=3, rest=Popularity(counts, num_candidates=4), k=2
            ),
            NOT_9,
        ),
        (
            lambda counts: ExactNearest(10, num_exact=3, rest=Uniform(10, num_candidates=4), k=2),
            EVERY,
        ),
    ],
)
def test_support_of_every_kind_of_sampler(counts, make, expected):
    sampler, is_positive = make(counts), SEEN.clone()
    assert sampler.support(is_positive).tolist() == expected
    assert torch.equal(is_positive, SEEN)
    if expected == EVERY:
        check_support_covers(sampler, SEEN, "all")
    else:
        with pytest.raises(ConfigError, match=r"item 9 can never be sampled.*1 of 10 items"):
            check_support_covers(sampler, SEEN, "all")
        check_support_covers(sampler, SEEN, "trained")


def test_support_is_the_set_of_items_sampled(counts, rows, generator):
    for sampler in (
        Popularity(counts, num_candidates=5000, exponent=0.3),
        Popularity(counts, num_candidates=5000, exponent=0.3, min_count=1.0),
    ):
        sampled = set(sampler.sample(*rows, generator).ids.tolist())
        assert sampled == set(torch.nonzero(sampler.support(SEEN))[:, 0].tolist())


def test_support_has_no_excluded_items(counts):
    others = Popularity(counts, num_candidates=4).excluding(torch.tensor([0, 3]))
    assert others.support(SEEN).tolist() == [item not in (0, 3, 9) for item in range(10)]


def test_first_item_out_of_support_is_named_by_source_id(counts):
    counts[4] = 0
    names = [f"film {item}" for item in range(10)]
    with pytest.raises(ConfigError) as refused:
        check_support_covers(Popularity(counts, num_candidates=4), counts > 0, "all", names)
    text = str(refused.value)
    assert text.startswith("item 'film 4' can never be sampled")
    assert "2 of 10 items" in text
    for way_out in (
        "min_count of a popularity sampler above 0",
        "mix",
        "training.softmax_over = 'trained'",
    ):
        assert way_out in text


def test_trained_item_out_of_support_is_refused_either_way(counts):
    trained = torch.ones(10, dtype=torch.bool)
    for catalog in ("all", "trained"):
        with pytest.raises(ConfigError, match="item 9 can never be sampled") as refused:
            check_support_covers(Popularity(counts, num_candidates=4), trained, catalog)
        assert "'trained'" not in str(refused.value)


def test_sampler_of_another_catalog_is_refused(counts):
    with pytest.raises(ConfigError, match="belong to catalogs of 5 and 10 items"):
        Mixture([Popularity(counts[:5], num_candidates=4), Uniform(10, num_candidates=4)])
    with pytest.raises(ConfigError, match="the sampler has 5 items, but the catalog has 10"):
        check_support_covers(Popularity(counts[:5], num_candidates=4), SEEN, "all")
