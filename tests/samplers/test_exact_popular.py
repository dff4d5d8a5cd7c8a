import pytest
import torch

from candid.errors import ConfigError
from candid.samplers import ExactPopular, InBatch, Mixture, Popularity, Uniform


def test_exact_candidates_are_the_most_popular_and_never_sampled(counts, rows, generator):
    sampled = ExactPopular(counts, num_exact=3, rest=Popularity(counts, num_candidates=50)).sample(
        *rows, generator
    )
    assert sampled.exact.ids.tolist() == [0, 1, 2]
    assert bool(sampled.exact.log_expected_count.isneginf().all())
    assert set(sampled.ids.tolist()) <= set(range(3, 9))  # the last item has no count
    assert sampled.num_samples == 50
    assert sampled.log_expected_count.exp().tolist() == pytest.approx(
        [50 * int(counts[i]) / 20 for i in sampled.ids]
    )
    # Exact items are never sampled, 4 and 7 of 20 counts are 5 and 1.
    assert sampled.log_expected_count_positive.exp().tolist() == pytest.approx(
        [0, 0, 0, 12.5, 0, 2.5]
    )


def test_rest_that_cannot_exclude_items_is_unchanged(counts, rows):
    rest = InBatch(counts)
    sampled, alone = ExactPopular(counts, num_exact=3, rest=rest).sample(*rows), rest.sample(*rows)
    assert torch.equal(sampled.ids, alone.ids)
    assert torch.equal(sampled.log_expected_count, alone.log_expected_count)
    assert torch.equal(
        sampled.exact.log_expected_count, rest.log_expected_count_of(torch.arange(3), *rows)
    )


def test_ties_go_to_the_lower_id():
    sampler = ExactPopular(
        torch.tensor([1, 5, 5, 5, 2]), num_exact=2, rest=Uniform(5, num_candidates=4)
    )
    assert sampler.sample(torch.tensor([0])).exact.ids.tolist() == [1, 2]


@pytest.mark.parametrize("num_exact", [0, 11])
def test_num_exact_is_between_one_and_all_items(counts, num_exact):
    with pytest.raises(ConfigError, match="num_exact must be between 1 and the 10 items"):
        ExactPopular(counts, num_exact=num_exact, rest=Uniform(10, num_candidates=4))


def test_exact_candidates_do_not_nest(counts):
    inner = ExactPopular(counts, num_exact=2, rest=Uniform(10, num_candidates=4))
    with pytest.raises(ConfigError, match="cannot have exact candidates itself"):
        ExactPopular(counts, num_exact=2, rest=inner)
    with pytest.raises(ConfigError, match="make the mixture the 'rest'"):
        Mixture([inner, Uniform(10, num_candidates=4)])


def test_recipe_table_builds_both_parts(counts, rows):
    settings = {
        "num_exact": 4,
        "rest": {"type": "mixture", "components": ["popularity", "uniform"]},
    }
    sampler = ExactPopular.Config.model_validate(settings).build(counts)
    sampled = sampler.sample(*rows, torch.Generator())
    assert len(sampled.exact.ids) == 4
    assert sampled.num_samples == 512
