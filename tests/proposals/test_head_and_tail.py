import pytest
import torch

from candid.errors import ConfigError
from candid.proposals import HeadAndTail, Mixture, Popularity, Uniform


def test_the_head_is_the_most_popular_and_the_tail_is_as_it_was(counts, rows):
    tail = Popularity(counts, 5)
    drawn = HeadAndTail(counts, tail, 3).draw(rows, torch.Generator().manual_seed(1))
    alone = tail.draw(rows, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.ids, alone.ids)
    assert torch.equal(drawn.log_count, alone.log_count)
    assert drawn.head.ids.tolist() == [0, 1, 2]
    assert torch.equal(drawn.head.log_count, tail.log_count_of(torch.arange(3), rows))


def test_ties_fall_to_the_lower_id():
    proposal = HeadAndTail(torch.tensor([1, 5, 5, 5, 2]), Uniform(5, 4), 2)
    assert proposal._head_ids(torch.device("cpu")).tolist() == [1, 2]


@pytest.mark.parametrize("num_head", [0, 11])
def test_a_head_has_one_to_all_items(counts, num_head):
    with pytest.raises(ConfigError, match="num_head must be between 1 and the 10 items"):
        HeadAndTail(counts, Uniform(10, 4), num_head)


def test_heads_do_not_nest(counts, rows):
    inner = HeadAndTail(counts, Uniform(10, 4), 2)
    with pytest.raises(ConfigError, match="cannot have a head of its own"):
        HeadAndTail(counts, inner, 2)
    with pytest.raises(ConfigError, match="make the mixture the tail"):
        Mixture([inner, Uniform(10, 4)]).draw(rows)


def test_a_recipe_s_table_becomes_head_and_tail(counts, rows):
    settings = {"num_head": 4, "tail": {"type": "mixture", "components": ["popularity", "uniform"]}}
    proposal = HeadAndTail.Config.model_validate(settings).build(counts)
    drawn = proposal.draw(rows, torch.Generator())
    assert len(drawn.head.ids) == 4
    assert drawn.num_draws == 512
