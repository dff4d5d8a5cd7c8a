import pytest
import torch

from candid.errors import ConfigError
from candid.proposals import Mixture, Popularity, Uniform, check_reach

CATALOG = torch.arange(10)


def test_an_item_that_cannot_be_drawn_is_named(counts, rows):
    with pytest.raises(ConfigError, match=r"item 9 can never be drawn.*1 of 10 items"):
        check_reach(Popularity(counts, 4).log_count_of(CATALOG, rows))
    with pytest.raises(ConfigError, match="item 9 can never be drawn"):
        Popularity.Config(every_item=True).build(counts)


def test_it_is_named_where_one_row_cannot_reach_it():
    log_count = torch.zeros(2, 5)
    log_count[1, 3] = -torch.inf
    with pytest.raises(ConfigError, match=r"item 3 .*1 of 5"):
        check_reach(log_count)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_floor_reaches_every_item(counts, rows, alpha):
    proposal = Popularity(counts, 4, alpha, floor=2.0, every_item=True)
    weights = torch.tensor([40, 25, 15, 8, 5, 3, 2, 2, 2, 2]).double() ** alpha
    stated = proposal.log_count_of(CATALOG, rows).double().exp()
    torch.testing.assert_close(stated, 4 * weights / weights.sum(), rtol=1e-5, atol=0)


def test_a_mixture_with_uniform_draws_reaches_every_item(counts, rows):
    mixture = Mixture([Popularity(counts, 4), Uniform(10, 1)])
    check_reach(mixture.log_count_of(CATALOG, rows))


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
def test_a_bad_floor_is_refused(counts, floor):
    with pytest.raises(ConfigError, match="floor must be"):
        Popularity(counts, 3, floor=floor)
