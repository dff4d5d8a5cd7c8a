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


def splitmix64(x):
    """Hash one number with Python integers, as Steele, Lea & Flood (2014) define it."""
    mask = 2**64 - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("num_exact", [1, 40, 90, 100])
def test_ties_at_the_last_place_are_broken_by_a_hash(num_exact):
    """Counts 9, 5 and 1: 20, 60 and 20 items."""
    counts = torch.tensor([1, 5, 9, 5, 5] * 20)
    sampler = ExactPopular(counts, num_exact=num_exact, rest=Uniform(100, num_candidates=4))
    order = sorted(range(100), key=lambda item: (-int(counts[item]), splitmix64(item)))
    assert sampler.sample(torch.tensor([0])).exact.ids.tolist() == sorted(order[:num_exact])


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
