"""In-batch vectors against the item table that they come from, and against plain loops."""

import math

import pytest
import torch

from candid import in_batch_softmax, sampled_softmax, with_negatives
from candid.errors import ConfigError, DataError
from candid.samplers import ExactFrequency, InBatch

V, B, D = 8, 6, 4
COUNTS = torch.tensor([9, 7, 5, 3, 2, 1, 1, 1])
IDS = torch.tensor([0, 1, 0, 4, 2, 7])
USERS = torch.tensor([3, 3, 1, 2, 2, 9])


def tensors():
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(B, D, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(V, D, generator=generator, dtype=torch.float64, requires_grad=True)
    return query, table


@pytest.mark.parametrize("user_ids", [None, USERS], ids=["no users", "users"])
@pytest.mark.parametrize("correction", ["none", "logq", "refined"])
def test_vectors_give_the_loss_of_the_table_they_come_from(correction, user_ids):
    query, table = tensors()
    negative_ids = torch.tensor([[3, -1], [5, 6], [-1, -1], [0, 4], [2, 1], [6, 6]])
    for negatives in (None, negative_ids):
        sampler = InBatch(COUNTS, exclude_same_user=user_ids is not None)
        candidates = sampler.sample(IDS, USERS)
        if negatives is not None:
            candidates = with_negatives(candidates, negatives, sampler, IDS, USERS)
        settings = {"correction": correction, "temperature": 0.5, "effective_sample_size": True}
        expected = sampled_softmax(query, table, IDS, candidates, **settings)
        out = in_batch_softmax(
            query,
            table[IDS],
            IDS,
            frequency=ExactFrequency(COUNTS),
            user_ids=user_ids,
            negative_vectors=None if negatives is None else table[negatives.clamp(min=0)],
            negative_ids=negatives,
            **settings,
        )
        torch.testing.assert_close(out.loss, expected.loss)
        torch.testing.assert_close(out.effective_sample_size, expected.effective_sample_size)
        grads = [torch.autograd.grad(o.loss.sum(), (query, table)) for o in (out, expected)]
        for grad, expected_grad in zip(*grads, strict=True):
            torch.testing.assert_close(grad, expected_grad)


def test_refined_loss_equals_its_definition():
    """Row 2 (item 0): rows 1, 3, 4, 5 are negatives; row 0 has the same item."""
    query, table = tensors()
    out = in_batch_softmax(
        query, table[IDS], IDS, frequency=COUNTS, temperature=0.7, correction="refined"
    )
    scores = query[2] @ table.T / 0.7
    q = COUNTS.double() / COUNTS.sum()
    others = [1, 4, 2, 7]
    # n_valid · Q(d) / (1 - Q(p))
    terms = [scores[d] - math.log(4 * q[d] / (1 - q[0])) for d in others]
    log_z = torch.logsumexp(torch.stack(terms), 0)
    expected = torch.logaddexp(scores[0], log_z) - scores[0]
    assert out.loss[2].item() == pytest.approx(expected.item(), rel=1e-6)


def test_second_vector_of_the_positive_is_not_a_negative():
    query, table = tensors()
    vectors = table[IDS].detach().clone()
    before = in_batch_softmax(query, vectors, IDS, frequency=COUNTS, correction="refined").loss
    vectors[2] += 1.0  # another dropout mask of item 0
    after = in_batch_softmax(query, vectors, IDS, frequency=COUNTS, correction="refined").loss
    assert after[0] == before[0]
    assert after[2] != before[2]


def test_batch_of_one_has_no_loss():
    query = torch.ones(1, D, requires_grad=True)
    out = in_batch_softmax(
        query, torch.ones(1, D), torch.tensor([2]), frequency=COUNTS, correction="refined"
    )
    assert out.loss.tolist() == [0.0]
    assert not torch.autograd.grad(out.loss.sum(), query)[0].any()


VECTORS = torch.ones(B, D)
BAD = {
    "width": (
        {"positive_vectors": torch.ones(B, 2)},
        r"positive_vectors must be \[6, 4\], one per row and as wide as query, got \[6, 2\]",
    ),
    "rows": ({"positive_vectors": torch.ones(3, D)}, r"positive_vectors must be \[6, 4\]"),
    "ids alone": ({"negative_ids": torch.zeros(B, 1, dtype=torch.int64)}, "pass both or neither"),
    "vectors alone": ({"negative_vectors": torch.ones(B, 1, D)}, "pass both or neither"),
    "negatives": (
        {
            "negative_ids": torch.zeros(B, 2, dtype=torch.int64),
            "negative_vectors": torch.ones(B, 1, D),
        },
        r"negative_vectors must be \[6, 2, 4\].* got \[6, 1, 4\]",
    ),
    "set": ({"frequency": InBatch(COUNTS, distinct=True)}, "create InBatch with distinct=False"),
    "sample": ({"frequency": InBatch(COUNTS, num_candidates=2)}, "num_candidates=None"),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_do_not_fit_are_refused(name):
    changed, sentence = BAD[name]
    arguments = {"positive_vectors": VECTORS, "positive_ids": IDS, "frequency": COUNTS} | changed
    with pytest.raises(ConfigError, match=sentence):
        in_batch_softmax(torch.ones(B, D), **arguments)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (torch.ones(5), "item id 7 is outside the catalog: ids must be 0 to 4"),
        (torch.tensor([1, 1, 1, 1, 0, 1, 1, 1]), "item 4 is a positive of the batch but has freq"),
        (torch.tensor([1.0, -1.0]), "the count of item 1 is -1.0"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts, sentence):
    with pytest.raises(DataError, match=sentence):
        in_batch_softmax(torch.ones(B, D), VECTORS, IDS, frequency=counts, correction="refined")


def test_negative_that_is_not_finite_is_named():
    vectors = torch.ones(B, 2, D)
    vectors[1, 1] = float("nan")
    with pytest.raises(DataError, match=r"row of negative_vectors \(as \[B·S, D\]\) 3 holds NaN"):
        in_batch_softmax(
            torch.ones(B, D),
            VECTORS,
            IDS,
            frequency=COUNTS,
            negative_vectors=vectors,
            negative_ids=torch.zeros(B, 2, dtype=torch.int64),
            correction="refined",
        )
