"""Triton kernels of the row-wise optimizers, for CUDA devices.

One program updates one row: it reads its gradient, state and weights, and writes state and weights.
``triton_rows`` launches the kernels and is the only importer, because this module needs ``triton``,
which torch's CUDA builds bring.
"""

from __future__ import annotations

import triton
import triton.language as tl

from candid.losses.blockwise.triton_kernels import expm1


@triton.jit
def _row(
    ids, rows, source, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, HAS_SOURCE: tl.constexpr
):
    """Return slot, row of the table, whether the slot is used, elements to read, and gradient.

    With HAS_SOURCE the slots after the distinct ids repeat the first one, with source 0: their
    programs must not write, as they would race with the program of slot 0.
    """
    slot = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_WIDTH)
    is_used = slot >= 0
    if HAS_SOURCE:
        is_used = tl.load(source + slot) == slot
    is_element = dims < tl.where(is_used, WIDTH, 0)
    gradient = tl.load(rows + slot * WIDTH + dims, mask=is_element, other=0.0)
    return slot, tl.load(ids + slot), is_used, is_element, gradient


@triton.jit
def _move(
    table,
    elements,
    is_element,
    direction,
    scale,
    slot,
    seed,
    rate,
    decay,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """Write decay · weights - rate · direction · scale to elements of the table.

    ROUNDS: to bfloat16, stochastically. A bfloat16 is the upper half of a float32; random bits are
    added to the lower half, and the carry rounds up.
    """
    weights = tl.load(table + elements, mask=is_element, other=0.0).to(tl.float32)
    weights = weights * decay - rate * direction * scale
    if ROUNDS:
        dims = tl.arange(0, BLOCK_WIDTH)
        noise = tl.randint(tl.load(seed), slot * WIDTH + dims) & 0xFFFF
        bits = (weights.to(tl.int32, bitcast=True) + noise.to(tl.int32)) & -0x10000
        weights = bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    tl.store(table + elements, weights, mask=is_element)


@triton.jit
def adagrad(
    table,
    ids,
    rows,
    source,
    seed,
    square_sum,
    rate,
    decay,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """Update one row by row-wise Adagrad: ``square_sum`` [V] and ``table`` [V, D]."""
    slot, row, is_used, is_element, gradient = _row(
        ids, rows, source, WIDTH, BLOCK_WIDTH, HAS_SOURCE
    )
    mean_square = tl.sum(gradient * gradient, 0) / WIDTH
    total = tl.load(square_sum + row) + mean_square
    tl.store(square_sum + row, total, mask=is_used)
    scale = tl.div_rn(1.0, tl.sqrt_rn(total) + eps)
    elements = row * WIDTH + tl.arange(0, BLOCK_WIDTH)
    _move(
        table,
        elements,
        is_element,
        gradient,
        scale,
        slot,
        seed,
        rate,
        decay,
        WIDTH,
        BLOCK_WIDTH,
        ROUNDS,
    )


@triton.jit
def adam(
    table,
    ids,
    rows,
    source,
    seed,
    mean_square,
    visits,
    mean,
    rate,
    decay,
    eps,
    beta,
    share,
    log_beta,
    mean_beta,
    mean_share,
    log_mean_beta,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    ROUNDS: tl.constexpr,
    HAS_MEAN: tl.constexpr,
):
    """Update one row by row-wise Adam: ``mean_square``, ``visits`` [V], ``mean``, ``table`` [V, D].

    ``beta`` is the decay of the second moment, ``share`` is 1 - beta and ``log_beta`` log(beta);
    those of the first moment have ``mean`` in their names. ``mean`` is read with HAS_MEAN only.
    """
    slot, row, is_used, is_element, gradient = _row(
        ids, rows, source, WIDTH, BLOCK_WIDTH, HAS_SOURCE
    )
    count = tl.load(visits + row) + 1
    tl.store(visits + row, count, mask=is_used)
    number = count.to(tl.float32)
    moment = beta * tl.load(mean_square + row)
    moment += (tl.sum(gradient * gradient, 0) / WIDTH) * share
    tl.store(mean_square + row, moment, mask=is_used)
    # 1 - beta^n as a difference would lose four digits at the first visits.
    corrected = tl.div_rn(moment, -expm1(number * log_beta))
    scale = tl.div_rn(1.0, tl.sqrt_rn(corrected) + eps)
    elements = row * WIDTH + tl.arange(0, BLOCK_WIDTH)
    direction = gradient
    if HAS_MEAN:
        old = tl.load(mean + elements, mask=is_element, other=0.0)
        direction = mean_beta * old + mean_share * gradient
        tl.store(mean + elements, direction, mask=is_element)
        scale = tl.div_rn(scale, -expm1(number * log_mean_beta))
    _move(
        table,
        elements,
        is_element,
        direction,
        scale,
        slot,
        seed,
        rate,
        decay,
        WIDTH,
        BLOCK_WIDTH,
        ROUNDS,
    )
