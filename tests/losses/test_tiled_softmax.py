"""The corrected softmax in tiles, against plain loops in float64 and against dense scores."""

import dataclasses
import math

import pytest
import torch

from candid import in_batch_softmax, sampled_softmax, with_negatives
from candid.candidates import Candidates, ExactCandidates
from candid.errors import UnknownNameError
from candid.losses import LossOutput, sampled
from candid.losses.blockwise import tile_pass
from candid.losses.blockwise.tiles import SIZES, TileSizes
from candid.samplers import ExactPopular, InBatch, Mixture, Popularity, Uniform

V, B, D = 40, 30, 4
COUNTS = torch.arange(V, 0, -1).double().square()
GENERATOR = torch.Generator().manual_seed(8)
IDS = torch.multinomial(COUNTS, B, replacement=True, generator=GENERATOR)
USERS = torch.randint(12, (B,), generator=GENERATOR)
QUERY = torch.randn(B, D, generator=GENERATOR, dtype=torch.float64)
TABLE = torch.randn(V, D, generator=GENERATOR, dtype=torch.float64)


@pytest.fixture(params=["cached", "recomputed"])
def in_tiles(request, monkeypatch):
    """All scores in small tiles, by the compiled kernel where there is one.

    Returns a function that allows dense scores again.
    """
    monkeypatch.setattr(sampled, "DENSE_SCORES", -1)
    monkeypatch.setattr(tile_pass, "NATIVE_SCORES", 0)
    cache_bytes = 2**24 if request.param == "cached" else 0
    monkeypatch.setitem(SIZES, "cpu", TileSizes(11, 70, 9, cache_bytes, 1, 1))
    dense_softmax = sampled.dense_softmax

    def refuse(*arguments, **settings):
        raise AssertionError("dense scores")

    monkeypatch.setattr(sampled, "dense_softmax", refuse)
    return lambda: monkeypatch.setattr(sampled, "dense_softmax", dense_softmax)


def loss_of(candidates, dtype=torch.float64, **settings):
    """Output, and the gradients of query and table."""
    query, table = (v.to(dtype).requires_grad_() for v in (QUERY.clone(), TABLE.clone()))
    out = sampled_softmax(query, table, IDS, candidates, effective_sample_size=True, **settings)
    return out, torch.autograd.grad(out.loss.mean(), (query, table))


def sample_of(sampler, negatives=None):
    candidates = sampler.sample(IDS, USERS, generator=torch.Generator().manual_seed(3))
    if negatives is None:
        return candidates
    return with_negatives(candidates, negatives, sampler, IDS, USERS)


NUM_SAMPLES = 25
EXACT_IDS = torch.tensor([0, 1, 3, 8, 30])


def with_overlap(per_row=False, num_samples=NUM_SAMPLES):
    """Exact candidates that the sampled ones do not exclude, as in a sampler of their own."""
    log_q = (COUNTS / COUNTS.sum()).log()
    generator = torch.Generator().manual_seed(5)
    ids = torch.multinomial(COUNTS, NUM_SAMPLES, replacement=True, generator=generator)
    assert bool(torch.isin(ids, EXACT_IDS).any())
    log_expected_count = (log_q + math.log(NUM_SAMPLES)).float()
    exact_ids = EXACT_IDS.repeat(B, 1) if per_row else EXACT_IDS
    return Candidates(
        ids,
        log_expected_count[ids],
        log_expected_count[IDS],
        num_samples,
        exact=ExactCandidates(exact_ids, log_expected_count[exact_ids]),
    )


NEGATIVES = torch.randint(-1, V, (B, 3), generator=GENERATOR)
EXACT = ExactPopular(COUNTS, num_exact=6, rest=Uniform(V, num_candidates=25))
CANDIDATES = {
    "uniform": lambda: sample_of(Uniform(V, num_candidates=25)),
    "popularity": lambda: sample_of(Popularity(COUNTS, num_candidates=25)),
    "in_batch": lambda: sample_of(InBatch(COUNTS)),
    "in_batch set": lambda: sample_of(InBatch(COUNTS, distinct=True)),
    "in_batch with own user": lambda: sample_of(InBatch(COUNTS, exclude_same_user=False)),
    "mixture": lambda: sample_of(Mixture([Uniform(V, num_candidates=20), InBatch(COUNTS)])),
    "mixture of two in-batch parts": lambda: sample_of(
        Mixture([InBatch(COUNTS, exclude_same_user=False), InBatch(COUNTS, num_candidates=20)])
    ),
    "mixture with an in-batch set": lambda: sample_of(
        Mixture([Uniform(V, num_candidates=20), InBatch(COUNTS, distinct=True)])
    ),
    "set": lambda: sample_of(Popularity(COUNTS, num_candidates=15, distinct=True)),
    "exact": lambda: sample_of(EXACT),
    "negatives": lambda: sample_of(InBatch(COUNTS), NEGATIVES),
    "exact and negatives": lambda: sample_of(EXACT, NEGATIVES),
    "exact overlap": with_overlap,
    "exact overlap per row": lambda: with_overlap(per_row=True),
    "exact overlap of a set": lambda: with_overlap(num_samples=None),
}


@pytest.mark.parametrize("correction", ["none", "logq", "logq, masked", "refined"])
@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.usefixtures("in_tiles")
class TestAgainstDenseScores:
    def agree(self, name, correction, relative, dtype, in_tiles):
        correction, *masked = correction.split(", ")
        settings = {"dtype": dtype, "correction": correction, "temperature": 0.5}
        settings["accidental_hits"] = "mask" if masked else None
        tiled, grads = loss_of(CANDIDATES[name](), **settings)
        in_tiles()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampled, "DENSE_SCORES", 2**40)
            dense, expected_grads = loss_of(CANDIDATES[name](), **settings)
        for field in dataclasses.fields(LossOutput):
            values, expected = (getattr(out, field.name) for out in (tiled, dense))
            assert values.dtype == expected.dtype == dtype
            torch.testing.assert_close(values, expected, rtol=relative, atol=relative)
        for grad, expected in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, expected, rtol=relative, atol=relative)

    def test_float64(self, name, correction, in_tiles):
        self.agree(name, correction, 1e-12, torch.float64, in_tiles)

    def test_float32(self, name, correction, in_tiles):
        self.agree(name, correction, 1e-5, torch.float32, in_tiles)


