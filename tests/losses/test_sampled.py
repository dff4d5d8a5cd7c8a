"""``sampled_softmax`` with every sampler: the estimate of Z' is unbiased."""

import math
from dataclasses import replace

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
    if sampled[0].row_counts is not None:
        row = torch.tensor([positive])
        table = torch.eye(len(scores), dtype=torch.float64)
        rows = [one.of_rows(slice(0, 1)) for one in sampled]
        outputs = [
            sampled_softmax(scores[None], table, row, one, correction="refined") for one in rows
        ]
        return torch.cat([out.log_z for out in outputs]).exp()
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
        is_mixture=sampled[0].is_mixture,
    )
    out = sampled_softmax(
        scores.expand(trials, -1),
        torch.eye(len(scores), dtype=torch.float64),
        torch.full((trials,), positive),
        stacked,
        correction="refined",
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
    if not name.endswith(("mixture", "distinct", "distinct-all-users")):
        # Samples are renormalized over those that are valid; a row without any has no estimate.
        z = z[z > 0]
    exact = float(scores.exp().sum() - scores[positive].exp())
    error = 5 * float(z.std()) / math.sqrt(len(z)) + 1e-6 * exact
    assert float(z.mean()) == pytest.approx(exact, abs=error)


COUNTS_OF_SIX = torch.tensor([4.0, 3.0, 2.0, 1.0, 1.0, 1.0])


def shared(*samplers):
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    table = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    positive_ids = torch.tensor([0, 1, 2, 5])
    counts = COUNTS_OF_SIX
    user_ids = torch.tensor([7, 7, 8, 9])
    sampler = Mixture(samplers or [Popularity(counts, num_candidates=5), InBatch(counts)])
    sampled = sampler.sample(positive_ids, user_ids, generator=generator)
    return query, table, positive_ids, sampled


def test_refined_renormalizes_as_in_the_paper():
    query, table, positive_ids, sampled = shared(InBatch(COUNTS_OF_SIX))
    out = sampled_softmax(
        query, table, positive_ids, sampled, temperature=0.5, correction="refined"
    )
    for row in range(4):
        keep = (sampled.ids != positive_ids[row]) & (sampled.owner != sampled.row_user_ids[row])
        q = sampled.log_expected_count.double().exp() / 4
        q_positive = sampled.log_expected_count_positive[row].double().exp() / 4
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
    q = COUNTS_OF_SIX.double() / COUNTS_OF_SIX.sum()
    for row in range(4):
        # 5 samples by popularity, and the rows of the batch without those of the row's user.
        log_count = ((5 + int((sampled.row_user_ids != sampled.row_user_ids[row]).sum())) * q).log()
        keep = sampled.owner != sampled.row_user_ids[row]
        if accidental_hits == "mask":
            keep &= sampled.ids != positive_ids[row]
        logits = (query[row] @ table.T)[sampled.ids[keep]] - log_count[sampled.ids[keep]]
        positive = query[row] @ table[positive_ids[row]] - log_count[positive_ids[row]]
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
    replacement under ``refined``, unchanged for sets and mixtures, 1 for ``none``. Distinct items
    of a batch are counted over the rows that the row is compared with.
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
        if name.endswith(("in_batch-distinct", "mixture-distinct", "distinct-all-users")):
            is_other = user_ids != user_ids[row]
            others = 5 if name.endswith("all-users") else int(is_other.sum())
            q = counts.double() / counts.sum()
            count = 1 - (1 - q) ** others
            if name.startswith("mixture"):
                count = count + 1 - (6 / 7) ** 7
            log_e, log_e_positive = count[sampled.ids[keep]].log(), count[positive_ids[row]].log()
        if correction == "refined" and n is not None and not name.startswith("mixture"):
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
        # The counts of a sampler are float32.
        close = 1e-6 if "distinct" in name else 1e-12
        torch.testing.assert_close(grad, expected, rtol=close, atol=close)


def test_whole_catalog_as_candidates_equals_the_full_softmax():
    """Every item with expected count 1: nothing is estimated."""
    query, table, positive_ids, _ = shared()
    query.requires_grad_()
    catalog = Candidates(torch.arange(6), torch.zeros(6), torch.zeros(4))
    out = sampled_softmax(
        query, table, positive_ids, catalog, temperature=0.5, correction="refined"
    )
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

    def by_row(values):
        return values.expand(4, -1)

    per_row = replace(
        sampled,
        ids=by_row(sampled.ids),
        log_expected_count=by_row(sampled.log_expected_count),
        owner=by_row(sampled.owner),
        row_counts=sampled.row_counts.of_rows(slice(None), by_row),
    )
    expected = sampled_softmax(
        query, table, positive_ids, sampled, jackknife=True, correction="refined"
    )
    for embeddings, candidates in [(embed, sampled), (table, per_row), (embed, per_row)]:
        out = sampled_softmax(
            query, embeddings, positive_ids, candidates, jackknife=True, correction="refined"
        )
        torch.testing.assert_close(out.loss, expected.loss)
    assert len(calls) == 2


def test_catalog_of_one_item_has_no_loss():
    query = torch.ones(2, 3, requires_grad=True)
    positive_ids = torch.zeros(2, dtype=torch.int64)
    in_batch_set = InBatch(torch.ones(1), exclude_same_user=False, distinct=True)
    for sampler in (Uniform(1, num_candidates=4), InBatch(torch.ones(1)), in_batch_set):
        candidates = sampler.sample(positive_ids, positive_ids)
        out = sampled_softmax(
            query, torch.ones(1, 3), positive_ids, candidates, correction="refined"
        )
        assert out.loss.tolist() == [0.0, 0.0]
        assert not torch.autograd.grad(out.loss.sum(), query)[0].any()


def test_id_outside_the_catalog_is_named():
    query, table, positive_ids, sampled = shared()
    with pytest.raises(DataError, match="item id 5 is outside the catalog: ids must be 0 to 4"):
        sampled_softmax(query, table[:5], positive_ids, sampled, correction="refined")
