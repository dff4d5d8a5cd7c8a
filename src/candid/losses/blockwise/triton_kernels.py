"""Triton kernels of the softmax in tiles, for CUDA devices.

Scores stay in registers: nothing of size [B, N] is written. ``triton_softmax`` launches the kernels
and is the only importer, because this module needs ``triton``, which torch's CUDA builds bring.

Both kernels compute the logits of a tile in the same way, ``_logits``: products with float32 sums,
minus the shifts, -inf where a candidate is not a negative of the row.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def expm1(x):
    """Compute exp(x) - 1 for x <= 0 to float32 accuracy.

    Near 0 the difference would cancel: there it is the Taylor polynomial of degree 8, whose
    remainder at -0.5 is 1e-8 of the result.
    """
    series = 1.0 + x * (1.0 / 8.0)
    series = 1.0 + x * (1.0 / 7.0) * series
    series = 1.0 + x * (1.0 / 6.0) * series
    series = 1.0 + x * (1.0 / 5.0) * series
    series = 1.0 + x * (1.0 / 4.0) * series
    series = 1.0 + x * (1.0 / 3.0) * series
    series = 1.0 + x * (1.0 / 2.0) * series
    return tl.where(x > -0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def _product(left, right, total, INPUT_PRECISION: tl.constexpr, WIDENS: tl.constexpr):
    """Add the product of two tiles to float32 sums.

    WIDENS: for Triton's interpreter, which multiplies the bits of bfloat16 numbers as integers.
    """
    if WIDENS:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=INPUT_PRECISION)


@triton.jit
def _is_masked(
    rows,
    columns,
    num_rows,
    num_columns,
    row_ids,
    column_ids,
    NUM_MATCHES: tl.constexpr,
    INDEX_MATCHES: tl.constexpr,
):
    """Return whether candidates are outside the catalog or have one of the ids of the row.

    ``rows`` and ``columns`` are indices that broadcast to a tile: [R, 1] and [1, C], or
    transposed. Bit m of INDEX_MATCHES: the id of a candidate in match m is its index.
    """
    is_masked = columns >= num_columns
    for match in tl.static_range(NUM_MATCHES):
        of_rows = tl.load(
            row_ids + match * num_rows.to(tl.int64) + rows, mask=rows < num_rows, other=0
        )
        if (INDEX_MATCHES >> match) & 1:
            of_columns = columns.to(tl.int64)
        else:
            of_columns = tl.load(
                column_ids + match * num_columns.to(tl.int64) + columns,
                mask=columns < num_columns,
                other=0,
            )
        is_masked = is_masked | (of_rows == of_columns)
    return is_masked


@triton.jit
def _logits(
    scores,
    rows,
    columns,
    num_rows,
    num_columns,
    row_ids,
    column_ids,
    shift,
    fixed_share,
    share,
    log_miss,
    num_of_others,
    factor,
    NUM_MATCHES: tl.constexpr,
    INDEX_MATCHES: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    MISS_PARTS: tl.constexpr,
):
    """Subtract the shifts of a tile of scores, and set masked candidates to -inf.

    For NUM_PARTS >= 0 the shift of a row and candidate also has ``factor`` times the log of
    ``RowCounts``: fixed_share plus, for each part, share times the number of other rows, or times
    1 - exp(number · log_miss) where the bit of MISS_PARTS is set.
    """
    is_column = columns < num_columns
    logits = scores
    if HAS_SHIFT:
        logits = logits - tl.load(shift + columns, mask=is_column, other=0.0)
    if NUM_PARTS >= 0:
        total = tl.load(fixed_share + columns, mask=is_column, other=1.0)
        total = total + tl.zeros_like(scores)
        for part in tl.static_range(NUM_PARTS):
            of_part = part * num_columns.to(tl.int64) + columns
            others = tl.load(
                num_of_others + part * num_rows.to(tl.int64) + rows,
                mask=rows < num_rows,
                other=0.0,
            )
            if (MISS_PARTS >> part) & 1:
                miss = tl.load(log_miss + of_part, mask=is_column, other=0.0)
                # 0 · log(1 - 1) would be NaN: zero rows include no item.
                others = -expm1(tl.where(others > 0.0, others * miss, 0.0))
            total = total + others * tl.load(share + of_part, mask=is_column, other=0.0)
        # 0 where only rows of the row's own user have the item: it is masked in that row.
        logits = logits - factor * tl.log(tl.where(total == 0.0, 1.0, total))
    is_masked = _is_masked(
        rows, columns, num_rows, num_columns, row_ids, column_ids, NUM_MATCHES, INDEX_MATCHES
    )
    return tl.where(is_masked, -float("inf"), logits)


@triton.jit(do_not_specialize=["num_rows", "num_columns", "split_columns"])
def log_sums(
    query,
    vectors,
    log_sum,
    mean,
    num_rows,
    num_columns,
    split_columns,
    row_ids,
    column_ids,
    shift,
    fixed_share,
    share,
    log_miss,
    num_of_others,
    factor,
    NUM_MATCHES: tl.constexpr,
    INDEX_MATCHES: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    MISS_PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDENS: tl.constexpr,
    HAS_MEAN: tl.constexpr,
):
    """Sum the exponentials of one block of rows over one part of the candidates (online softmax).

    Program (i, s) writes log_sum[s, rows of i], the log of the sum of exp(logit), and with HAS_MEAN
    mean[s, rows of i], the mean of the candidates' vectors under the softmax of the part, which is
    the gradient of log_sum with respect to the query.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, BLOCK_WIDTH)[None, :]
    is_row = rows[:, None] < num_rows
    of_rows = tl.load(query + rows[:, None] * WIDTH + dims, mask=is_row & (dims < WIDTH), other=0.0)
    highest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    weighted = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), tl.float32)
    first = tl.program_id(1) * split_columns
    last = tl.minimum(first + split_columns, num_columns)
    for start in range(first, last, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        is_vector = (columns[:, None] < last) & (dims < WIDTH)
        of_columns = tl.load(
            vectors + columns[:, None].to(tl.int64) * WIDTH + dims, mask=is_vector, other=0.0
        )
        scores = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        scores = _product(of_rows, tl.trans(of_columns), scores, INPUT_PRECISION, WIDENS)
        logits = _logits(
            scores,
            rows[:, None],
            columns[None, :],
            num_rows,
            num_columns,
            row_ids,
            column_ids,
            shift,
            fixed_share,
            share,
            log_miss,
            num_of_others,
            factor,
            NUM_MATCHES,
            INDEX_MATCHES,
            HAS_SHIFT,
            NUM_PARTS,
            MISS_PARTS,
        )
        new_highest = tl.maximum(highest, tl.max(logits, 1))
        # Without a candidate so far any finite reference serves; -inf would make NaN.
        reference = tl.where(new_highest == -float("inf"), 0.0, new_highest)
        decay = tl.exp(highest - reference)
        shares = tl.exp(logits - reference[:, None])
        total = total * decay + tl.sum(shares, 1)
        if HAS_MEAN:
            narrow = shares.to(of_columns.dtype)
            weighted = weighted * decay[:, None]
            weighted = _product(narrow, of_columns, weighted, INPUT_PRECISION, WIDENS)
        highest = new_highest
    reference = tl.where(highest == -float("inf"), 0.0, highest)
    out = tl.program_id(1).to(tl.int64) * num_rows + rows
    tl.store(log_sum + out, reference + tl.log(total), mask=rows < num_rows)
    if HAS_MEAN:
        means = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(mean + out[:, None] * WIDTH + dims, means, mask=is_row & (dims < WIDTH))


@triton.jit(do_not_specialize=["num_rows", "num_columns", "split_rows"])
def vector_gradients(
    query,
    scaled_query,
    vectors,
    reference,
    gradient,
    num_rows,
    num_columns,
    split_rows,
    row_ids,
    column_ids,
    shift,
    fixed_share,
    share,
    log_miss,
    num_of_others,
    factor,
    NUM_MATCHES: tl.constexpr,
    INDEX_MATCHES: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    MISS_PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    WIDENS: tl.constexpr,
):
    """Sum the gradients of one block of candidates over one part of the rows.

    Program (j, s) writes gradient[s, candidates of j], the sum over rows of
    exp(logit - reference[row]) · scaled_query[row]. No two programs write the same number, so no
    atomic operation is needed and equal inputs give equal bits. A reference of inf leaves a row
    out.
    """
    columns = tl.program_id(0).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    dims = tl.arange(0, BLOCK_WIDTH)[None, :]
    is_vector = (columns[:, None] < num_columns) & (dims < WIDTH)
    of_columns = tl.load(vectors + columns[:, None] * WIDTH + dims, mask=is_vector, other=0.0)
    total = tl.zeros((BLOCK_COLUMNS, BLOCK_WIDTH), tl.float32)
    first = tl.program_id(1) * split_rows
    last = tl.minimum(first + split_rows, num_rows)
    for start in range(first, last, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        is_element = (rows[:, None] < last) & (dims < WIDTH)
        elements = rows[:, None].to(tl.int64) * WIDTH + dims
        of_rows = tl.load(query + elements, mask=is_element, other=0.0)
        scores = tl.zeros((BLOCK_COLUMNS, BLOCK_ROWS), tl.float32)
        scores = _product(of_columns, tl.trans(of_rows), scores, INPUT_PRECISION, WIDENS)
        logits = _logits(
            scores,
            rows[None, :],
            columns[:, None],
            num_rows,
            num_columns,
            row_ids,
            column_ids,
            shift,
            fixed_share,
            share,
            log_miss,
            num_of_others,
            factor,
            NUM_MATCHES,
            INDEX_MATCHES,
            HAS_SHIFT,
            NUM_PARTS,
            MISS_PARTS,
        )
        log_total = tl.load(reference + rows, mask=rows < last, other=float("inf"))
        shares = tl.exp(logits - log_total[None, :])
        scaled = tl.load(scaled_query + elements, mask=is_element, other=0.0)
        total = _product(shares.to(scaled.dtype), scaled, total, INPUT_PRECISION, WIDENS)
    out = tl.program_id(1).to(tl.int64) * num_columns + columns
    tl.store(gradient + out[:, None] * WIDTH + dims, total, mask=is_vector)


@triton.jit(do_not_specialize=["num_rows", "num_columns"])
def count_masked(
    row_ids,
    column_ids,
    num_masked,
    num_rows,
    num_columns,
    NUM_MATCHES: tl.constexpr,
    INDEX_MATCHES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Count the masked candidates of one block of rows: num_masked [B] int64."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    count = tl.zeros((BLOCK_ROWS,), tl.int32)
    for start in range(0, num_columns, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        is_masked = _is_masked(
            rows[:, None],
            columns[None, :],
            num_rows,
            num_columns,
            row_ids,
            column_ids,
            NUM_MATCHES,
            INDEX_MATCHES,
        )
        is_masked = is_masked & (columns < num_columns)[None, :]
        count += tl.sum(is_masked.to(tl.int32), 1)
    tl.store(num_masked + rows, count.to(tl.int64), mask=rows < num_rows)
