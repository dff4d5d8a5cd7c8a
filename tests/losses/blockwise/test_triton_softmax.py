"""The Triton kernels of the softmax against plain operations in float64.

On a CUDA device the kernels are compiled; elsewhere Triton's interpreter runs them on the CPU.
Triton comes with torch's CUDA builds; elsewhere: pip install --target FOLDER triton, and add FOLDER
to PYTHONPATH.
"""

import importlib.util
import math
import os
import sys

import pytest
import torch

from candid import sampled_softmax, with_negatives
from candid.losses import sampled, tiled_softmax
from candid.losses.blockwise import softmax, triton_softmax
from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.count_shift import CountShift
from candid.losses.blockwise.softmax import blockwise_softmax
from candid.losses.full import full_softmax
from candid.row_counts import BatchCounts, RowCounts
from candid.samplers import ExactPopular, InBatch, Mixture, Popularity, Uniform

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: see the docstring of this file", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("triton was imported without TRITON_INTERPRET=1", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of triton itself
    # The interpreter computes with NumPy, which warns of log(0) and of 0 · inf.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Use the kernels on this device, several parts for each block; list what was launched."""
    monkeypatch.setattr(triton_softmax, "DEVICES", {DEVICE})
    monkeypatch.setattr(triton_softmax, "_num_processors", lambda device: 3)
    small = triton_softmax.BlockSizes(32, 16, 4, 1)
    monkeypatch.setattr(triton_softmax, "SIZES", dict.fromkeys(triton_softmax.SIZES, small))
    launched = []
    make = triton_softmax.fused_softmax

    def record(*arguments):
        fused = make(*arguments)
        launched.append(fused is not None)
        return fused

    monkeypatch.setattr(softmax, "fused_softmax", record)
    yield launched
    assert launched == [] or all(launched), "torch operations were used"


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def log_ratio_by_loops(counts):
    """The log of e_row(d) / e(d) in float64, pair by pair."""
    num_rows, num_columns = len(counts.parts[0].num_of_others), len(counts.fixed_share)
    ratio = torch.zeros(num_rows, num_columns, dtype=torch.float64)
    for row in range(num_rows):
        for column in range(num_columns):
            total = counts.fixed_share[column].double().item()
            for part in counts.parts:
                others = part.num_of_others[row].double().item()
                if part.log_miss is not None:
                    miss = part.log_miss[column].double().item()
                    others = -math.expm1(others * miss) if others else 0.0
                total += others * part.share[column].double().item()
            ratio[row, column] = math.log(total) if total else 0.0
    return ratio


