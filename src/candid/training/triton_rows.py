"""Steps of the row-wise optimizers on CUDA devices: one Triton kernel for each table.

The torch operations of a step are more than ten kernels, which read and write [n, D] several
times, and with repeated ids they update every look-up. A Triton kernel reads each distinct row
once. Results differ by rounding, and bfloat16 tables are rounded with other random bits.

Where the kernels cannot be used, ``fused_rows`` returns None, and the optimizers use torch
operations. ``CANDID_NATIVE=0`` in the environment turns the kernels off. Each kind of kernel is
checked once in a process before it is used.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from candid.triton_support import is_usable

DEVICES = {"cuda"}
"""Types of device that run the kernels; tests add "cpu", where Triton's interpreter runs them."""
MAX_WIDTH = 4096
"""Largest D: a program keeps one row in its registers."""
ELEMENTS_PER_WARP, MAX_WARPS = 128, 8
"""Elements of a row for each warp of a program, and most warps. Not chosen by measurements."""


class FusedRows:
    """The kernels for the rows of one step of one table.

    Args:
        table: [V, D], float32 or bfloat16.
        ids: [n] int64, as in ``RowGradient``, as are the next two.
        rows: [n, D] float32.
        source: [n] int64, or None.
        generator: of the random bits of stochastic rounding; None: the global one of the device.
    """

    def __init__(
        self,
        table: Tensor,
        ids: Tensor,
        rows: Tensor,
        source: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._table, self._ids, self._rows, self._source = table, ids, rows, source
        self._generator = generator
        self._kernels = _kernels()
        width = table.shape[1]
        self._settings: dict[str, Any] = {
            "WIDTH": width,
            "BLOCK_WIDTH": _block_width(width),
            "HAS_SOURCE": source is not None,
            "ROUNDS": table.dtype == torch.bfloat16,
        }
        if table.device.type == "cuda":
            warps = self._settings["BLOCK_WIDTH"] // ELEMENTS_PER_WARP
            self._settings["num_warps"] = min(max(1, warps), MAX_WARPS)

    def adagrad(self, square_sum: Tensor, *, lr: float, weight_decay: float, eps: float) -> None:
        """Take a step of ``RowAdagrad``.

        Args:
            square_sum: [V] float32, updated.
            lr: learning rate.
            weight_decay: weight decay of visited rows.
            eps: term added to the root.
        """
        self._launch(
            self._kernels.adagrad, square_sum, rate=lr, decay=1 - lr * weight_decay, eps=eps
        )

    def adam(
        self,
        mean_square: Tensor,
        visits: Tensor,
        mean: Tensor | None,
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float,
    ) -> None:
        """Take a step of ``RowAdam``.

        Args:
            mean_square: [V] float32, updated.
            visits: [V] int32, updated.
            mean: [V, D] float32, updated; None if the first of ``betas`` is 0.
            lr: learning rate.
            betas: decay of the two moments.
            weight_decay: weight decay of visited rows.
            eps: term added to the root.
        """
        first, second = betas
        self._launch(
            self._kernels.adam,
            mean_square,
            visits,
            mean_square if mean is None else mean,  # not read without a first moment
            rate=lr,
            decay=1 - lr * weight_decay,
            eps=eps,
            beta=second,
            share=1 - second,
            log_beta=_log(second),
            mean_beta=first,
            mean_share=1 - first,
            log_mean_beta=_log(first),
            HAS_MEAN=mean is not None,
        )

    def _launch(self, kernel: Any, *state: Tensor, **arguments: Any) -> None:
        seed = self._ids  # not read without rounding
        if self._settings["ROUNDS"]:
            # A tensor of the device needs no synchronisation; checkpoints store its generator.
            seed = torch.randint(1 << 62, (1,), generator=self._generator, device=self._ids.device)
        source = self._ids if self._source is None else self._source
        with torch.cuda.device_of(self._table):
            kernel[(len(self._ids),)](
                self._table, self._ids, self._rows, source, seed, *state,
                **arguments, **self._settings,
            )  # fmt: skip
        for written in (self._table, *state):
            torch.autograd.graph.increment_version(written)


def fused_rows(table: Tensor, ids: Tensor, rows: Tensor, source: Tensor | None) -> FusedRows | None:
    """Return the kernels for these inputs; None where torch operations must be used.

    Args:
        table: [V, D], float32 or bfloat16.
        ids: [n] int64, as in ``RowGradient``, as are the next two.
        rows: [n, D].
        source: [n] int64, or None.
    """
    if table.device.type not in DEVICES or rows.dtype != torch.float32:
        return None
    if table.dtype not in (torch.float32, torch.bfloat16):
        return None
    if not (len(ids) and 0 < table.shape[1] <= MAX_WIDTH):
        return None
    if not (table.is_contiguous() and rows.is_contiguous()):
        return None
    if not _is_usable(table.device, table.dtype, _block_width(table.shape[1])):
        return None
    return FusedRows(table, ids, rows, source)


@functools.cache
def _kernels() -> ModuleType:
    """Import the kernels.

    Raises:
        ImportError: Triton is not installed.
    """
    from candid.training import triton_row_kernels

    return triton_row_kernels


@functools.cache
def _is_usable(device: torch.device, dtype: torch.dtype, block_width: int) -> bool:
    """Return whether the kernels of this dtype and width compile, run and are right."""
    return is_usable(device, lambda: _check(device, dtype, block_width), "row-wise optimizers")


def _check(device: torch.device, dtype: torch.dtype, width: int) -> None:
    """Compare the first step of both rules with their definitions in float64, on three rows.

    Slot 2 is unused and has a gradient: a kernel that read it would move row 2 twice.
    """
    ids = torch.tensor([2, 0, 2], device=device)
    source = torch.tensor([0, 1, 0], device=device)
    rows = torch.linspace(-2.0, 3.0, 3 * width, device=device).view(3, width).sin()
    before = torch.linspace(1.0, 1.5, 3 * width, device=device).view(3, width).to(dtype)
    gradient = rows[:2].double()
    mean_square = gradient.square().mean(dim=1)
    expected = before.double()
    expected[ids[:2]] = 0.95 * expected[ids[:2]] - 0.1 * gradient / mean_square.sqrt()[:, None]
    # Its own generator: a resumed run makes this check again, and must continue the global one.
    generator = torch.Generator(device)
    shared = {"lr": 0.1, "weight_decay": 0.5, "eps": 1e-12}
    for rule in ("adagrad", "adam"):
        table, moment = before.clone(), torch.zeros(3, device=device)
        fused = FusedRows(table, ids, rows, source, generator)
        if rule == "adagrad":
            fused.adagrad(moment, **shared)
            expected_moment = torch.zeros(3, dtype=torch.float64, device=device)
            expected_moment[ids[:2]] = mean_square
        else:
            visits = torch.zeros(3, dtype=torch.int32, device=device)
            mean = torch.zeros(3, width, device=device)
            fused.adam(moment, visits, mean, betas=(0.9, 0.99), **shared)
            expected_moment = expected_moment * 0.01
            _require(visits, torch.tensor([1, 0, 1], device=device), 0.0)
        _require(moment, expected_moment, 1e-5)
        # The neighbours of a bfloat16 are at most 2^-7 of it away.
        _require(table, expected, 1e-4 if dtype == torch.float32 else 2**-7)


def _require(result: Tensor, expected: Tensor, error: float) -> None:
    if not torch.allclose(result.double(), expected.double(), rtol=error, atol=error):
        raise RuntimeError("the kernel and torch disagree")


def _block_width(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf
