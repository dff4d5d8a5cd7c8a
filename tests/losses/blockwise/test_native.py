"""The compiled kernel against float64, and the fallback where it cannot be compiled."""

import logging
import math

import pytest
import torch

import candid.native
from candid.losses import full_softmax
from candid.losses.blockwise import native, tile_pass
from candid.losses.blockwise.row_list import RowList
from candid.losses.blockwise.tile_pass import TorchTilePass

HAS_COMPILER = native.native_pass() is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has not loaded the kernel yet, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CANDID_NATIVE", raising=False)
    native.native_pass.cache_clear()
    yield tmp_path / "candid" / "native"
    native.native_pass.cache_clear()


def passes(like, largest=40_000):
    yield "torch", TorchTilePass(like, torch.float32, largest)
    if HAS_COMPILER:
        yield "native", tile_pass.NativeTilePass(native.native_pass())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 2, 15, 513, 1999, 8192])
@pytest.mark.parametrize("shifted", [False, True])
def test_exponentials_and_sums_are_accurate(dtype, columns, shifted):
    generator = torch.Generator().manual_seed(columns)
    scores = 8.0 * torch.randn(4, columns, generator=generator)
    scores[1] += 80.0
    scores[2] -= 80.0
    scores[3, columns // 2] += 200.0
    scores = scores.to(dtype)
    shift = torch.randn(columns, generator=generator) if shifted else None
    x = scores.double() - (0.0 if shift is None else shift.double())
    for name, run in passes(scores):
        tile = scores.clone()
        reference, log_sum = run(tile, shift, True)
        torch.testing.assert_close(log_sum.double(), x.logsumexp(dim=1), rtol=1e-6, atol=1e-6)
        shares = tile.double() * torch.exp(reference - log_sum).double()[:, None]
        relative = 2e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(shares, x.softmax(dim=1), rtol=relative * 5, atol=1e-7, msg=name)
        only = run(scores.clone(), shift, False)[1]
        torch.testing.assert_close(only, log_sum, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_rows_and_nan(dtype):
    scores = torch.zeros(4, 30)
    scores[0] = -math.inf
    scores[1, 3] = math.nan
    scores[2, :29] = -math.inf
    shift = torch.zeros(30)
    for _, run in passes(scores.to(dtype)):
        tile = scores.to(dtype, copy=True)
        reference, log_sum = run(tile, shift, True)
        assert reference[0].item() == log_sum[0].item() == -math.inf
        assert bool(tile[0].isfinite().all())
        assert log_sum.isnan().tolist() == [False, True, False, False]
        assert bool(tile[1].isnan().any())
        assert (tile[2] == 0).sum().item() == 29
        assert log_sum[2].item() == 0.0
        every, nothing = torch.zeros(4, 30).to(dtype), torch.full((30,), math.inf)
        assert bool(run(every, nothing, True)[1].isneginf().all())


def row_list(ranges, candidates, change=None):
    """Lists of rows that may share entries."""
    first, stop = torch.tensor(ranges).T.contiguous()
    change = None if change is None else torch.tensor(change)
    return RowList(first, stop, None if candidates is None else torch.tensor(candidates), change)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_lists_and_counts_of_rows(dtype, keep, shifted, counted):
    """Four rows and 30 candidates of a larger batch, from row 2 and candidate 100 on."""
    generator = torch.Generator().manual_seed(1)
    scores = (5.0 * torch.randn(4, 30, generator=generator)).to(dtype)
    scores[0, 7] = 300.0  # masked: the others must not vanish beside it
    shift = torch.randn(30, generator=generator) if shifted else None
    lists = [
        row_list(
            [(0, 9)] * 2 + [(0, 3), (3, 3), (3, 8), (4, 8)], [7, 107, 140, 99, 100, 129, 130, 131]
        ),
        row_list([(0, 1)] * 2 + [(110, 111), (5, 6), (129, 130), (130, 131)], None),
        row_list(
            [(0, 5)] * 2 + [(0, 5), (0, 5), (5, 7), (0, 0)],
            [3, 100, 107, 112, 129, 100, 105],
            [9.0, -0.5, -2.0, -math.inf, -1.0, -1.5, -math.inf],
        ),
    ]
    x = scores.double() - (0.0 if shift is None else shift.double())
    for one in lists:
        for row in range(4):
            for entry in range(one.first[row + 2], one.stop[row + 2]):
                column = entry if one.candidates is None else int(one.candidates[entry])
                if 100 <= column < 130:
                    change = -math.inf if one.change is None else float(one.change[entry])
                    x[row, column - 100] += change
    counts = None
    if counted:
        fixed, part = torch.rand(2, 30, generator=generator).unbind()
        fixed[4] = part[4] = 0.0  # counts as 1
        counts = fixed, part, torch.tensor([9.0, 9.0, 5.0, 0.0, 1000.0, 3.0])
        count = fixed.double() + counts[2][2:, None].double() * part.double()
        x -= count.where(count > 0, 1.0).log()
    reference, log_sum = torch.empty(2, 4).unbind()
    compiled = native.NativeLists(lists)
    run = native.native_pass()
    settings = {"lists": compiled, "start": (2, 100), "counts": counts}
    run(scores, shift, reference, log_sum, keep, **settings)
    torch.testing.assert_close(log_sum.double(), x.logsumexp(dim=1), rtol=1e-6, atol=1e-6)
    if keep:
        shares = scores.double() * torch.exp(reference - log_sum).double()[:, None]
        relative = 5e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(shares, x.softmax(dim=1), rtol=relative, atol=1e-30)


@needs_compiler
def test_kernel_is_cached_for_the_next_process(fresh, monkeypatch):
    assert native.native_pass() is not None
    (library,) = fresh.iterdir()
    native.native_pass.cache_clear()
    compiled = []
    run = candid.native._run
    monkeypatch.setattr(
        candid.native, "_run", lambda command: compiled.append(command) or run(command)
    )
    assert native.native_pass() is not None
    assert [command[-1] for command in compiled] == ["--version"]
    assert list(fresh.iterdir()) == [library]


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "candid.losses"]


def fake_compiler(tmp_path, body):
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{body}\n")
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/cc", "no C compiler found"),
        (" ", "no C compiler found"),
        ("false", "false --version failed: no reason given"),
        ("[ $1 = --version ] || { echo no space >&2; exit 1; }", "no space"),
        ('[ $1 = --version ] || : > "$(eval echo \\${$#})"', "too short"),
    ],
)
def test_broken_compiler_gives_one_log_line(fresh, monkeypatch, caplog, compiler, reason):
    command = compiler if " " not in compiler.strip() else fake_compiler(fresh.parents[1], compiler)
    monkeypatch.setenv("CC", command)
    with caplog.at_level(logging.INFO):
        assert native.native_pass() is None
        assert native.native_pass() is None
    (line,) = messages(caplog)
    assert line.startswith("losses use torch operations, somewhat slower: ")
    assert reason in line
    assert not [path for path in fresh.glob("*") if path.suffix == ".o"]