def expected_of(inputs, mask, shift, row_shift, ratio):
    """The equations of ``blockwise_softmax`` in float64: loss, log_z and leaves by name."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    logits = leaves["query"] @ leaves["vectors"].T - shift - row_shift[:, None] - ratio
    logits = logits.masked_fill(mask | shift.isposinf(), -math.inf)
    everything = torch.cat([logits, leaves["log_rest"][:, None]], dim=1)
    silent = everything.isneginf().all(dim=1)
    log_z = torch.where(silent[:, None], 0.0, everything).logsumexp(dim=1)
    gap = torch.where(silent, 0.0, log_z - leaves["positive"])
    loss = torch.where(silent, 0.0, torch.nn.functional.softplus(gap))
    return loss, log_z.masked_fill(silent, -math.inf), leaves


def row_counts(num_rows, num_columns, kind):
    """Counts of a mixture: one part with replacement, one of distinct items, or both."""
    if kind == "none":
        return None
    others = normal(2, num_rows, seed=5).abs().mul(20).floor().float()
    others[:, ::5] = 0.0
    # Probabilities from 1e-8, where 1 - exp would lose all digits, to 1.
    miss = torch.log1p(-torch.logspace(-8, 0, num_columns, dtype=torch.float64)).float()
    share = normal(2, num_columns, seed=6).abs().float() + 0.1
    parts = {
        "with replacement": (BatchCounts(share[0], None, others[0], 20),),
        "distinct": (BatchCounts(share[0], miss, others[0], 20),),
        "both": (
            BatchCounts(share[0], None, others[0], 20),
            BatchCounts(share[1], miss, others[1], 20),
        ),
    }[kind]
    fixed = torch.zeros(num_columns) if kind == "distinct" else share[0].flip(0)
    return RowCounts(fixed, parts, torch.zeros(num_rows))


def on_device(counts):
    parts = tuple(
        BatchCounts(
            part.share.to(DEVICE),
            None if part.log_miss is None else part.log_miss.to(DEVICE),
            part.num_of_others.to(DEVICE),
            part.num_rows,
        )
        for part in counts.parts
    )
    return RowCounts(
        counts.fixed_share.to(DEVICE), parts, counts.log_expected_count_positive.to(DEVICE)
    )


def both(num_rows, num_columns, dim, *, counts="none", precision="float32", scale=1.0, mix=True):
    """Results of the kernels and of float64 by name: loss, log_z and gradients."""
    inputs = {
        "query": scale * normal(num_rows, dim),
        "vectors": normal(num_columns, dim, seed=1),
        "positive": normal(num_rows, seed=2),
        "log_rest": normal(num_rows, seed=3),
    }
    inputs = {name: value.float().double() for name, value in inputs.items()}
    inputs["log_rest"][::4] = -math.inf
    row_ids, column_ids = integers(6, 2, num_rows), integers(6, 2, num_columns, seed=1)
    column_ids[0, row_ids[0, 0] != column_ids[0]] = row_ids[0, 0]  # row 0 has no candidates
    column_ids[1, : num_columns // 2] = 7 + 2**40  # beyond 32 bits
    column_ids[0, num_columns // 3 :] = integers(6, num_columns, seed=9)[num_columns // 3 :]
    row_ids[1, -1] = 7 + 2**40
    shift, row_shift = normal(num_columns, seed=4), normal(num_rows, seed=7)
    shift[3::7] = math.inf
    shift, row_shift = shift.float().double(), row_shift.float().double()
    mask = (row_ids[:, :, None] == column_ids[:, None, :]).any(dim=0)
    of_counts = row_counts(num_rows, num_columns, counts)
    ratio = torch.zeros(()) if of_counts is None else log_ratio_by_loops(of_counts)
    weights = torch.linspace(0.5, 1.5, num_rows, dtype=torch.float64)

    leaves = {k: v.float().to(DEVICE).requires_grad_() for k, v in inputs.items()}
    hits = AccidentalHits(
        *(
            IdMatch(of_rows.to(DEVICE), of_columns.to(DEVICE))
            for of_rows, of_columns in zip(row_ids, column_ids, strict=True)
        )
    )
    loss, log_z = blockwise_softmax(
        accidental_hits=hits,
        shift=shift.float().to(DEVICE),
        row_shift=row_shift.float().to(DEVICE),
        tile_shift=None if of_counts is None else CountShift(on_device(of_counts), torch.float32),
        precision=precision,
        **leaves,
    )
    expected, expected_log_z, expected_leaves = expected_of(inputs, mask, shift, row_shift, ratio)

    def total(loss, log_z):
        sum_of_loss = (loss * weights.to(loss)).sum()
        return sum_of_loss + log_z[~log_z.isneginf()].sum() if mix else sum_of_loss

    grads = torch.autograd.grad(total(loss, log_z), list(leaves.values()))
    expected_grads = torch.autograd.grad(
        total(expected, expected_log_z), list(expected_leaves.values())
    )
    results = {"loss": loss, "log_z": log_z} | dict(zip(leaves, grads, strict=True))
    return results, {"loss": expected, "log_z": expected_log_z} | dict(
        zip(leaves, expected_grads, strict=True)
    )


def assert_near(results, expected_results, relative):
    for name, values in expected_results.items():
        scale = max(values[values.isfinite()].abs().flatten().tolist(), default=0.0)
        torch.testing.assert_close(
            results[name].detach().double().cpu(),
            values.detach(),
            rtol=relative,
            atol=relative * max(1.0, scale),
            msg=lambda text, name=name: f"{name}: {text}",
        )


SIZES = [(1, 1, 3), (9, 23, 4), (40, 100, 16), (33, 70, 48)]


class TestAgainstFloat64:
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_float32(self, sizes):
        assert_near(*both(*sizes), 4e-6)

    @pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
    def test_bfloat16(self, sizes):
        # Query and vectors are rounded to 2^-9 of themselves: of scores up to 20, 0.1 in all.
        assert_near(*both(*sizes, precision="bfloat16"), 0.1)

    @pytest.mark.parametrize("counts", ["with replacement", "distinct", "both"])
    def test_counts_by_row(self, counts):
        assert_near(*both(40, 100, 16, counts=counts), 4e-6)

    @pytest.mark.parametrize("scale", [40.0, 1e4])
    def test_scores_far_apart(self, scale):
        # A score of some times the scale is rounded to 2^-24 of itself, a few times over.
        assert_near(*both(9, 23, 4, scale=scale), 16 * 2**-24 * scale)

    def test_loss_alone(self):
        assert_near(*both(9, 23, 4, mix=False), 4e-6)


def test_row_without_candidates_has_no_loss_and_no_gradient():
    query = normal(3, 4).float().to(DEVICE).requires_grad_()
    vectors = normal(5, 4).float().to(DEVICE).requires_grad_()
    row_ids = torch.tensor([1, 2, 1], device=DEVICE)
    hits = AccidentalHits(IdMatch(row_ids, torch.ones(5, dtype=torch.int64, device=DEVICE)))
    loss, log_z = blockwise_softmax(query, vectors, torch.zeros(3, device=DEVICE), hits)
    assert log_z.isneginf().tolist() == [True, False, True]
    grads = torch.autograd.grad(loss.sum(), (query, vectors))
    assert loss[::2].tolist() == [0.0, 0.0]
    assert grads[0][::2].count_nonzero() == 0
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_nan_reaches_the_loss_of_its_row():
    query, vectors = normal(9, 4).float().to(DEVICE), normal(30, 4).float().to(DEVICE)
    query[2, 1] = math.nan
    hits = AccidentalHits(IdMatch(torch.arange(9, device=DEVICE)))
    loss, _ = blockwise_softmax(query, vectors, torch.zeros(9, device=DEVICE), hits)
    assert loss.isnan().tolist() == [row == 2 for row in range(9)]


def test_full_softmax_equals_cross_entropy():
    query, items, positives = normal(20, 8), normal(70, 8, seed=1), integers(70, 20)
    results = {}
    for name, dtype, device in (("kernel", torch.float32, DEVICE), ("dense", torch.float64, "cpu")):
        leaves = [v.to(device, dtype).requires_grad_() for v in (query, items)]
        if name == "kernel":
            loss = full_softmax(*leaves, positives.to(device)).loss
        else:
            scores = leaves[0] @ leaves[1].T
            loss = torch.nn.functional.cross_entropy(scores, positives, reduction="none")
        grads = torch.autograd.grad((loss * torch.linspace(1, 2, 20).to(loss)).sum(), leaves)
        results[name] = dict(zip(("loss", "query", "items"), (loss, *grads), strict=True))
    assert_near(results["kernel"], results["dense"], 4e-6)


V, B = 40, 30
COUNTS = torch.arange(V, 0, -1).double().square()
SAMPLERS = {
    "popularity": Popularity(COUNTS, num_candidates=50),
    "distinct": Uniform(V, num_candidates=30, distinct=True),
    "in-batch": InBatch(COUNTS),
    "in-batch, distinct": InBatch(COUNTS, distinct=True),
    "mixture": Mixture([InBatch(COUNTS), Uniform(V, num_candidates=20)]),
    "exact": ExactPopular(COUNTS, num_exact=5, rest=Popularity(COUNTS, num_candidates=25)),
}
IDS = torch.multinomial(COUNTS, B, replacement=True, generator=torch.Generator().manual_seed(8))
USERS, NEGATIVES = integers(12, B), integers(V + 1, B, 3) - 1


@pytest.mark.parametrize("negatives", [False, True], ids=["", "with negatives"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("correction", ["logq", "refined"])
@pytest.mark.skipif(DEVICE == "cuda", reason="the samplers of this test are on the CPU")
def test_sampled_softmax_equals_dense_scores_in_float64(name, correction, negatives, monkeypatch):
    sampler = SAMPLERS[name]
    candidates = sampler.sample(IDS, USERS, generator=torch.Generator().manual_seed(3))
    if negatives:
        candidates = with_negatives(candidates, NEGATIVES, sampler, IDS, USERS)
    # As on an accelerator: samples of one item are not merged.
    monkeypatch.setattr(tiled_softmax, "_merged", lambda *arguments: None)
    query, table = normal(B, 5), normal(V, 5, seed=1)
    results = {}
    for dtype, most_dense in ((torch.float64, 2**40), (torch.float32, -1)):
        monkeypatch.setattr(sampled, "DENSE_SCORES", most_dense)
        leaves = [v.to(dtype).requires_grad_() for v in (query, table)]
        out = sampled_softmax(
            *leaves, IDS, candidates, correction=correction, effective_sample_size=True
        )
        grads = torch.autograd.grad(out.loss.mean(), leaves)
        results[dtype] = {
            "loss": out.loss,
            "log_z": out.log_z,
            "size": out.effective_sample_size,
            "query": grads[0],
            "table": grads[1],
        }
    assert_near(results[torch.float32], results[torch.float64], 5e-6)


def test_counts_of_masked_candidates():
    row_ids, column_ids = integers(6, 2, 50), integers(6, 2, 300, seed=1)
    matches = [
        (of_rows.to(DEVICE), of_columns.to(DEVICE))
        for of_rows, of_columns in zip(row_ids, column_ids, strict=True)
    ]
    expected = (row_ids[:, :, None] == column_ids[:, None, :]).any(dim=0).sum(dim=1)
    assert triton_softmax.count_masked(matches).tolist() == expected.tolist()
    assert AccidentalHits(*(IdMatch(*match) for match in matches)).num_hits().tolist() == (
        expected.tolist()
    )


def test_equal_inputs_give_equal_bits():
    first, second = both(40, 100, 16)[0], both(40, 100, 16)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


COMPILE = """
import warnings
warnings.simplefilter("ignore")
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from candid.losses.blockwise import triton_kernels
from candid.losses.blockwise.triton_softmax import SIZES

