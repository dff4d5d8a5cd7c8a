"""``sampled_softmax`` with every sampler: the estimate of Z' is unbiased."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from candid.candidates import Candidates
from candid.errors import DataError
from candid.losses import sampled_softmax
from candid.samplers import CrossBatchMemory, InBatch, Mixture, Popularity, Uniform

SAMPLERS = {
    "uniform": lambda counts: Uniform(len(counts), num_candidates=8),
    "uniform-distinct": lambda counts: uniform_set(counts),
    "popularity": lambda counts: Popularity(counts, num_candidates=8, exponent=0.7),
    "popularity-distinct": lambda counts: Popularity(
        counts, num_candidates=set_size(counts), exponent=0.7, distinct=True
    ),
    "cross_batch_memory": lambda counts: CrossBatchMemory(counts, size=8),
    "in_batch": lambda counts: InBatch(counts),
    "in_batch-all-users": lambda counts: InBatch(counts, exclude_same_user=False),
    "in_batch-sample": lambda counts: InBatch(counts, num_candidates=6),
    "in_batch-distinct": lambda counts: InBatch(counts, distinct=True),
    "in_batch-distinct-all-users": lambda counts: InBatch(
        counts, exclude_same_user=False, distinct=True
    ),
    "mixture": lambda counts: Mixture(
        [Uniform(len(counts), num_candidates=16), Popularity(counts, num_candidates=16)]
    ),
    "mixture-distinct": lambda counts: Mixture(
        [uniform_set(counts), InBatch(counts, distinct=True)]
    ),
}
# Renormalizing a mixture by the row's accidental hits has a small error; see ``Mixture``.
SYSTEMATIC = {"mixture": 0.01}

# Tested in test_exact_candidates and test_kernel_samplers.
ELSEWHERE = {"exact_popular", "exact_nearest", "random_fourier", "quadratic"}


def set_size(counts):
    return min(8, len(counts))


def uniform_set(counts):
    return Uniform(len(counts), num_candidates=set_size(counts), distinct=True)


def test_every_sampler_of_candid_is_tested():
    """A new sampler is tested by ``check_sampler``, which compares its counts with a simulation."""
    tested = {name.split("-")[0] for name in SAMPLERS} | ELSEWHERE
    assert tested == {
        "uniform",
        "popularity",
        "in_batch",
        "cross_batch_memory",
        "random_fourier",
        "quadratic",
        "exact_popular",
        "exact_nearest",
        "mixture",
    }


def estimates(sampler, counts, positive, scores, trials, generator):
    """Z' of one row, estimated ``trials`` times: [trials], 0 where every candidate is masked."""
    user_ids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    sampled = []
    for others in torch.multinomial(
        counts.double(), 9 * (trials + 1), replacement=True, generator=generator
    ).view(trials + 1, 9):
        positives = torch.cat([torch.tensor([positive]), others])
        sampled.append(sampler.sample(positives, user_ids, generator=generator))
        sampler.observe(positives, user_ids)
    sampled = sampled[1:]  # from the second batch on, a memory is full
    # One row per sample. Padding holds the positive itself, which is masked.
    stacked = Candidates(
        ids=pad_sequence([c.ids for c in sampled], batch_first=True, padding_value=positive),
        log_expected_count=pad_sequence([c.log_expected_count for c in sampled], batch_first=True),
        log_expected_count_positive=torch.stack(
            [c.log_expected_count_positive[0] for c in sampled]
        ),
        num_samples=sampled[0].num_samples,
        owner=None
        if sampled[0].owner is None
        else pad_sequence([c.owner for c in sampled], batch_first=True, padding_value=-1),
        row_user_ids=None if sampled[0].owner is None else torch.zeros(trials, dtype=torch.int64),
    )
    out = sampled_softmax(
        scores.expand(trials, -1),
        torch.eye(len(scores), dtype=torch.float64),
        torch.full((trials,), positive),
        stacked,
    )
    return out.log_z.exp()


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 30), min_size=3, max_size=14),
    positive=st.integers(0, 2),
    seed=st.integers(0, 10**6),
)
@pytest.mark.slow
def test_estimate_of_z_is_unbiased(name, counts, positive, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(counts), generator=generator, dtype=torch.float64)
    sampler = SAMPLERS[name](torch.tensor(counts))
    z = estimates(sampler, torch.tensor(counts), positive, scores, 800, generator)
    if not name.endswith(("distinct", "distinct-all-users")):
        # Samples are renormalized over those that are valid; a row without any has no estimate.
        z = z[z > 0]
    exact = float(scores.exp().sum() - scores[positive].exp())
    error = 5 * float(z.std()) / math.sqrt(len(z)) + SYSTEMATIC.get(name, 1e-6) * exact
    assert float(z.mean()) == pytest.approx(exact, abs=error)


