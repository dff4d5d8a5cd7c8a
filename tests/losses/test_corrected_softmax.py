import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.errors import ConfigError, UnknownNameError
from candid.losses import corrected_log_softmax

INF = math.inf


def scores(rows, num, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "positive": (scale * normal(rows)).requires_grad_(),
        "candidates": (scale * normal(rows, num)).requires_grad_(),
        "log_expected_count": normal(num) - 1.0,
        "log_expected_count_positive": normal(rows) - 1.0,
        "accidental_hits": torch.rand(rows, num, generator=generator) < 0.3,
    }


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 40), st.floats(0.1, 30.0))
def test_gradient_equals_that_of_the_loss_printed_in_the_paper(seed, rows, num, scale):
    """L = -sg(1 - P)·[s_p - log Σ exp(s_i - log Q'_i)], P from the same sample."""
    arguments = scores(rows, num, seed, scale)
    arguments["accidental_hits"][:, 0] = False
    inputs = (arguments["positive"], arguments["candidates"])
    grads = torch.autograd.grad(
        corrected_log_softmax(**arguments, correction="refined").loss.sum(), inputs
    )

    weights = (
        torch.exp(arguments["candidates"] - arguments["log_expected_count"])
        * ~arguments["accidental_hits"]
    )
    z = weights.sum(dim=1)
    missed = (z / (arguments["positive"].exp() + z)).detach()
    paper = -missed * (arguments["positive"] - z.log())
    expected_grads = torch.autograd.grad(paper.sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correction", ["none", "logq", "refined"])
def test_values_follow_the_table_of_corrections(correction):
    arguments = scores(5, 9, 0)
    out = corrected_log_softmax(**arguments, correction=correction, effective_sample_size=True)
    for row in range(5):
        keep = ~arguments["accidental_hits"][row]
        shift = 0.0 if correction == "none" else arguments["log_expected_count"][keep]
        weights = (arguments["candidates"][row, keep] - shift).exp()
        positive = arguments["positive"][row]
        if correction == "logq":
            positive = positive - arguments["log_expected_count_positive"][row]
        z = weights.sum()
        likelihood = positive.exp() / (positive.exp() + z)
        torch.testing.assert_close(out.log_z[row], z.log())
        torch.testing.assert_close(out.loss[row], -likelihood.log())
        torch.testing.assert_close(out.sample_weight[row], (1 - likelihood).detach())
        effective_sample_size = z.square() / weights.square().sum()
        torch.testing.assert_close(out.effective_sample_size[row], effective_sample_size.detach())
    assert not out.sample_weight.requires_grad
    assert not out.effective_sample_size.requires_grad


@pytest.mark.parametrize("jackknife", [False, True])
@pytest.mark.parametrize("correction", ["none", "logq", "refined"])
def test_fully_masked_row_has_no_loss_and_changes_no_other_row(correction, jackknife):
    arguments = scores(3, 6, 1)
    arguments["accidental_hits"][1] = True
    # A masked candidate may have the count zero.
    arguments["log_expected_count"] = arguments["log_expected_count"].expand(3, -1).clone()
    arguments["log_expected_count"][1] = -INF
    kind = {"correction": correction, "jackknife": jackknife}
    out = corrected_log_softmax(**arguments, **kind, effective_sample_size=True)
    assert out.loss[1].item() == 0.0
    assert out.log_z[1].item() == -INF
    assert out.sample_weight[1].item() == 0.0
    assert out.effective_sample_size[1].item() == 0.0
    inputs = (arguments["positive"], arguments["candidates"])
    positive, candidates = torch.autograd.grad(out.loss.sum(), inputs)
    assert positive[1].item() == 0.0
    assert not candidates[1].any()

    others = torch.tensor([0, 2])
    alone = corrected_log_softmax(
        **{key: arguments[key][others] for key in arguments}, **kind, effective_sample_size=True
    )
    torch.testing.assert_close(out.loss[others], alone.loss)
    expected = torch.autograd.grad(alone.loss.sum(), inputs)
    torch.testing.assert_close(positive, expected[0])
    torch.testing.assert_close(candidates, expected[1])


@pytest.mark.parametrize("jackknife", [False, True])
def test_no_candidates_give_no_loss(jackknife):
    positive = torch.zeros(2, requires_grad=True)
    for accidental_hits in (None, torch.zeros(2, 0, dtype=torch.bool)):
        out = corrected_log_softmax(
            positive=positive,
            candidates=torch.zeros(2, 0),
            log_expected_count=torch.zeros(0),
            accidental_hits=accidental_hits,
            jackknife=jackknife,
            correction="refined",
        )
        assert out.loss.tolist() == [0.0, 0.0]
        assert not torch.autograd.grad(out.loss.sum(), positive)[0].any()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.floats(0.1, 10.0))
