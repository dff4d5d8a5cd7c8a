import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from candid.errors import ConfigError, DataError
from candid.losses import LOSSES, full_softmax
from candid.losses.blockwise.tiles import SIZES, TileSizes

TILINGS = {
    "one tile": TileSizes(512, 2**20, 4096, 2**24, 64, 64),
    "cached tiles": TileSizes(64, 2**8, 4, 2**24, 1, 1),
    "recomputed tiles": TileSizes(64, 2**8, 4, 0, 64, 64),
}


@pytest.fixture(params=TILINGS)
def tiling(request, monkeypatch):
    monkeypatch.setitem(SIZES, "cpu", TILINGS[request.param])


def make_inputs(num_rows, num_items, dtype=torch.float64, scale=1.0, dim=6):
    generator = torch.Generator().manual_seed(num_rows + num_items)
    query = scale * torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    items = torch.randn(num_items, dim, generator=generator, dtype=torch.float64)
    positive_ids = torch.randint(num_items, (num_rows,), generator=generator)
    return query.to(dtype).requires_grad_(), items.to(dtype).requires_grad_(), positive_ids


@pytest.mark.usefixtures("tiling")
class TestAgainstTheDenseSoftmax:
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize(("num_rows", "num_items"), [(1, 2), (7, 11), (130, 9), (70, 64)])
    def test_loss_and_gradient(self, num_rows, num_items, weighted):
        query, items, positive_ids = make_inputs(num_rows, num_items)
        row = torch.linspace(-1.0, 2.0, num_rows).double() if weighted else 1.0 / num_rows
        out = full_softmax(query, items, positive_ids, temperature=0.7)
        dense = cross_entropy(query @ items.T / 0.7, positive_ids, reduction="none")
        torch.testing.assert_close(out.loss, dense)
        grads = torch.autograd.grad((out.loss * row).sum(), (query, items))
        expected_grads = torch.autograd.grad((dense * row).sum(), (query, items))
        for grad, expected in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, expected)

    def test_log_z_excludes_the_positive_and_has_its_gradient(self):
        query, items, positive_ids = make_inputs(9, 13)
        scores = query @ items.T
        others = scores.scatter(1, positive_ids[:, None], -math.inf).logsumexp(dim=1)
        out = full_softmax(query, items, positive_ids, effective_sample_size=True)
        torch.testing.assert_close(out.log_z, others)
        probability = scores.softmax(dim=1).gather(1, positive_ids[:, None])[:, 0]
        torch.testing.assert_close(out.sample_weight, (1 - probability).detach())
        weights = (scores - others[:, None]).exp().scatter(1, positive_ids[:, None], 0.0)
        effective_sample_size = weights.sum(dim=1).square() / weights.square().sum(dim=1)
        torch.testing.assert_close(out.effective_sample_size, effective_sample_size.detach())
        mix = torch.linspace(-1, 1, 9).double()
        grads = torch.autograd.grad((out.loss + mix * out.log_z).sum(), (query, items))
        dense = cross_entropy(scores, positive_ids, reduction="none") + mix * others
        for grad, expected in zip(
            grads, torch.autograd.grad(dense.sum(), (query, items)), strict=True
        ):
            torch.testing.assert_close(grad, expected)

    def test_gradcheck(self):
        query, items, positive_ids = make_inputs(5, 7)

        def both(query, items):
            out = full_softmax(query, items, positive_ids)
            return out.loss, out.log_z

        assert torch.autograd.gradcheck(both, (query, items))

    def test_catalog_of_one_item_has_no_loss(self):
        query, items, positive_ids = make_inputs(3, 1)
        out = full_softmax(query, items, positive_ids, effective_sample_size=True)
        assert out.loss.tolist() == [0.0] * 3
        assert out.log_z.tolist() == [-math.inf] * 3
        assert out.sample_weight.tolist() == [0.0] * 3
        assert out.effective_sample_size.tolist() == [0.0] * 3
        for grad in torch.autograd.grad(out.loss.sum(), (query, items)):
            assert not grad.any()

    def test_huge_scores_do_not_overflow(self):
        query, items, positive_ids = make_inputs(6, 11, torch.float32, scale=300.0)
        out = full_softmax(query, items, positive_ids)
        dense = cross_entropy((query @ items.T).double(), positive_ids, reduction="none")
        torch.testing.assert_close(out.loss.double(), dense, rtol=1e-4, atol=1e-3)
        for grad in torch.autograd.grad(out.loss.mean(), (query, items)):
            assert bool(torch.isfinite(grad).all())

    def test_bfloat16_products_stay_within_rounding(self):
        query, items, positive_ids = make_inputs(200, 90, torch.float32)
        # Query, item and score are each rounded to 8 bits.
        longest = query.norm(dim=1).max() * items.norm(dim=1).max()
        error = 3 * 2**-9 * longest.item()
        for weights in (torch.ones(200), torch.linspace(0, 1, 200)):
            exact = full_softmax(query, items, positive_ids)
            fast = full_softmax(query, items, positive_ids, precision="bfloat16")
            assert fast.loss.dtype == torch.float32
            torch.testing.assert_close(fast.loss, exact.loss, rtol=0, atol=error)
            for near, grad in zip(
                torch.autograd.grad((fast.loss * weights).sum(), (query, items)),
                torch.autograd.grad((exact.loss * weights).sum(), (query, items)),
                strict=True,
            ):
                assert near.dtype == torch.float32
                assert ((near - grad).norm() / grad.norm()).item() < 0.01


def test_backward_twice_gives_the_same_gradients_and_inputs_may_be_fixed():
    query, items, positive_ids = make_inputs(8, 12)
    loss = full_softmax(query, items, positive_ids).loss.mean()
    first = torch.autograd.grad(loss, (query, items), retain_graph=True)
    for again, grad in zip(torch.autograd.grad(loss, (query, items)), first, strict=True):
        assert torch.equal(again, grad)
    fixed = full_softmax(query, items.detach(), positive_ids).loss.mean()
    torch.testing.assert_close(torch.autograd.grad(fixed, query)[0], first[0])


def test_bad_input_is_refused_by_name():
    query, items, positive_ids = make_inputs(3, 4)
    with pytest.raises(DataError, match="item id 4 is outside the catalog"):
        full_softmax(query, items, torch.tensor([0, 4, 1]))
    with pytest.raises(ConfigError, match="table"):
        LOSSES["full_softmax"].Config().build(4)(query, lambda ids: items[ids], positive_ids)