TYPES = {name: "i32" for name in ("num_rows", "num_columns", "split_rows", "split_columns")}
TYPES |= {"row_ids": "*i64", "column_ids": "*i64", "factor": "fp32"}
for (item_bytes, width), sizes in SIZES.items():
    for kernel, rows, columns, mean in (
        (triton_kernels.log_sums, sizes.outer, sizes.inner, {"HAS_MEAN": True}),
        (triton_kernels.vector_gradients, sizes.inner, sizes.outer, {}),
    ):
        narrow = {2: "*bf16", 4: "*fp32"}[item_bytes]
        types = TYPES | dict.fromkeys(("query", "scaled_query", "vectors"), narrow)
        constants = mean | {
            "NUM_MATCHES": 2, "INDEX_MATCHES": 1, "HAS_SHIFT": True, "NUM_PARTS": 2,
            "MISS_PARTS": 1, "WIDTH": width, "BLOCK_WIDTH": width, "BLOCK_ROWS": rows,
            "BLOCK_COLUMNS": columns, "INPUT_PRECISION": "ieee", "WIDENS": False,
        }
        signature = {
            name: "constexpr" if name in constants else types.get(name, "*fp32")
            for name in kernel.arg_names
        }
        options = sizes.options(torch.device("cuda"))
        compiled = compile(
            ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32),
            options=options,
        )
        print(compiled.metadata.shared)
