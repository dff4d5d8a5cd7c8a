"""The Triton kernels of the row-wise optimizers against their definitions in float64.

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
from torch import nn

from candid.training import RowAdagrad, RowAdam, row_optimizer, triton_rows
from candid.training.optimizer import ModelOptimizer
from candid.training.triton_rows import fused_rows

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: see the docstring of this file", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("triton was imported without TRITON_INTERPRET=1", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of triton itself
    # The interpreter computes with NumPy, which warns of NaN and of 0 · inf.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

V = 12
STEPS = [[3, 3, 7], [0, 7, 7, 7], [3], [11, 3, 0], [3, 3, 3, 3], [5]]
RULES = {
    "adagrad": lambda p, **s: RowAdagrad(p, **s),
    "adam": lambda p, **s: RowAdam(p, betas=(0.0, 0.999), **s),
    "adam without memory": lambda p, **s: RowAdam(p, betas=(0.0, 0.0), **s),
    "adam with a first moment": lambda p, **s: RowAdam(p, betas=(0.9, 0.99), **s),
}


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """Use the kernels here, and pad distinct ids as on CUDA; list what was launched."""
    monkeypatch.setattr(triton_rows, "DEVICES", {DEVICE})
    monkeypatch.setattr(row_optimizer, "_distinct", row_optimizer._padded_distinct)
    launched = []

    def record(*arguments):
        fused = fused_rows(*arguments)
        launched.append(fused is not None)
        return fused

    monkeypatch.setattr(row_optimizer, "fused_rows", record)
    return launched


def embedding(dim, dtype=torch.float32, rows=V):
    generator = torch.Generator().manual_seed(dim)
    table = nn.Embedding(rows, dim, sparse=True)
    table.weight.data = torch.randn(rows, dim, generator=generator).to(dtype)
    return table.to(DEVICE)


def factors(dim, num, seed):
    """Gradients of ``num`` look-ups; those of the last differ in scale by 1e4."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num, dim, generator=generator)
    values[-1] *= 1e4
    return values.to(DEVICE)


def take_step(optimizer, table, ids, gradients):
    optimizer.zero_grad()
    (table(torch.tensor(ids, device=DEVICE)) * gradients).sum().backward()
    optimizer.step()


class Definition:
    """A rule in float64 over dense gradients."""

    def __init__(self, name, weights, lr, decay):
        self.name, self.lr, self.decay = name, lr, decay
        self.weights = weights.double().cpu()
        self.second = torch.zeros(len(weights), dtype=torch.float64)
        self.first = torch.zeros_like(self.weights)
        self.visits = torch.zeros(len(weights), dtype=torch.float64)

    def step(self, ids, gradients):
        dense = torch.zeros_like(self.weights)
        for row, gradient in zip(ids, gradients.double().cpu(), strict=True):
            dense[row] += gradient
        for row in set(ids):
            mean_square = (dense[row] ** 2).mean()
            self.visits[row] += 1
            direction, visits = dense[row], self.visits[row]
            if self.name == "adagrad":
                self.second[row] += mean_square
                root = self.second[row].sqrt() + 1e-10
            else:
                first, second = {"adam": (0, 0.999), "adam without memory": (0, 0)}.get(
                    self.name, (0.9, 0.99)
                )
                self.second[row] = second * self.second[row] + (1 - second) * mean_square
                self.first[row] = first * self.first[row] + (1 - first) * direction
                root = (self.second[row] / (1 - second**visits)).sqrt() + 1e-8
                direction = self.first[row] / (1 - first**visits)
            self.weights[row] *= 1 - self.lr * self.decay
            self.weights[row] -= self.lr * direction / root


@pytest.mark.parametrize("dim", [1, 3, 64, 130])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("name", RULES)
def test_rule_matches_its_definition_in_float64(name, decay, dim, launched):
    table = embedding(dim)
    expected = Definition(name, table.weight.detach(), 0.1, decay)
    optimizer = RULES[name]([table.weight], lr=0.1, weight_decay=decay)
    for step, ids in enumerate(STEPS):
        gradients = factors(dim, len(ids), step)
        take_step(optimizer, table, ids, gradients)
        expected.step(ids, gradients)
    # An update is at most 0.1 · sqrt(D), and correct to some 2^-24 of it.
    torch.testing.assert_close(
        table.weight.detach().double().cpu(), expected.weights, rtol=1e-6, atol=1e-6
    )
    state = optimizer.state[table.weight]
    second = state["square_sum" if name == "adagrad" else "mean_square"]
    torch.testing.assert_close(second.double().cpu(), expected.second, rtol=2e-6, atol=0)
    if "visits" in state:
        assert state["visits"].tolist() == expected.visits.tolist()
    if "mean" in state:
        torch.testing.assert_close(
            state["mean"].double().cpu(), expected.first, rtol=2e-6, atol=2e-3
        )
    assert launched == [True] * len(STEPS)


@pytest.mark.parametrize("name", RULES)
def test_kernel_equals_torch_operations_up_to_rounding(name, monkeypatch):
    weights = []
    for devices in ({DEVICE}, set()):
        monkeypatch.setattr(triton_rows, "DEVICES", devices)
        table = embedding(48)
        optimizer = RULES[name]([table.weight], lr=0.1, weight_decay=0.1)
        for step, ids in enumerate(STEPS):
            take_step(optimizer, table, ids, factors(48, len(ids), step))
        weights.append(table.weight.detach())
    # Torch operations compute 1 - beta^n as a difference, to 6e-5 of itself where beta is 0.999.
    torch.testing.assert_close(*weights, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_unused_slots_and_unread_rows_do_not_change_anything(name, dtype):
    table = embedding(5, dtype).weight.detach()
    before = table.clone()
    optimizer = RULES[name]([table], lr=0.1, weight_decay=0.5)
    state = optimizer.new_state(table)
    ids = torch.tensor([4, 9, 4, 4], device=DEVICE)
    rows = factors(5, 4, 0)
    rows[2:] = math.nan  # zeros in a step: NaN shows whether they are read
    fused = fused_rows(table, ids, rows, torch.tensor([0, 1, 0, 0], device=DEVICE))
    optimizer.move_fused(fused, state, optimizer.param_groups[0])
    is_changed = (table != before).any(dim=1)
    assert is_changed.nonzero()[:, 0].tolist() == [4, 9]
    assert bool(table.isfinite().all())
    for values in state.values():
        of_rows = values.reshape(V, -1)
        assert bool(of_rows.isfinite().all())
        assert of_rows.any(dim=1).nonzero()[:, 0].tolist() == [4, 9]
    if "visits" in state:
        assert state["visits"].sum() == 2


def test_nan_gradient_reaches_its_row_only():
    table = embedding(4)
    optimizer = RowAdam([table.weight], lr=0.1)
    gradients = factors(4, 3, 0)
    gradients[1, 2] = math.nan
    take_step(optimizer, table, [1, 2, 3], gradients)
    assert table.weight.isnan().any(dim=1).nonzero()[:, 0].tolist() == [2]


@pytest.mark.parametrize("name", RULES)
def test_bfloat16_table_gets_one_of_the_two_neighbours(name):
    table = embedding(33, torch.bfloat16)
    optimizer = RULES[name]([table.weight], lr=0.1, weight_decay=0.5)
    expected = Definition(name, table.weight.detach(), 0.1, 0.5)
    for step, ids in enumerate(STEPS):
        gradients = factors(33, len(ids), step).bfloat16().float()
        take_step(optimizer, table, ids, gradients)
        expected.step(ids, gradients)
        result = table.weight.detach().double().cpu()
        spacing = 2.0 ** (expected.weights.abs().log2().floor() - 7)
        assert bool(((result - expected.weights).abs() < 1.0001 * spacing).all())
        expected.weights = result  # the next step begins with the rounded weights


def constant_step(share, rows, dim):
    """Lower weights of 1.5 by ``share`` of the spacing of bfloat16 there."""
    table = nn.Embedding(rows, dim, sparse=True)
    table.weight.data = torch.full((rows, dim), 1.5, dtype=torch.bfloat16)
    table = table.to(DEVICE)
    optimizer = RowAdagrad([table.weight], lr=share * 2**-7)
    take_step(optimizer, table, list(range(rows)), torch.ones(rows, dim, device=DEVICE))
    return table.weight.detach().double().cpu()


def test_stochastic_rounding_is_unbiased_and_independent():
    torch.manual_seed(0)
    rows, dim, share = 64, 256, 0.3
    first, second = constant_step(share, rows, dim), constant_step(share, rows, dim)
    is_lower = first < 1.5
    assert set(first.unique().tolist()) == {1.5, 1.5 - 2**-7}
    deviation = math.sqrt(share * (1 - share) / (rows * dim))
    assert is_lower.double().mean().item() == pytest.approx(share, abs=4 * deviation)
    # Independent weights agree in the direction of both with probability 0.3² + 0.7² = 0.58.
    equal = share**2 + (1 - share) ** 2
    deviation = math.sqrt(equal * (1 - equal) / (rows * dim))
    pairs = {
        "steps": is_lower == (second < 1.5),
        "rows": is_lower == is_lower.roll(1, 0),
        "columns": is_lower == is_lower.roll(1, 1),
    }
    for agreement in pairs.values():
        assert agreement.double().mean().item() == pytest.approx(equal, abs=5 * deviation)


def test_stochastic_rounding_keeps_exact_values():
    table = embedding(16, torch.bfloat16)
    before = table.weight.detach().clone()
    optimizer = RowAdagrad([table.weight], lr=0.0)
    take_step(optimizer, table, list(range(V)), factors(16, V, 0))
    assert torch.equal(table.weight.detach(), before)


def test_resumed_run_rounds_with_the_same_numbers_although_it_checks_the_kernels_again():
    constant_step(0.5, 4, 64)  # checks the kernels in this process
    results = []
    for is_new_process in (False, True):
        if is_new_process:
            triton_rows._is_usable.cache_clear()
        torch.manual_seed(7)
        results.append(constant_step(0.5, 4, 64))
    assert torch.equal(*results)
    torch.manual_seed(8)
    assert not torch.equal(results[0], constant_step(0.5, 4, 64))


def test_clipping_scales_the_gradients_of_the_kernel():
    table = embedding(4)
    optimizer = ModelOptimizer(None, RowAdagrad([table.weight], lr=0.1))
    (
        table(torch.tensor([5], device=DEVICE)) * torch.tensor([0.3, -0.4, 0, 0]).to(DEVICE)
    ).sum().backward()
    optimizer.step(0.1, 0.25)
    square_sum = optimizer.rows.state[table.weight]["square_sum"][5].item()
    assert square_sum == pytest.approx(0.25**2 / 4, rel=1e-4)


def test_autograd_detects_that_a_saved_table_was_updated():
    table = embedding(4)
    optimizer = RowAdam([table.weight], lr=0.1)
    loss = table.weight.square().sum()
    version = table.weight._version
    take_step(optimizer, table, [1], factors(4, 1, 0))
    assert table.weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class TestFallback:
    @pytest.fixture(autouse=True)
    def no_memory_of_checks(self):
        triton_rows._is_usable.cache_clear()
        yield
        triton_rows._is_usable.cache_clear()

    def fused(self, shape=(5, 4), dtype=torch.float32, num=2, transposed=False):
        table = torch.zeros(shape, dtype=dtype, device=DEVICE)
        table = table.T if transposed else table
        ids = torch.arange(num, device=DEVICE)
        rows = torch.zeros(num, table.shape[1], device=DEVICE)
        rows = rows.double() if dtype == torch.float64 else rows
        return fused_rows(table, ids, rows, None)

    def test_inputs_that_the_kernels_do_not_support_use_torch(self):
        assert self.fused() is not None
        assert self.fused(dtype=torch.float64) is None
        assert self.fused(dtype=torch.float16) is None
        assert self.fused(shape=(5, 5000)) is None
        assert self.fused(shape=(5, 0)) is None
        assert self.fused(num=0) is None
        assert self.fused(transposed=True) is None

    def test_kernels_are_turned_off_by_the_environment(self, monkeypatch):
        monkeypatch.setenv("CANDID_NATIVE", "0")
        assert self.fused() is None

    def test_kernel_that_fails_is_replaced_with_one_warning(self, monkeypatch, caplog):
        def fail():
            raise RuntimeError("out of resource: registers\nmore")

        monkeypatch.setattr(triton_rows, "_kernels", fail)
        assert self.fused() is None
        assert self.fused() is None
        (record,) = caplog.records
        assert record.message.startswith("row-wise optimizers on ")
        assert record.message.endswith("slower than Triton: out of resource: registers")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("rule", ["adagrad", "adam"])
    def test_kernel_that_disagrees_with_torch_is_not_used(self, rule, dtype, monkeypatch):
        step = getattr(triton_rows.FusedRows, rule)

        def wrong(self, *state, lr, **settings):
            step(self, *state, lr=1.5 * lr, **settings)

        monkeypatch.setattr(triton_rows.FusedRows, rule, wrong)
        assert self.fused(dtype=dtype) is None


COMPILE = """
import warnings
warnings.simplefilter("ignore")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from candid.training import triton_row_kernels

TYPES = {name: "fp32" for name in ("rate", "decay", "eps")}
TYPES |= {name: "fp32" for name in ("beta", "share", "log_beta")}
TYPES |= {name: "fp32" for name in ("mean_beta", "mean_share", "log_mean_beta")}
TYPES |= {"ids": "*i64", "source": "*i64", "seed": "*i64", "visits": "*i32"}
for kernel, extra in (
    (triton_row_kernels.adagrad, {}),
    (triton_row_kernels.adam, {"HAS_MEAN": False}),
    (triton_row_kernels.adam, {"HAS_MEAN": True}),
):
    for narrow, width, block, source in (
        ("*fp32", 1, 1, True), ("*fp32", 48, 64, False), ("*bf16", 64, 64, True),
        ("*bf16", 4096, 4096, True),
    ):
        constants = extra | {
            "WIDTH": width, "BLOCK_WIDTH": block, "HAS_SOURCE": source, "ROUNDS": narrow == "*bf16"}
        types = TYPES | {"table": narrow}
        signature = {
            name: "constexpr" if name in constants else types.get(name, "*fp32")
            for name in kernel.arg_names
        }
        compiled = compile(
            ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32),
            options={"num_warps": min(max(1, block // 128), 8)},
        )
        print(compiled.metadata.shared)
"""


@pytest.mark.slow
def test_kernels_compile_for_the_oldest_device(compiled_kernels):
    assert len(compiled_kernels(COMPILE)) == 12
