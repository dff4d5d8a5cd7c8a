import pytest
import torch

from candid.proposals import Candidates, InBatch, Popularity, Uniform, several_draws


class TestSeveralDraws:
    def test_one_draw_is_the_proposal_s_own(self, counts, rows):
        proposal = Popularity(counts, 5)
        drawn = several_draws(proposal, rows, 1, torch.Generator().manual_seed(1))
        alone = proposal.draw(rows, torch.Generator().manual_seed(1))
        assert torch.equal(drawn.ids, alone.ids)
        assert drawn.ids.ndim == 1

    @pytest.mark.parametrize(("num_draws", "expected"), [(2, 2), (3, 3), (4, 3), (6, 6), (50, 6)])
    def test_never_more_than_the_rows_can_share(self, counts, rows, num_draws, expected):
        drawn = several_draws(Popularity(counts, 5), rows, num_draws, torch.Generator())
        assert drawn.ids.shape == drawn.log_count.shape == (expected, 5)
        assert drawn.log_count_positive.shape == (6,)
        assert drawn.num_draws == 5

    def test_a_shorter_set_is_filled_up_by_what_is_no_candidate(self, counts, rows):
        proposal = Uniform(len(counts), 8, distinct=True)
        drawn = several_draws(proposal, rows, 6, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        alone = [proposal.draw(rows, generator) for _ in range(6)]
        sizes = {len(draw.ids) for draw in alone}
        assert len(sizes) > 1, "the seed must give sets of several sizes"
        assert drawn.ids.shape == (6, max(sizes))
        for i, draw in enumerate(alone):
            assert torch.equal(drawn.ids[i, : len(draw.ids)], draw.ids)
            assert torch.equal(drawn.log_count[i, : len(draw.ids)], draw.log_count)
            assert bool(drawn.log_count[i, len(draw.ids) :].isposinf().all())

    def test_owners_go_with_their_candidates(self, counts, rows):
        drawn = several_draws(InBatch(counts, num_candidates=4), rows, 3, torch.Generator())
        users = dict.fromkeys(zip(rows.positive_ids.tolist(), rows.user_ids.tolist(), strict=True))
        pairs = zip(drawn.ids.flatten().tolist(), drawn.owner.flatten().tolist(), strict=True)
        assert set(pairs) <= users.keys()
        assert torch.equal(drawn.row_user_ids, rows.user_ids)

    def test_no_rows(self, counts, rows):
        rows.positive_ids, rows.user_ids = rows.positive_ids[:0], rows.user_ids[:0]
        assert several_draws(Uniform(4, 3), rows, 5, torch.Generator()).ids.shape == (3,)


@pytest.mark.parametrize(
    ("num_groups", "expected"),
    [
        (1, [0, 0, 0, 0, 0]),
        (2, [0, 0, 0, 1, 1]),
        (3, [0, 0, 1, 1, 2]),
        (5, [0, 1, 2, 3, 4]),
    ],
)
def test_a_row_sees_the_draw_of_its_run(num_groups, expected):
    ids = torch.arange(num_groups)[:, None].expand(num_groups, 2)
    drawn = Candidates(ids, torch.zeros(num_groups, 2), torch.zeros(5), 2)
    assert drawn.by_row(ids)[:, 0].tolist() == expected


def test_every_row_sees_a_shared_draw():
    drawn = Candidates(torch.arange(3), torch.zeros(3), torch.zeros(5), 3)
    assert drawn.by_row(drawn.ids) is drawn.ids
