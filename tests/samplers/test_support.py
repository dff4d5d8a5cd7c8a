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
    support,
)

CATALOG = torch.arange(10)
SEEN = torch.arange(10) < 9  # the last item of the counts has none
EVERY, NOT_9 = [True] * 10, SEEN.tolist()


def test_an_item_that_cannot_be_drawn_is_named(counts, rows):
    with pytest.raises(ConfigError, match=r"item 9 can never be drawn.*1 of 10 items"):
        check_support(Popularity(counts, 4).log_expected_count_of(CATALOG, rows))
    with pytest.raises(ConfigError, match="item 9 can never be drawn"):
        Popularity.Config(every_item=True).build(counts)


def test_it_is_named_where_one_row_cannot_reach_it():
    log_expected_count = torch.zeros(2, 5)
    log_expected_count[1, 3] = -torch.inf
    with pytest.raises(ConfigError, match=r"item 3 .*1 of 5"):
        check_support(log_expected_count)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_floor_reaches_every_item(counts, rows, exponent):
    sampler = Popularity(counts, 4, exponent, min_count=2.0, every_item=True)
    weights = torch.tensor([40, 25, 15, 8, 5, 3, 2, 2, 2, 2]).double() ** exponent
    stated = sampler.log_expected_count_of(CATALOG, rows).double().exp()
    torch.testing.assert_close(stated, 4 * weights / weights.sum(), rtol=1e-5, atol=0)


def test_a_mixture_with_uniform_draws_reaches_every_item(counts, rows):
    mixture = Mixture([Popularity(counts, 4), Uniform(10, 1)])
    check_support(mixture.log_expected_count_of(CATALOG, rows))


def test_a_set_is_no_larger_than_the_catalog(counts):
    message = "num_candidates is 11, but the catalog has 10 items"
    for make in (
        lambda: Uniform(10, 11, distinct=True),
        lambda: Popularity(counts, 11, distinct=True),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    assert Uniform(10, 10, distinct=True).num_candidates == 10
    assert Uniform(10, 11).num_candidates == 11


@pytest.mark.parametrize("floor", [-1.0, float("nan")])
def test_a_bad_floor_is_refused(counts, min_count):
    with pytest.raises(ConfigError, match="floor must be"):
        Popularity(counts, 3, min_count=min_count)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda counts: Uniform(10, 4), EVERY),
        (lambda counts: Popularity(counts, 4), NOT_9),
        (lambda counts: Popularity(counts, 4, exponent=0.0), NOT_9),
        (lambda counts: Popularity(counts, 4, min_count=0.5), EVERY),
        (lambda counts: InBatch(counts), NOT_9),
        (lambda counts: InBatch.Config(frequency={"type": "streaming"}).build(counts), NOT_9),
        (lambda counts: SAMPLERS["memory"](counts, 8), NOT_9),
        (lambda counts: SAMPLERS["quadratic"](10, 4), EVERY),
        (lambda counts: Mixture([Popularity(counts, 4), InBatch(counts)]), NOT_9),
        (lambda counts: Mixture([Popularity(counts, 4), Uniform(10, 1)]), EVERY),
        (lambda counts: ExactPopular(counts, Popularity(counts, 4), 3), NOT_9),
        (lambda counts: ExactPopular(counts, Popularity(counts, 4), 10), EVERY),
        (lambda counts: ExactPopular(counts, Uniform(10, 4), 3), EVERY),
        (lambda counts: ExactNearest(10, Popularity(counts, 4), 3, 2), NOT_9),
        (lambda counts: ExactNearest(10, Uniform(10, 4), 3, 2), EVERY),
    ],
)
def test_what_a_sampler_reaches(counts, make, expected):
    sampler, is_positive = make(counts), SEEN.clone()
    assert support(sampler, is_positive).tolist() == expected
    assert torch.equal(is_positive, SEEN)
    if expected == EVERY:
        check_support_covers(sampler, SEEN, "all")
    else:
        with pytest.raises(ConfigError, match=r"item 9 can never be drawn.*1 of 10 items"):
            check_support_covers(sampler, SEEN, "all")
        check_support_covers(sampler, SEEN, "trained")


def test_what_draws_show_is_what_is_said_to_be_reached(counts, rows, generator):
    for sampler in (Popularity(counts, 5000, 0.3), Popularity(counts, 5000, 0.3, min_count=1.0)):
        sampled = set(sampler.sample(rows, generator).ids.tolist())
        assert sampled == set(torch.nonzero(support(sampler, SEEN))[:, 0].tolist())


def test_draws_outside_a_head_do_not_reach_it(counts):
    excluding = Popularity(counts, 4).excluding(torch.tensor([0, 3]))
    assert support(excluding, SEEN).tolist() == [place not in (0, 3, 9) for place in range(10)]


def test_the_first_of_several_is_named_as_its_owner_calls_it(counts):
    counts[4] = 0
    names = [f"film {place}" for place in range(10)]
    with pytest.raises(ConfigError) as refused:
        check_support_covers(Popularity(counts, 4), counts > 0, "all", names)
    text = str(refused.value)
    assert text.startswith("item 'film 4' can never be drawn")
    assert "2 of 10 items" in text
    for way_out in ("a floor above 0", "mix", "training.softmax_over = 'trained'"):
        assert way_out in text


def test_an_item_that_is_trained_on_is_within_reach_or_refused(counts):
    trained = torch.ones(10, dtype=torch.bool)
    for catalog in ("all", "trained"):
        with pytest.raises(ConfigError, match="item 9 can never be drawn") as refused:
            check_support_covers(Popularity(counts, 4), trained, catalog)
        assert "'trained'" not in str(refused.value)


def test_a_sampler_of_another_catalog_is_refused(counts):
    with pytest.raises(ConfigError, match="draws from 5 items, but the catalog has 10"):
        check_support_covers(Mixture([Popularity(counts[:5], 4), Uniform(10, 4)]), SEEN, "all")