"""


@pytest.mark.slow
def test_kernels_compile_for_the_oldest_device_within_its_shared_memory(compiled_kernels):
    shared = compiled_kernels(COMPILE)
    assert len(shared) == 2 * len(triton_softmax.SIZES)
    assert max(shared) <= 99 * 1024


class TestFallback:
    @pytest.fixture(autouse=True)
    def kernels(self, monkeypatch):
        monkeypatch.setattr(triton_softmax, "DEVICES", {DEVICE})
        triton_softmax._is_usable.cache_clear()
        yield
        triton_softmax._is_usable.cache_clear()

    def fused(self, dtype=torch.float32, dim=4, tile_shift=None):
        query, ids = torch.zeros(3, dim, dtype=dtype, device=DEVICE), torch.arange(3, device=DEVICE)
        return triton_softmax.fused_softmax(query, query, [(ids, ids)], None, tile_shift, dtype)

    def test_inputs_that_the_kernels_do_not_support_use_torch(self):
        assert self.fused() is not None
        assert self.fused(dtype=torch.float64) is None
        assert self.fused(dim=300) is None
        assert self.fused(tile_shift=lambda rows, columns: torch.zeros(1, 1)) is None

    def test_kernels_are_turned_off_by_the_environment(self, monkeypatch):
        monkeypatch.setenv("CANDID_NATIVE", "0")
        assert self.fused() is None

    def test_kernel_that_fails_is_replaced_with_one_warning(self, monkeypatch, caplog):
        def fail():
            raise RuntimeError("out of resource: shared memory\nmore")

        monkeypatch.setattr(triton_softmax, "_kernels", fail)
        assert self.fused() is None
        assert self.fused() is None
        (record,) = caplog.records
        assert record.message.endswith("slower than Triton: out of resource: shared memory")

    def test_kernel_with_wrong_results_is_refused(self, monkeypatch):
        log_sums = triton_softmax.FusedSoftmax.log_sums

        def wrong(self, *, needs_mean):
            log_sum, mean = log_sums(self, needs_mean=needs_mean)
            return log_sum + 0.2, mean

        monkeypatch.setattr(triton_softmax.FusedSoftmax, "log_sums", wrong)
        assert self.fused() is None
