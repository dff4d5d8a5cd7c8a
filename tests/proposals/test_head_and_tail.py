import pytest
import torch

from candid.errors import ConfigError
from candid.proposals import HeadAndTail, InBatch, Mixture, Popularity, Uniform


def test_the_head_is_the_most_popular_and_no_draw_is_lost_to_it(counts, rows, generator):
    drawn = HeadAndTail(counts, Popularity(counts, 50), 3).draw(rows, generator)
    assert drawn.head.ids.tolist() == [0, 1, 2]
    assert bool(drawn.head.log_count.isneginf().all())
    assert set(drawn.ids.tolist()) <= set(range(3, 9))  # the last item has no count
    assert drawn.num_draws == 50
    assert drawn.log_count.exp().tolist() == pytest.approx(
        [50 * int(counts[i]) / 20 for i in drawn.ids]
    )
    # Items of the head are never drawn, 4 and 7 of 20 counts are 5 and 1.
    assert drawn.log_count_positive.exp().tolist() == pytest.approx([0, 0, 0, 12.5, 0, 2.5])


def test_a_tail_that_cannot_avoid_the_head_is_as_it_was(counts, rows):
    tail = InBatch(counts)
    drawn, alone = HeadAndTail(counts, tail, 3).draw(rows), tail.draw(rows)
    assert torch.equal(drawn.ids, alone.ids)
    assert torch.equal(drawn.log_count, alone.log_count)
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