@needs_compiler
def test_missing_cache_folder_gives_one_log_line(fresh, caplog):
    fresh.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO):
        assert native.native_pass() is not None
    (line,) = messages(caplog)
    assert "compiled in each process" in line


@needs_compiler
def test_kernel_with_wrong_results_is_refused(fresh, monkeypatch, caplog):
    wrong = fresh.parents[1] / "wrong.c"
    source = native.SOURCE.read_text()
    wrong.write_text(source.replace("exponential(x[j] - base)", "1.1f * exponential(x[j] - base)"))
    assert wrong.read_text() != source
    monkeypatch.setattr(native, "SOURCE", wrong)
    with caplog.at_level(logging.INFO):
        assert native.native_pass() is None
    assert messages(caplog)[0].endswith(
        "the compiled kernel and torch disagree on the exponentials"
    )


def test_environment_variable_turns_the_kernel_off(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CANDID_NATIVE", "0")
    with caplog.at_level(logging.INFO):
        assert native.native_pass() is None
    assert messages(caplog) == []
    assert not fresh.exists()


def test_losses_agree_with_and_without_the_kernel(fresh, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(300, 8, generator=generator).requires_grad_()
    items = torch.randn(700, 8, generator=generator).requires_grad_()
    positive_ids = torch.randint(700, (300,), generator=generator)
    assert tile_pass.NATIVE_SCORES <= 300 * 700
    results = []
    for switch in ("1", "0"):
        monkeypatch.setenv("CANDID_NATIVE", switch)
        native.native_pass.cache_clear()
        assert (native.native_pass() is not None) == (fresh.exists() and switch == "1")
        loss = full_softmax(query, items, positive_ids).loss
        results.append([loss, *torch.autograd.grad(loss.mean(), (query, items))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=3e-6, atol=3e-6)
