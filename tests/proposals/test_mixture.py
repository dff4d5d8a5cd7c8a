import pytest
import torch

from candid.errors import ConfigError
from candid.proposals import InBatch, Mixture, Popularity, Uniform


def test_every_candidate_is_corrected_by_every_component(counts, rows, generator):
    drawn = Mixture([Uniform(10, 4), InBatch(counts), Popularity(counts, 5, 0.5)]).draw(
        rows, generator
    )
    q = counts.double() / counts.sum()
    root = counts.double().sqrt() / counts.double().sqrt().sum()
    expected = 4 / 10 + 6 * q + 5 * root
    torch.testing.assert_close(
        drawn.log_count.double().exp(), expected[drawn.ids], rtol=1e-5, atol=0
    )
    assert drawn.num_draws == 15
    assert drawn.owner.tolist() == [-1] * 4 + rows.user_ids.tolist() + [-1] * 5


def test_one_set_makes_the_whole_a_set(counts, rows, generator):
    drawn = Mixture([Uniform(10, 4, distinct=True), Uniform(10, 4)]).draw(rows, generator)
    assert drawn.num_draws is None
    expected = (1 - 0.9**4) + 4 / 10
    assert drawn.log_count.exp().tolist() == pytest.approx([expected] * len(drawn.ids))


def test_an_item_outside_one_component_keeps_the_others_count(counts, rows):
    mixture = Mixture([Popularity(counts, 8), Uniform(10, 2)])
    assert mixture.log_count_of(torch.tensor([9]), rows).exp().item() == pytest.approx(0.2)


def test_an_empty_mixture_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        Mixture([])