def test_jackknife_equals_its_definition(seed, num, scale):
    """The loss computed once more without each valid candidate."""
    arguments = scores(2, num, seed, scale)
    out = corrected_log_softmax(**arguments, jackknife=True, correction="refined")
    positive = arguments["positive"]
    rows = []
    for row in range(2):
        valid = torch.nonzero(~arguments["accidental_hits"][row])[:, 0]
        n = len(valid)
        logits = (arguments["candidates"][row] - arguments["log_expected_count"])[valid]
        if n < 2:
            z = logits.exp().sum()
            rows.append(torch.log1p(z / positive[row].exp()))
            continue

        def loss(z, row=row):
            return torch.log1p(z / positive[row].exp())

        without = [
            loss(torch.cat([logits[:i], logits[i + 1 :]]).exp().sum() * n / (n - 1))
            for i in range(n)
        ]
        rows.append(n * loss(logits.exp().sum()) - (n - 1) / n * sum(without))
    expected = torch.stack(rows)
    torch.testing.assert_close(out.loss, expected, rtol=1e-8, atol=1e-9)
    inputs = (arguments["positive"], arguments["candidates"])
    grads = torch.autograd.grad(out.loss.sum(), inputs)
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-7, atol=1e-8)


def test_jackknife_is_finite_with_one_dominating_candidate():
    candidates = torch.tensor([[80.0, -80.0, -81.0]], requires_grad=True)
    positive = torch.zeros(1, requires_grad=True)
    out = corrected_log_softmax(
        positive=positive,
        candidates=candidates,
        log_expected_count=torch.zeros(3),
        jackknife=True,
        correction="refined",
    )
    grads = torch.autograd.grad(out.loss.sum(), (positive, candidates))
    assert bool(torch.isfinite(out.loss).all())
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)


@pytest.mark.parametrize("gap", [9.0, 10.0, 80.0])
def test_gradient_is_full_for_a_positive_far_too_low(gap):
    positive = torch.full((1,), -gap, requires_grad=True)
    out = corrected_log_softmax(
        positive=positive,
        candidates=torch.zeros(1, 256),
        log_expected_count=torch.zeros(256),
        correction="refined",
    )
    assert torch.autograd.grad(out.loss.sum(), positive)[0].item() == pytest.approx(-1, abs=1e-6)


def test_loss_is_accurate_for_a_confident_row():
    out = corrected_log_softmax(
        positive=torch.tensor([60.0]),
        candidates=torch.zeros(1, 1),
        log_expected_count=torch.zeros(1),
        correction="refined",
    )
    assert out.loss.item() == pytest.approx(math.exp(-60), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float32_for_narrow_scores(dtype):
    candidates = torch.zeros(1, 4096, dtype=dtype)
    out = corrected_log_softmax(
        positive=torch.zeros(1, dtype=dtype),
        candidates=candidates,
        log_expected_count=torch.zeros(4096),
        correction="refined",
    )
    assert out.loss.dtype == out.log_z.dtype == torch.float32
    assert out.log_z.item() == pytest.approx(math.log(4096), rel=1e-6)


def test_logq_gives_no_gradient_to_a_positive_that_is_never_sampled():
    arguments = scores(2, 5, 3)
    arguments["log_expected_count_positive"][0] = -INF
    out = corrected_log_softmax(**arguments, correction="logq")
    grad = torch.autograd.grad(out.loss.sum(), arguments["positive"])[0]
    assert out.loss[0].item() == 0.0
    assert grad[0].item() == 0.0
    assert grad[1].item() < 0.0


def test_bad_settings_are_refused_by_name():
    arguments = scores(2, 3, 0)
    with pytest.raises(UnknownNameError, match="'refined'"):
        corrected_log_softmax(**arguments, correction="refine")
    del arguments["log_expected_count_positive"]
    with pytest.raises(ConfigError, match="log_expected_count_positive"):
        corrected_log_softmax(**arguments, correction="logq")
