import pytest
import torch

from candid.errors import ConfigError
from candid.samplers import ExactPopular, InBatch, Mixture, Popularity, Uniform


def test_the_head_is_the_most_popular_and_no_draw_is_lost_to_it(counts, rows, generator):
    sampled = ExactPopular(counts, Popularity(counts, 50), 3).sample(rows, generator)
    assert sampled.exact.ids.tolist() == [0, 1, 2]
    assert bool(sampled.exact.log_expected_count.isneginf().all())
    assert set(sampled.ids.tolist()) <= set(range(3, 9))  # the last item has no count
    assert sampled.num_samples == 50
    assert sampled.log_expected_count.exp().tolist() == pytest.approx(
        [50 * int(counts[i]) / 20 for i in sampled.ids]
    )
    # Items of the head are never drawn, 4 and 7 of 20 counts are 5 and 1.
    assert sampled.log_expected_count_positive.exp().tolist() == pytest.approx(
        [0, 0, 0, 12.5, 0, 2.5]
    )


def test_a_tail_that_cannot_avoid_the_head_is_as_it_was(counts, rows):
    rest = InBatch(counts)
    sampled, alone = ExactPopular(counts, rest, 3).sample(rows), rest.sample(rows)
    assert torch.equal(sampled.ids, alone.ids)
    assert torch.equal(sampled.log_expected_count, alone.log_expected_count)
    assert torch.equal(
        sampled.exact.log_expected_count, rest.log_expected_count_of(torch.arange(3), rows)
    )


def test_ties_fall_to_the_lower_id():
    sampler = ExactPopular(torch.tensor([1, 5, 5, 5, 2]), Uniform(5, 4), 2)
    assert sampler._head_ids(torch.device("cpu")).tolist() == [1, 2]


@pytest.mark.parametrize("num_exact", [0, 11])
def test_a_head_has_one_to_all_items(counts, num_exact):
    with pytest.raises(ConfigError, match="num_exact must be between 1 and the 10 items"):
        ExactPopular(counts, Uniform(10, 4), num_exact)


def test_heads_do_not_nest(counts, rows):
    inner = ExactPopular(counts, Uniform(10, 4), 2)
    with pytest.raises(ConfigError, match="cannot have a head of its own"):
        ExactPopular(counts, inner, 2)
    with pytest.raises(ConfigError, match="make the mixture the tail"):
        Mixture([inner, Uniform(10, 4)]).sample(rows)


def test_a_recipe_s_table_becomes_head_and_tail(counts, rows):
    settings = {
        "num_exact": 4,
        "rest": {"type": "mixture", "components": ["popularity", "uniform"]},
    }
    sampler = ExactPopular.Config.model_validate(settings).build(counts)
    sampled = sampler.sample(rows, torch.Generator())
    assert len(sampled.exact.ids) == 4
    assert sampled.num_samples == 512