@pytest.mark.usefixtures("in_tiles")
class TestInTiles:
    @pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per row"])
    def test_samples_that_are_exact_candidates_count_once(self, per_row):
        """Row by row: valid samples are neither the positive nor an exact candidate.

        e(d) = n_valid·Q(d) / (1 - Q(positive and exact candidates)), and 1 for exact candidates.
        """
        candidates = with_overlap(per_row)
        out, _ = loss_of(candidates, correction="refined")
        q = COUNTS / COUNTS.sum()
        for row in range(B):
            positive_id = int(IDS[row])
            excluded = {positive_id, *EXACT_IDS.tolist()}
            valid = [d for d in candidates.ids.tolist() if d not in excluded]
            rest = 1 - sum(q[d] for d in excluded)
            scores = TABLE @ QUERY[row]
            terms = [scores[d] for d in EXACT_IDS.tolist() if d != positive_id]
            terms += [scores[d] - (len(valid) * q[d] / rest).log() for d in valid]
            log_z = torch.logsumexp(torch.stack(terms), 0)
            expected = torch.logaddexp(scores[positive_id], log_z) - scores[positive_id]
            assert out.log_z[row].item() == pytest.approx(log_z.item(), rel=1e-6)
            assert out.loss[row].item() == pytest.approx(expected.item(), rel=1e-5)

    def test_refined_loss_equals_its_definition(self):
        """Row by row: n_valid·Q(d) / (1 - Q(p)), without accidental hits and the user's rows."""
        out = in_batch_softmax(
            QUERY, TABLE[IDS], IDS, frequency=COUNTS, user_ids=USERS, correction="refined"
        )
        q = COUNTS / COUNTS.sum()
        for row in range(B):
            others = [n for n in range(B) if IDS[n] != IDS[row] and USERS[n] != USERS[row]]
            terms = [
                QUERY[row] @ TABLE[IDS[n]] - (len(others) * q[IDS[n]] / (1 - q[IDS[row]])).log()
                for n in others
            ]
            log_z = torch.logsumexp(torch.stack(terms), 0)
            positive = QUERY[row] @ TABLE[IDS[row]]
            expected = torch.logaddexp(positive, log_z) - positive
            assert out.log_z[row].item() == pytest.approx(log_z.item(), rel=1e-6)
            assert out.loss[row].item() == pytest.approx(expected.item(), rel=1e-5)
            weight = log_z.exp() / (log_z.exp() + positive.exp())
            assert out.sample_weight[row].item() == pytest.approx(weight.item(), rel=1e-5)

    def test_batch_of_one_has_no_loss(self):
        query = QUERY[:1].clone().requires_grad_()
        out = in_batch_softmax(
            query,
            TABLE[:1],
            IDS[:1],
            frequency=COUNTS,
            effective_sample_size=True,
            correction="refined",
        )
        assert out.loss.tolist() == [0.0]
        assert out.log_z.tolist() == [-torch.inf]
        assert out.effective_sample_size.tolist() == [0.0]
        assert not torch.autograd.grad(out.loss.sum(), query)[0].any()

    @pytest.mark.parametrize("name", [name for name in CANDIDATES if name.startswith("mixture")])
    def test_bfloat16_products_stay_within_rounding(self, name):
        candidates = CANDIDATES[name]()
        exact, exact_grads = loss_of(candidates, torch.float32)
        near, grads = loss_of(candidates, torch.float32, precision="bfloat16")
        longest = QUERY.norm(dim=1).max() * TABLE.norm(dim=1).max()
        # Query, item and score are each rounded to 8 bits.
        error = 3 * 2**-9 * longest.item()
        assert not torch.equal(near.loss, exact.loss)
        torch.testing.assert_close(near.loss, exact.loss, rtol=0, atol=error)
        sizes = (out.effective_sample_size for out in (near, exact))
        torch.testing.assert_close(*sizes, rtol=4 * error, atol=0)
        for grad, expected in zip(grads, exact_grads, strict=True):
            assert ((grad - expected).norm() / expected.norm()).item() < 0.02

    def test_narrow_vectors_and_autocast_give_bfloat16_products(self):
        candidates = CANDIDATES["in_batch"]()
        query, table = QUERY.float(), TABLE.float()
        expected = sampled_softmax(
            query, table, IDS, candidates, precision="bfloat16", correction="refined"
        )
        with torch.autocast("cpu", torch.bfloat16):
            autocast = sampled_softmax(query, table, IDS, candidates, correction="refined")
        assert torch.equal(autocast.loss, expected.loss)
        narrow = sampled_softmax(
            query.bfloat16(), table.bfloat16(), IDS, candidates, correction="refined"
        )
        assert narrow.loss.dtype == torch.float32
        torch.testing.assert_close(narrow.log_z, expected.log_z, rtol=1e-2, atol=1e-2)

    def test_unknown_correction_is_named(self):
        with pytest.raises(UnknownNameError, match=r"known: .*refined"):
            in_batch_softmax(QUERY, TABLE[IDS], IDS, frequency=COUNTS, correction="logp")


def test_few_scores_and_the_jackknife_are_dense(monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("tiles")

    candidates = CANDIDATES["in_batch"]()
    monkeypatch.setattr(sampled, "tiled_softmax", refuse)
    loss_of(candidates)
    monkeypatch.setattr(sampled, "DENSE_SCORES", -1)
    loss_of(candidates, jackknife=True)
    with pytest.raises(AssertionError, match="tiles"):
        loss_of(candidates)


def test_dense_bfloat16_products_are_bfloat16():
    candidates = CANDIDATES["in_batch"]()
    exact, _ = loss_of(candidates, torch.float32)
    near, _ = loss_of(candidates, torch.float32, precision="bfloat16")
    assert near.loss.dtype == torch.float32
    assert not torch.equal(near.loss, exact.loss)
    torch.testing.assert_close(near.loss, exact.loss, rtol=0.05, atol=0.05)
