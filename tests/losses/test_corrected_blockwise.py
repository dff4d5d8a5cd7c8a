"""The corrected softmax in tiles: against plain loops in float64, and against dense scores."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from candid import in_batch_softmax, sampled_softmax, with_negatives
from candid.errors import UnknownNameError
from candid.losses import LossOutput, corrected_blockwise
from candid.losses.blockwise import tile_pass
from candid.losses.blockwise.tiles import SIZES, TileSizes
from candid.samplers import ExactPopular, InBatch, Mixture, Popularity, Uniform

V, B, D = 40, 30, 4
COUNTS = torch.arange(V, 0, -1).double().square()
GENERATOR = torch.Generator().manual_seed(8)
IDS = torch.multinomial(COUNTS, B, replacement=True, generator=GENERATOR)
USERS = torch.randint(12, (B,), generator=GENERATOR)
ROWS = SimpleNamespace(positive_ids=IDS, user_ids=USERS)
QUERY = torch.randn(B, D, generator=GENERATOR, dtype=torch.float64)
TABLE = torch.randn(V, D, generator=GENERATOR, dtype=torch.float64)


@pytest.fixture(params=["kept", "made again"])
def in_tiles(request, monkeypatch):
    """Everything in small tiles, by the compiled pass where there is one."""
    monkeypatch.setattr(corrected_blockwise, "DENSE_SCORES", -1)
    monkeypatch.setattr(tile_pass, "NATIVE_SCORES", 0)
    kept = 2**24 if request.param == "kept" else 0
    monkeypatch.setitem(SIZES, "cpu", TileSizes(11, 70, 9, kept, 1, 1))
    scored = corrected_blockwise.Vectors.scored

    def refuse(self):
        raise AssertionError("dense scores")

    monkeypatch.setattr(corrected_blockwise.Vectors, "scored", refuse)
    return lambda: monkeypatch.setattr(corrected_blockwise.Vectors, "scored", scored)


def compared(sampler, dtype=torch.float64, negatives=None, **settings):
    """Output, and the gradients of query and table."""
    query, table = (v.to(dtype).requires_grad_() for v in (QUERY.clone(), TABLE.clone()))
    sampled = sampler.sample(ROWS, torch.Generator().manual_seed(3))
    if negatives is not None:
        sampled = with_negatives(sampled, negatives, sampler, ROWS)
    out = sampled_softmax(query, table, IDS, sampled, effective_sample_size=True, **settings)
    return out, torch.autograd.grad(out.loss.mean(), (query, table))


NEGATIVES = torch.randint(-1, V, (B, 3), generator=GENERATOR)
DRAWN = {
    "uniform": (Uniform(V, 25), None),
    "popularity": (Popularity(COUNTS, 25), None),
    "in_batch": (InBatch(COUNTS), None),
    "in_batch sets": (InBatch(COUNTS, distinct=True), None),
    "strangers": (InBatch(COUNTS, exclude_same_user=False), None),
    "mixture": (Mixture([Uniform(V, 20), InBatch(COUNTS)]), None),
    "sets": (Popularity(COUNTS, 15, distinct=True), None),
    "head": (ExactPopular(COUNTS, Uniform(V, 25), 6), None),
    "negatives": (InBatch(COUNTS), NEGATIVES),
    "head and negatives": (ExactPopular(COUNTS, Uniform(V, 25), 6), NEGATIVES),
}


@pytest.mark.parametrize("correction", ["none", "logq", "refined"])
@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.usefixtures("in_tiles")
class TestTilesAndDenseScoresAgree:
    def agree(self, name, correction, relative, dtype, in_tiles):
        sampler, negatives = DRAWN[name]
        settings = {"dtype": dtype, "negatives": negatives, "correction": correction}
        ours, grads = compared(sampler, temperature=0.5, **settings)
        in_tiles()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corrected_blockwise, "DENSE_SCORES", 2**40)
            theirs, expected = compared(sampler, temperature=0.5, **settings)
        for field in dataclasses.fields(LossOutput):
            mine, other = (getattr(out, field.name) for out in (ours, theirs))
            assert mine.dtype == other.dtype == dtype
            torch.testing.assert_close(mine, other, rtol=relative, atol=relative)
        for mine, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=relative, atol=relative)

    def test_float64(self, name, correction, in_tiles):
        self.agree(name, correction, 1e-12, torch.float64, in_tiles)

    def test_float32(self, name, correction, in_tiles):
        self.agree(name, correction, 1e-5, torch.float32, in_tiles)


@pytest.mark.usefixtures("in_tiles")
class TestInTiles:
    def test_refined_is_what_it_says_written_out(self):
        """Candidate by candidate: n_valid·Q(d) / (1 - Q(p)), no hits, no rows of the same user."""
        out = in_batch_softmax(QUERY, TABLE[IDS], IDS, frequency=COUNTS, user_ids=USERS)
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
            missed = log_z.exp() / (log_z.exp() + positive.exp())
            assert out.sample_weight[row].item() == pytest.approx(missed.item(), rel=1e-5)

    def test_a_batch_of_one_is_silent(self):
        query = QUERY[:1].clone().requires_grad_()
        out = in_batch_softmax(
            query, TABLE[:1], IDS[:1], frequency=COUNTS, effective_sample_size=True
        )
        assert out.loss.tolist() == [0.0]
        assert out.log_z.tolist() == [-torch.inf]
        assert out.effective_sample_size.tolist() == [0.0]
        assert not torch.autograd.grad(out.loss.sum(), query)[0].any()

    def test_bfloat16_products_stay_near(self):
        exact, exact_grads = compared(DRAWN["mixture"][0], torch.float32)
        near, grads = compared(DRAWN["mixture"][0], torch.float32, precision="bfloat16")
        longest = QUERY.norm(dim=1).max() * TABLE.norm(dim=1).max()
        # Query, item and score are each rounded to 8 bits.
        error = 3 * 2**-9 * longest.item()
        assert not torch.equal(near.loss, exact.loss)
        torch.testing.assert_close(near.loss, exact.loss, rtol=0, atol=error)
        for mine, other in zip(grads, exact_grads, strict=True):
            assert ((mine - other).norm() / other.norm()).item() < 0.02

    def test_narrow_vectors_and_autocast_are_bfloat16_products(self):
        sampled = InBatch(COUNTS).sample(ROWS)
        query, table = QUERY.float(), TABLE.float()
        asked = sampled_softmax(query, table, IDS, sampled, precision="bfloat16")
        with torch.autocast("cpu", torch.bfloat16):
            within = sampled_softmax(query, table, IDS, sampled)
        assert torch.equal(within.loss, asked.loss)
        narrow = sampled_softmax(query.bfloat16(), table.bfloat16(), IDS, sampled)
        assert narrow.loss.dtype == torch.float32
        torch.testing.assert_close(narrow.log_z, asked.log_z, rtol=1e-2, atol=1e-2)

    def test_an_unknown_correction_is_named(self):
        with pytest.raises(UnknownNameError, match=r"known: .*refined"):
            in_batch_softmax(QUERY, TABLE[IDS], IDS, frequency=COUNTS, correction="logp")


def test_few_scores_and_the_jackknife_are_dense(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("tiles")

    monkeypatch.setattr(corrected_blockwise, "blockwise_softmax", refuse)
    compared(InBatch(COUNTS))
    monkeypatch.setattr(corrected_blockwise, "DENSE_SCORES", -1)
    compared(InBatch(COUNTS), jackknife=True)
    with pytest.raises(AssertionError, match="tiles"):
        compared(InBatch(COUNTS))


def test_dense_bfloat16_products_are_bfloat16():
    exact, _ = compared(InBatch(COUNTS), torch.float32)
    near, _ = compared(InBatch(COUNTS), torch.float32, precision="bfloat16")
    assert near.loss.dtype == torch.float32
    assert not torch.equal(near.loss, exact.loss)
    torch.testing.assert_close(near.loss, exact.loss, rtol=0.05, atol=0.05)
