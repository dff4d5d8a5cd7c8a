import numpy as np
import pytest
import torch

from candid.errors import ConfigError, DataError, UnknownNameError
from candid.proposals import ExactFrequency, Frequency, InBatch


def test_all_positives_become_candidates(counts, rows):
    drawn = InBatch(counts).draw(rows)
    assert drawn.ids is rows.positive_ids
    assert torch.equal(drawn.owner, rows.user_ids)
    expected = 6 * counts.double() / counts.sum()
    torch.testing.assert_close(drawn.log_count.double().exp(), expected[rows.positive_ids])


def test_without_exclusion_nobody_owns(counts, rows):
    drawn = InBatch(counts, exclude_same_user=False).draw(rows)
    assert drawn.owner is None
    assert drawn.row_user_ids is None


def test_a_sample_is_taken_without_replacement(counts, rows, generator):
    proposal = InBatch(counts, num_candidates=4)
    for _ in range(20):
        drawn = proposal.draw(rows, generator)
        pairs = list(zip(drawn.ids.tolist(), drawn.owner.tolist(), strict=True))
        assert len(pairs) == len(set(pairs)) == drawn.num_draws == 4
    assert InBatch(counts, num_candidates=99).draw(rows).num_draws == 6


def test_an_item_of_several_users_belongs_to_none(counts, rows):
    drawn = InBatch(counts, distinct=True).draw(rows)
    owners = dict(zip(drawn.ids.tolist(), drawn.owner.tolist(), strict=True))
    assert owners == {0: -1, 1: 3, 2: 2, 4: 2, 7: 9}


def test_a_positive_of_frequency_zero_is_named(counts, rows):
    rows.positive_ids[2] = 9
    with pytest.raises(DataError, match="item 9"):
        InBatch(counts).draw(rows)


@pytest.mark.parametrize("kind", ["tensor", "numpy", "exact", "own"])
def test_any_frequency_will_do(kind, counts, rows):
    class Flat:
        num_items = 10

        def log_q(self, ids):
            return torch.full(ids.shape, -np.log(10), dtype=torch.float32)

    frequency = {
        "tensor": counts,
        "numpy": counts.numpy(),
        "exact": ExactFrequency(counts),
        "own": Flat(),
    }[kind]
    drawn = InBatch(frequency).draw(rows)
    expected = 0.6 if kind == "own" else 6 * 40 / 100
    assert drawn.log_count[0].exp().item() == pytest.approx(expected)
    assert isinstance(InBatch(frequency).frequency, Frequency)


def test_no_candidates_are_refused(counts):
    with pytest.raises(ConfigError):
        InBatch(counts, num_candidates=0)


@pytest.mark.parametrize("kind", ["streaming", "count_min"])
def test_a_frequency_learnt_from_the_stream(kind, counts, rows):
    config = InBatch.Config.model_validate({"frequency": {"type": kind, "num_hashes": 2}})
    assert config.model_dump()["frequency"]["type"] == kind
    proposal, resumed = config.build(counts), config.build(counts)
    assert proposal.frequency.num_hashes == 2
    # Nothing is known: all items are alike, those of training count 0 too.
    assert proposal.draw(rows).log_count.exp().tolist() == pytest.approx([6 / 10] * 6)
    for _ in range(3):
        proposal.observe(rows)
    stated = proposal.draw(rows).log_count.exp().tolist()
    assert stated == pytest.approx([6 * 2 / 6, 1, 2, 1, 1, 1])
    resumed.restore(proposal.state())
    assert torch.equal(resumed.draw(rows).log_count, proposal.draw(rows).log_count)


def test_an_exact_frequency_learns_nothing(counts, rows):
    proposal = InBatch.Config().build(counts)
    before = proposal.draw(rows).log_count
    proposal.observe(rows)
    assert torch.equal(proposal.draw(rows).log_count, before)
    assert proposal.state() == {}
    proposal.restore({})


def test_unknown_frequency_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="count_min, exact, streaming"):
        InBatch.Config.model_validate({"frequency": "sketchy"})