@pytest.mark.slow
def test_bias_of_a_renormalized_mixture_is_below_a_hundredth():
    """The bound in the docstring of ``Mixture``."""
    counts = torch.tensor([30.0] + [70.0 / 29] * 29)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(30, generator=generator, dtype=torch.float64)
    z = estimates(SAMPLERS["mixture"](counts), counts, 0, scores, 8000, generator)
    exact = float(scores.exp().sum() - scores[0].exp())
    assert abs(float(z.mean()) / exact - 1) < 0.01


def shared(correction="refined"):
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    table = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    positive_ids = torch.tensor([0, 1, 2, 5])
    counts = torch.tensor([4.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    user_ids = torch.tensor([7, 7, 8, 9])
    sampler = Mixture([Popularity(counts, num_candidates=5), InBatch(counts)])
    sampled = sampler.sample(positive_ids, user_ids, generator=generator)
    return query, table, positive_ids, sampled


def test_refined_renormalizes_as_in_the_paper():
    query, table, positive_ids, sampled = shared()
    out = sampled_softmax(query, table, positive_ids, sampled, temperature=0.5)
    for row in range(4):
        keep = (sampled.ids != positive_ids[row]) & (sampled.owner != sampled.row_user_ids[row])
        q = sampled.log_expected_count.double().exp() / 9
        q_positive = sampled.log_expected_count_positive[row].double().exp() / 9
        expected_count = int(keep.sum()) * q[keep] / (1 - q_positive)
        scores = (query[row] @ table.T / 0.5)[sampled.ids[keep]]
        log_z = torch.logsumexp(scores - expected_count.log(), dim=0)
        assert out.log_z[row].item() == pytest.approx(log_z.item(), abs=1e-5)


@pytest.mark.parametrize("accidental_hits", [None, "keep", "mask"])
def test_logq_equals_the_loss_of_yi_et_al(accidental_hits):
    """Softmax over s - log(n·Q), positive included, accidental hits kept or masked."""
    query, table, positive_ids, sampled = shared()
    assert bool((sampled.ids[:5, None] == positive_ids).any())
    settings = {"correction": "logq", "accidental_hits": accidental_hits}
    out = sampled_softmax(query, table, positive_ids, sampled, **settings)
    for row in range(4):
        keep = sampled.owner != sampled.row_user_ids[row]
        if accidental_hits == "mask":
            keep &= sampled.ids != positive_ids[row]
        logits = (query[row] @ table.T)[sampled.ids[keep]] - sampled.log_expected_count[keep]
        positive = query[row] @ table[positive_ids[row]] - sampled.log_expected_count_positive[row]
        all_logits = torch.cat([positive[None], logits])
        assert out.loss[row].item() == pytest.approx(-all_logits.log_softmax(0)[0].item())


@pytest.mark.parametrize(
    ("correction", "rule"),
    [("none", "mask"), ("logq", "keep"), ("logq", "mask"), ("refined", "mask")],
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_equals_that_of_the_printed_loss(name, correction, rule):
    """-sg(1 - P)·[s_p - log Σ exp(s_d - log e(d))], P from the same sample, row by row.

    The expected counts come from those of the sampler: n_valid·Q / (1 - Q(p)) for samples with
    replacement under ``refined``, unchanged for sets, 1 for ``none``.
    """
    generator = torch.Generator().manual_seed(6)
    counts = torch.tensor([9, 7, 5, 3, 2, 1, 1])
    table = torch.randn(7, 3, generator=generator, dtype=torch.float64).requires_grad_()
    query = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    positive_ids = torch.tensor([0, 1, 0, 4, 2, 6])
    user_ids = torch.tensor([3, 3, 1, 2, 2, 9])
    sampled = SAMPLERS[name](counts).sample(positive_ids, user_ids, generator=generator)
    settings = {"correction": correction, "accidental_hits": rule}
    out = sampled_softmax(query, table, positive_ids, sampled, **settings)
    grads = torch.autograd.grad(out.loss.sum(), (query, table))

    paper_losses, n = [], sampled.num_samples
    for row in range(6):
        keep = sampled.ids != positive_ids[row]
        if rule == "keep" and sampled.num_samples is not None:
            keep = torch.ones_like(sampled.ids, dtype=torch.bool)
            if sampled.source_rows is not None:
                keep = sampled.source_rows != row
        if sampled.owner is not None:
            keep &= sampled.owner != user_ids[row]
        log_e = sampled.log_expected_count[keep].double()
        log_e_positive = sampled.log_expected_count_positive[row].double()
        if correction == "refined" and n is not None:
            q_positive = log_e_positive.exp() / n
            log_e = (keep.sum() * log_e.exp() / n / (1 - q_positive)).log()
        log_e = torch.zeros_like(log_e) if correction == "none" else log_e
        positive = table[positive_ids[row]] @ query[row]
        positive = positive - log_e_positive if correction == "logq" else positive
        log_z = torch.logsumexp(table[sampled.ids[keep]] @ query[row] - log_e, dim=0)
        weight = (log_z.exp() / (positive.exp() + log_z.exp())).detach()
        paper_losses.append(-weight * (positive - log_z))
    expected_grads = torch.autograd.grad(torch.stack(paper_losses).sum(), (query, table))
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


def test_whole_catalog_as_candidates_equals_the_full_softmax():
    """Every item with expected count 1: nothing is estimated."""
    query, table, positive_ids, _ = shared()
    query.requires_grad_()
    catalog = Candidates(torch.arange(6), torch.zeros(6), torch.zeros(4))
    out = sampled_softmax(query, table, positive_ids, catalog, temperature=0.5)
    exact = torch.nn.functional.cross_entropy(query @ table.T / 0.5, positive_ids, reduction="none")
    torch.testing.assert_close(out.loss, exact, rtol=1e-12, atol=1e-12)
    grads, expected_grads = (torch.autograd.grad(v.sum(), query)[0] for v in (out.loss, exact))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-12, atol=1e-12)


def test_table_callable_and_per_row_candidates_agree():
    query, table, positive_ids, sampled = shared()
    calls = []

    def embed(ids):
        calls.append(ids)
        return table[ids]

    per_row = Candidates(
        sampled.ids.expand(4, -1),
        sampled.log_expected_count.expand(4, -1),
        sampled.log_expected_count_positive,
        sampled.num_samples,
        sampled.owner,
        sampled.row_user_ids,
    )
    expected = sampled_softmax(query, table, positive_ids, sampled, jackknife=True)
    for embeddings, candidates in [(embed, sampled), (table, per_row), (embed, per_row)]:
        out = sampled_softmax(query, embeddings, positive_ids, candidates, jackknife=True)
        torch.testing.assert_close(out.loss, expected.loss)
    assert len(calls) == 2


def test_catalog_of_one_item_has_no_loss():
    query = torch.ones(2, 3, requires_grad=True)
    positive_ids = torch.zeros(2, dtype=torch.int64)
    in_batch_set = InBatch(torch.ones(1), exclude_same_user=False, distinct=True)
    for sampler in (Uniform(1, num_candidates=4), InBatch(torch.ones(1)), in_batch_set):
        candidates = sampler.sample(positive_ids, positive_ids)
        out = sampled_softmax(query, torch.ones(1, 3), positive_ids, candidates)
        assert out.loss.tolist() == [0.0, 0.0]
        assert not torch.autograd.grad(out.loss.sum(), query)[0].any()


def test_id_outside_the_catalog_is_named():
    query, table, positive_ids, sampled = shared()
    with pytest.raises(DataError, match="item id 5 is outside the catalog: ids must be 0 to 4"):
        sampled_softmax(query, table[:5], positive_ids, sampled)
