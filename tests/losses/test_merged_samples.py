"""Merged samples of an item against loops, and against losses of single samples."""

import dataclasses
import math

import pytest
import torch

from candid import InBatchSoftmaxLoss, sampled_softmax, with_negatives
from candid.candidates import Candidates
from candid.losses import LossOutput, merged_samples, sampled, tiled_softmax
from candid.losses.blockwise import tile_pass
from candid.losses.blockwise.accidental_hits import IdMatch
from candid.losses.blockwise.native import native_pass
from candid.losses.blockwise.tiles import SIZES, TileSizes
from candid.losses.merged_samples import MergedSamples
from candid.samplers import CrossBatchMemory, ExactPopular, InBatch, Mixture, Uniform

V, B, D = 12, 40, 4
COUNTS = torch.arange(V, 0, -1).double().square()
GENERATOR = torch.Generator().manual_seed(4)
IDS = torch.multinomial(COUNTS, B, replacement=True, generator=GENERATOR)
USERS = torch.randint(9, (B,), generator=GENERATOR) * 7 - 1  # one of them is -1
QUERY = torch.randn(B, D, generator=GENERATOR, dtype=torch.float64)
TABLE = torch.randn(V, D, generator=GENERATOR, dtype=torch.float64)
OTHER_IDS = torch.multinomial(COUNTS, 25, replacement=True, generator=GENERATOR)
OTHER_USERS = torch.randint(20, (25,), generator=GENERATOR) * 7 - 1
NEGATIVES = torch.randint(-1, V, (B, 3), generator=GENERATOR)


def test_samples_left_of_each_item_and_row():
    own_ids, own_keys = torch.cat([IDS, OTHER_IDS]), torch.cat([USERS, OTHER_USERS])
    row_keys = torch.cat([USERS, torch.tensor([10**6, -5])])  # two users without samples
    merged = MergedSamples.of(own_ids)
    items = own_ids[merged.first]
    assert items.tolist() == sorted(set(own_ids.tolist()))
    assert torch.equal(items[merged.item], own_ids)
    assert merged.first.tolist() == [own_ids.tolist().index(d) for d in items.tolist()]
    assert merged.size.tolist() == [own_ids.tolist().count(d) for d in items.tolist()]
    never = IdMatch(torch.full_like(row_keys, -9), items)
    hits = merged.hits([never], (row_keys, own_keys), torch.float64)
    change = torch.zeros(len(row_keys), len(items), dtype=torch.float64)
    for start in range(0, len(row_keys), 10):
        rows = slice(start, min(start + 10, len(row_keys)))
        blocks = [slice(0, 5), slice(5, len(items))]
        row_hits = hits.of_rows(rows, blocks)
        for block, columns in enumerate(blocks):
            tile = torch.zeros(rows.stop - rows.start, columns.stop - columns.start)
            tile = tile.double()
            row_hits.mask(tile, block)
            assert not tile.any()
            row_hits.change(tile, block)
            change[rows, columns] = tile
    pairs = list(zip(own_ids.tolist(), own_keys.tolist(), strict=True))
    for row, key in enumerate(row_keys.tolist()):
        for column, d in enumerate(items.tolist()):
            size = sum(one == d for one, _ in pairs)
            left = sum(one == d and other != key for one, other in pairs)
            expected = math.log(left / size) if left else -math.inf
            assert change[row, column].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def memory(*, same_user=True):
    sampler = CrossBatchMemory(COUNTS, size=30, exclude_same_user=same_user)
    sampler.observe(OTHER_IDS, OTHER_USERS)
    return sampler


def sample_of(sampler, negatives=None):
    candidates = sampler.sample(IDS, USERS, generator=torch.Generator().manual_seed(3))
    if negatives is None:
        return candidates
    return with_negatives(candidates, negatives, sampler, IDS, USERS)


MERGED = {
    "in_batch": lambda: sample_of(InBatch(COUNTS)),
    "in_batch with own user": lambda: sample_of(InBatch(COUNTS, exclude_same_user=False)),
    "a part of the batch": lambda: sample_of(InBatch(COUNTS, num_candidates=25)),
    "memory": lambda: sample_of(memory()),
    "memory with own user": lambda: sample_of(memory(same_user=False)),
    "mixture": lambda: sample_of(Mixture([Uniform(V, num_candidates=20), InBatch(COUNTS)])),
    "mixture of two batches": lambda: sample_of(
        Mixture([memory(), InBatch(COUNTS, num_candidates=30)])
    ),
    "exact": lambda: sample_of(ExactPopular(COUNTS, num_exact=3, rest=InBatch(COUNTS))),
    "negatives": lambda: sample_of(memory(), NEGATIVES),
}


