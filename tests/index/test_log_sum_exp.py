"""Running log-sum-exp against a dense float64 logsumexp."""

from __future__ import annotations

import pytest
import torch

from candid.index import ExactIndex, Exclusions, LiveIndex, RunningLogSumExp
from candid.index import log_sum_exp as module


@pytest.fixture(params=["torch", "native"], autouse=True, scope="module")
def kernel(request):
    """Run every test with both ways of summing, also for few scores."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(module, "native_log_sum_exp", lambda: None)
        elif module.native_log_sum_exp() is None:
            pytest.skip("no C compiler")
        patch.setattr(module, "MIN_SCORES", 0)
        yield request.param


def running_sum(scores, widths):
    running = RunningLogSumExp(len(scores), num_columns=scores.shape[1], device=scores.device)
    for tile in scores.split(widths, dim=1):
        running.add(tile.contiguous())
    return running.result()


@pytest.mark.parametrize("widths", [[1500], [1, 700, 799], [512, 512, 476], [3] * 500])
@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_result_is_logsumexp_of_all_tiles(widths, scale):
    scores = scale * torch.randn(5, 1500, generator=torch.Generator().manual_seed(0))
    result = running_sum(scores, widths)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, scores.double().logsumexp(1), atol=1e-6, rtol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0, 1e6])
def test_order_of_columns_does_not_change_the_result(scale):
    generator = torch.Generator().manual_seed(2)
    scores = scale * torch.randn(20, 1500, generator=generator)
    order = torch.randperm(1500, generator=generator)
    result = running_sum(scores, [700, 800]), running_sum(scores[:, order], [100, 1400])
    torch.testing.assert_close(*result, atol=1e-13, rtol=1e-15)


@pytest.mark.parametrize("highest", [-3e38, -2.1e6, 2.1e6, 1e20, 3e38])
def test_scores_far_from_zero(highest):
    scores = highest + torch.tensor([0.0, -0.25, -1e4, -1e9]).repeat(2, 10)
    expected = scores.double().logsumexp(1)
    torch.testing.assert_close(running_sum(scores, [15, 25]), expected, atol=1e-6, rtol=0)


def test_ascending_maxima_rescale_earlier_sums():
    scores = torch.arange(64.0).expand(2, 64) / 8
    expected = scores.double().logsumexp(1)
    torch.testing.assert_close(running_sum(scores, [1] * 64), expected, atol=1e-6, rtol=0)


def test_minus_infinity_adds_nothing():
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    scores[0, :20] = -torch.inf
    scores[1, 10:] = -torch.inf
    scores[2] = -torch.inf
    result = running_sum(scores, [10, 10, 20])
    assert result[2] == -torch.inf
    torch.testing.assert_close(result[:2], scores[:2].double().logsumexp(1), atol=1e-6, rtol=0)


def test_nan_stays_nan():
    scores = torch.zeros(2, 8)
    scores[0, 3] = torch.nan
    result = running_sum(scores, [2, 6])
    assert result[0].isnan()
    assert result[1] == pytest.approx(2.0794415)


@pytest.mark.parametrize("block_items", [7, 64, 300, 4096])
def test_exact_search_gives_the_log_partition_of_all_items(block_items):
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(600, 16, generator=generator)
    vectors = torch.randn(300, 16, generator=generator)
    excluded = torch.arange(300).repeat(600)[: 600 * 20]
    exclude = Exclusions(excluded, 20 * torch.arange(601))
    index = ExactIndex(vectors, block_items=block_items, block_rows=256)
    result, log_z = index.search_with_log_partition(query, 9, exclude)
    plain = index.search(query, 9, exclude)
    assert torch.equal(result.item_ids, plain.item_ids)
    assert torch.equal(result.scores, plain.scores)
    expected = (query.double() @ vectors.double().T).logsumexp(1)
    torch.testing.assert_close(log_z, expected, atol=1e-5, rtol=0)


def test_live_index_gives_a_log_partition_without_changes_only():
    vectors = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    index, query = LiveIndex(ExactIndex(vectors), vectors), torch.ones(2, 4)
    result, log_z = index.search_with_log_partition(query, 3)
    assert log_z is not None
    torch.testing.assert_close(log_z, (query @ vectors.T).double().logsumexp(1))
    assert torch.equal(result.item_ids, index.search(query, 3).item_ids)
    index.delete(torch.tensor([0]))
    result, log_z = index.search_with_log_partition(query, 3)
    assert log_z is None
    assert torch.equal(result.item_ids, index.search(query, 3).item_ids)
