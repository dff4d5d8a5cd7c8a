import pytest
import torch

from candid.candidates import Candidates
from candid.samplers import InBatch, Popularity, Uniform, sample_groups


class TestSampleGroups:
    def test_one_group_is_one_sample(self, counts, rows):
        sampler = Popularity(counts, num_candidates=5)
        sampled = sample_groups(sampler, 1, *rows, torch.Generator().manual_seed(1))
        alone = sampler.sample(*rows, torch.Generator().manual_seed(1))
        assert torch.equal(sampled.ids, alone.ids)
        assert sampled.ids.ndim == 1

    @pytest.mark.parametrize(("num_groups", "expected"), [(2, 2), (3, 3), (4, 3), (6, 6), (50, 6)])
    def test_groups_are_at_most_the_rows(self, counts, rows, num_groups, expected):
        sampled = sample_groups(
            Popularity(counts, num_candidates=5), num_groups, *rows, torch.Generator()
        )
        assert sampled.ids.shape == sampled.log_expected_count.shape == (expected, 5)
        assert sampled.log_expected_count_positive.shape == (6,)
        assert sampled.num_samples == 5

    def test_shorter_sets_are_padded(self, counts, rows):
        sampler = Uniform(len(counts), num_candidates=8, distinct=True)
        sampled = sample_groups(sampler, 6, *rows, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        alone = [sampler.sample(*rows, generator) for _ in range(6)]
        sizes = {len(sample.ids) for sample in alone}
        assert len(sizes) > 1, "the seed must give sets of several sizes"
        assert sampled.ids.shape == (6, max(sizes))
        for i, sample in enumerate(alone):
            assert torch.equal(sampled.ids[i, : len(sample.ids)], sample.ids)
            assert torch.equal(
                sampled.log_expected_count[i, : len(sample.ids)], sample.log_expected_count
            )
            assert bool(sampled.log_expected_count[i, len(sample.ids) :].isposinf().all())

    def test_owners_stay_with_their_candidates(self, counts, rows):
        sampled = sample_groups(InBatch(counts, num_candidates=4), 3, *rows, torch.Generator())
        users = dict.fromkeys(zip(rows.positive_ids.tolist(), rows.user_ids.tolist(), strict=True))
        pairs = zip(sampled.ids.flatten().tolist(), sampled.owner.flatten().tolist(), strict=True)
        assert set(pairs) <= users.keys()
        assert torch.equal(sampled.row_user_ids, rows.user_ids)

    def test_no_rows(self, counts, rows):
        rows = rows._replace(positive_ids=rows.positive_ids[:0], user_ids=rows.user_ids[:0])
        assert sample_groups(
            Uniform(4, num_candidates=3), 5, *rows, torch.Generator()
        ).ids.shape == (3,)


@pytest.mark.parametrize(
    ("num_groups", "expected"),
    [
        (1, [0, 0, 0, 0, 0]),
        (2, [0, 0, 0, 1, 1]),
        (3, [0, 0, 1, 1, 2]),
        (5, [0, 1, 2, 3, 4]),
    ],
)
def test_row_has_the_sample_of_its_group(num_groups, expected):
    ids = torch.arange(num_groups)[:, None].expand(num_groups, 2)
    sampled = Candidates(ids, torch.zeros(num_groups, 2), torch.zeros(5), 2)
    assert sampled.by_row(ids)[:, 0].tolist() == expected


def test_every_row_has_a_shared_sample():
    sampled = Candidates(torch.arange(3), torch.zeros(3), torch.zeros(5), 3)
    assert sampled.by_row(sampled.ids) is sampled.ids