@pytest.fixture(params=["torch", "native"])
def engine(request, monkeypatch):
    """Small tiles, by each of the passes."""
    monkeypatch.setattr(sampled, "DENSE_SCORES", -1)
    monkeypatch.setattr(tile_pass, "NATIVE_SCORES", 0)
    monkeypatch.setitem(SIZES, "cpu", TileSizes(11, 70, 5, 2**24, 1, 1))
    if request.param == "torch":
        monkeypatch.setattr(tile_pass, "native_pass", lambda: None)
    elif native_pass() is None:
        pytest.skip("no C compiler")


@pytest.fixture
def widths(monkeypatch):
    """Numbers of candidates that were scored in tiles."""
    widths = []
    blockwise_softmax = tiled_softmax.blockwise_softmax

    def recorded(query, vectors, *arguments, **settings):
        widths.append(len(vectors))
        return blockwise_softmax(query, vectors, *arguments, **settings)

    monkeypatch.setattr(tiled_softmax, "blockwise_softmax", recorded)
    return widths


def loss_of(candidates, dtype=torch.float64, table=None, **settings):
    """Output, and the gradients of query and table."""
    query, items = (v.to(dtype).requires_grad_() for v in (QUERY.clone(), TABLE.clone()))
    settings["effective_sample_size"] = True
    vectors = items if table is None else lambda ids: table(items, ids)
    out = sampled_softmax(query, vectors, IDS, candidates, **settings)
    return out, torch.autograd.grad(out.loss.mean(), (query, items))


@pytest.mark.parametrize("correction", ["none", "logq", "logq, masked", "refined"])
@pytest.mark.parametrize("name", MERGED)
def test_losses_equal_those_of_single_samples(name, correction, engine, widths, monkeypatch):
    correction, *masked = correction.split(", ")
    settings = {"correction": correction, "accidental_hits": "mask" if masked else None}
    candidates = MERGED[name]()
    is_replaced = candidates.exact is not None and correction == "logq" and not masked
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        monkeypatch.setattr(merged_samples, "MAX_SHARE", 0.0)
        single, single_grads = loss_of(candidates, dtype, **settings)
        monkeypatch.setattr(merged_samples, "MAX_SHARE", 1.0)
        merged, grads = loss_of(candidates, dtype, **settings)
        num_distinct = len(candidates.ids if is_replaced else candidates.ids.unique())
        assert widths == [len(candidates.ids)] * 2 + [num_distinct] * 2
        widths.clear()
        for field in dataclasses.fields(LossOutput):
            values, expected = (getattr(out, field.name) for out in (merged, single))
            # An effective sample size is exp of a difference of two sums.
            relative = 4 * error if field.name == "effective_sample_size" else error
            torch.testing.assert_close(values, expected, rtol=relative, atol=relative)
        for grad, expected in zip(grads, single_grads, strict=True):
            torch.testing.assert_close(grad, expected, rtol=error, atol=error)


@pytest.mark.usefixtures("engine")
def test_bfloat16_products_round_each_score_once(monkeypatch):
    candidates = MERGED["memory"]()
    monkeypatch.setattr(merged_samples, "MAX_SHARE", 0.0)
    single, _ = loss_of(candidates, torch.float32, precision="bfloat16")
    monkeypatch.setattr(merged_samples, "MAX_SHARE", 1.0)
    merged, _ = loss_of(candidates, torch.float32, precision="bfloat16")
    # The scores have the same bits, and the sums are float32.
    torch.testing.assert_close(merged.log_z, single.log_z, rtol=4e-6, atol=4e-6)


@pytest.mark.usefixtures("engine")
class TestNotMerged:
    def test_vectors_that_differ_between_samples(self, widths):
        noise = torch.randn(2 * B + 25, D, dtype=torch.float64)
        loss_of(MERGED["memory"](), table=lambda items, ids: items[ids] + noise)
        loss_of(MERGED["memory"](), table=lambda items, ids: items[ids])
        num_distinct = len(MERGED["memory"]().ids.unique())
        assert widths == [B + 25] * 2 + [num_distinct] * 2

    def test_expected_counts_that_differ_between_samples(self, widths):
        candidates = MERGED["in_batch"]()
        counts = candidates.log_expected_count + torch.linspace(0, 1, B)
        loss_of(dataclasses.replace(candidates, log_expected_count=counts))
        assert widths == [B] * 2

    def test_vectors_of_rows(self, widths):
        loss = InBatchSoftmaxLoss(COUNTS)
        loss(QUERY, TABLE[IDS].requires_grad_(), IDS, USERS + 1)  # losses refuse a user of -1
        assert widths == [B]

    def test_mostly_distinct_items(self, widths, monkeypatch):
        monkeypatch.setattr(merged_samples, "MAX_SHARE", 12 / 40 - 0.01)
        ids = torch.arange(B) % V
        log_count = torch.zeros(B)
        loss_of(Candidates(ids, log_count, log_count, num_samples=B))
        monkeypatch.setattr(merged_samples, "MAX_SHARE", 12 / 40 + 0.01)
        loss_of(Candidates(ids, log_count, log_count, num_samples=B))
        assert widths == [B] * 2 + [V] * 2
