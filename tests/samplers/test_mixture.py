import pytest
import torch

from candid.errors import ConfigError
from candid.samplers import InBatch, Mixture, Popularity, Quadratic, Uniform


def test_every_candidate_is_corrected_by_every_component(counts, rows, generator):
    sampled = Mixture(
        [
            Uniform(10, num_candidates=4),
            InBatch(counts),
            Popularity(counts, num_candidates=5, exponent=0.5),
        ]
    ).sample(*rows, generator)
    q = counts.double() / counts.sum()
    root = counts.double().sqrt() / counts.double().sqrt().sum()
    expected = 4 / 10 + 6 * q + 5 * root
    torch.testing.assert_close(
        sampled.log_expected_count.double().exp(), expected[sampled.ids], rtol=1e-5, atol=0
    )
    assert sampled.num_samples == 15
    assert sampled.owner.tolist() == [-1] * 4 + rows.user_ids.tolist() + [-1] * 5


def test_one_set_makes_the_mixture_a_set(counts, rows, generator):
    sampled = Mixture(
        [Uniform(10, num_candidates=4, distinct=True), Uniform(10, num_candidates=4)]
    ).sample(*rows, generator)
    assert sampled.num_samples is None
    expected = (1 - 0.9**4) + 4 / 10
    assert sampled.log_expected_count.exp().tolist() == pytest.approx([expected] * len(sampled.ids))


def test_item_outside_one_component_keeps_the_count_of_the_others(counts, rows):
    mixture = Mixture([Popularity(counts, num_candidates=8), Uniform(10, num_candidates=2)])
    assert mixture.log_expected_count_of(torch.tensor([9]), *rows).exp().item() == pytest.approx(
        0.2
    )


def test_component_with_a_sample_per_row_repeats_the_others(counts, rows, generator):
    of_rows = Quadratic(10, num_candidates=5, block_size=2)
    of_rows.refresh(torch.randn(10, 4, generator=generator))
    in_batch = InBatch(counts)
    sampled = Mixture([Uniform(10, num_candidates=3), of_rows, in_batch]).sample(*rows, generator)
    assert (
        sampled.ids.shape
        == sampled.log_expected_count.shape
        == sampled.owner.shape
        == (6, 3 + 5 + 6)
    )
    assert bool((sampled.ids[:, :3] == sampled.ids[0, :3]).all())
    assert not bool((sampled.ids[:, 3:8] == sampled.ids[0, 3:8]).all())
    assert torch.equal(sampled.ids[:, 8:], rows.positive_ids.expand(6, -1))
    assert sampled.owner[2].tolist() == [-1] * 8 + rows.user_ids.tolist()
    q = counts.double() / counts.sum()
    expected = (
        3 / 10
        + of_rows.log_expected_count_of(sampled.ids, *rows).double().exp()
        + 6 * q[sampled.ids]
    )
    torch.testing.assert_close(
        sampled.log_expected_count.double().exp(), expected, rtol=1e-5, atol=0
    )
    whole = Mixture([Uniform(10, num_candidates=3), of_rows]).log_expected_count_of(
        torch.arange(10)[None], *rows
    )
    assert whole.exp().sum(dim=1).tolist() == pytest.approx([8.0] * 6, rel=1e-5)


def test_empty_mixture_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        Mixture([])
