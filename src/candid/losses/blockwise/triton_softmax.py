"""The softmax in tiles on CUDA devices, by Triton kernels that keep the scores in registers.

Forward (``triton_kernels.log_sums``): an online softmax over the candidates, with the mean of
their vectors under it, as in FlashAttention (Dao et al., arXiv:2205.14135) where keys and values
are one. That mean is the gradient of log Z' with respect to the query, so that the backward pass
(``triton_kernels.vector_gradients``) computes only the gradient of the candidates, from recomputed
scores. Four matrix products in all.

Where the kernels cannot be used, ``fused_softmax`` returns None, and the losses use torch
operations on tiles. ``CANDID_NATIVE=0`` in the environment turns the kernels off. Each kind of
kernel is checked once in a process against torch before it is used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from candid.losses.blockwise.count_shift import CountShift, CountTerms
from candid.triton_support import is_usable

DEVICES = {"cuda"}
"""Types of device that run the kernels; tests add "cpu", where Triton's interpreter runs them."""
MAX_WIDTH = 256
"""Largest D: a block of rows and one of candidates must fit into the memory of a multiprocessor."""
PROGRAMS_PER_PROCESSOR = 2
"""Programs for each multiprocessor: with fewer row blocks, the candidates are split further."""
COUNTED_ROWS, COUNTED_COLUMNS = 32, 128
"""Tile of the kernel that counts masked candidates."""

Match = tuple[Tensor, Tensor | None]
"""Ids of the rows [B] and of the candidates [N] int64; None where candidate n has the id n."""


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of the blocks of a program.

    Attributes:
        outer: rows of a program of the forward pass, or candidates of one of the backward pass.
        inner: candidates, or rows, of one iteration.
        num_warps: warps of a program.
        num_stages: iterations whose loads overlap.
    """

    outer: int
    inner: int
    num_warps: int
    num_stages: int

    def options(self, device: torch.device) -> dict[str, Any]:
        """Return the options of a launch; Triton's interpreter has none."""
        if device.type != "cuda":
            return {}
        # Products and sums may be fused, as in torch; the default differs between versions.
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }


SIZES = {
    (2, 64): BlockSizes(128, 64, 8, 3),
    (2, 128): BlockSizes(128, 64, 8, 2),
    (2, 256): BlockSizes(64, 32, 8, 2),
    (4, 64): BlockSizes(64, 64, 8, 2),
    (4, 128): BlockSizes(64, 32, 8, 2),
    (4, 256): BlockSizes(32, 32, 8, 1),
}
"""By bytes of a number in the products and by D, rounded up. Chosen by the size of the registers
and of shared memory (99 KiB on the smallest of these devices), not by measurements."""


class FusedSoftmax:
    """The kernels for B rows and N candidates.

    Args:
        query: [B, D] float32.
        vectors: [N, D] float32.
        matches: ids whose equality masks a candidate in a row, at least one pair.
        shift: [N] float32, subtracted from the scores; None for 0.
        count_shift: subtracted from the scores as well; None for 0.
        narrow: dtype of the matrix products; sums are float32.
    """

    def __init__(
        self,
        query: Tensor,
        vectors: Tensor,
        matches: Sequence[Match],
        shift: Tensor | None,
        count_shift: CountShift | None,
        narrow: torch.dtype,
    ) -> None:
        self._kernels = _kernels()
        self._query_wide = query.detach()
        self._query = query.detach().to(narrow).contiguous()
        self._vectors = vectors.detach().to(narrow).contiguous()
        self._narrow = narrow
        counts = None if count_shift is None else count_shift.terms()
        unused = self._query  # stands for arguments that the kernel does not read
        row_ids, column_ids, index_matches = _stacked(matches)
        self._settings: dict[str, Any] = {
            "row_ids": row_ids,
            "column_ids": column_ids,
            "shift": unused if shift is None else shift.detach().contiguous(),
            **_count_arguments(counts, unused),
            "factor": 1.0 if count_shift is None else count_shift.factor,
            "NUM_MATCHES": len(matches),
            "INDEX_MATCHES": index_matches,
            "HAS_SHIFT": shift is not None,
            "WIDTH": query.shape[1],
            "BLOCK_WIDTH": _block_width(query.shape[1]),
            "INPUT_PRECISION": _input_precision(),
            "WIDENS": query.device.type != "cuda",
        }

    def log_sums(self, *, needs_mean: bool) -> tuple[Tensor, Tensor | None]:
        """Return the log-sums of the S parts into which the candidates are cut, and their means.

        Args:
            needs_mean: whether to compute the means.

        Returns:
            log of the sum of exp(score - shift) [S, B], -inf for a row without candidates; and the
            mean of the candidates' vectors under the softmax of the part [S, B, D], or None.
        """
        num_rows, num_columns = len(self._query), len(self._vectors)
        sizes = self._sizes()
        blocks, splits, length = _parts(num_rows, num_columns, sizes, self._query.device)
        log_sum = self._query_wide.new_empty(splits, num_rows)
        mean = self._query_wide.new_empty(splits, num_rows, self._query.shape[1])
        with torch.cuda.device_of(self._query):
            self._kernels.log_sums[blocks, splits](
                self._query,
                self._vectors,
                log_sum,
                mean,
                num_rows,
                num_columns,
                length,
                **self._settings,
                BLOCK_ROWS=sizes.outer,
                BLOCK_COLUMNS=sizes.inner,
                HAS_MEAN=needs_mean,
                **sizes.options(self._query.device),
            )
        return log_sum, mean if needs_mean else None

    def vector_gradient(self, log_total: Tensor, grad_scale: Tensor) -> Tensor:
        """Return the gradient of the candidates' vectors: [N, D] float32.

        Args:
            log_total: [B], the log-sum of all terms of each row; -inf leaves the row out.
            grad_scale: [B], the gradient of log_total.
        """
        num_rows, num_columns = len(self._query), len(self._vectors)
        sizes = self._sizes()
        blocks, splits, length = _parts(num_columns, num_rows, sizes, self._query.device)
        gradient = self._query_wide.new_empty(splits, num_columns, self._query.shape[1])
        scaled_query = (self._query_wide * grad_scale[:, None]).to(self._narrow).contiguous()
        reference = log_total.masked_fill(log_total.isneginf(), math.inf)
        with torch.cuda.device_of(self._query):
            self._kernels.vector_gradients[blocks, splits](
                self._query,
                scaled_query,
                self._vectors,
                reference,
                gradient,
                num_rows,
                num_columns,
                length,
                **self._settings,
                BLOCK_ROWS=sizes.inner,
                BLOCK_COLUMNS=sizes.outer,
                **sizes.options(self._query.device),
            )
        return gradient[0] if splits == 1 else gradient.sum(dim=0)

    def _sizes(self) -> BlockSizes:
        return SIZES[self._narrow.itemsize, max(64, self._settings["BLOCK_WIDTH"])]


def fused_softmax(
    query: Tensor,
    vectors: Tensor,
    matches: Sequence[Match],
    shift: Tensor | None,
    tile_shift: object | None,
    narrow: torch.dtype,
) -> FusedSoftmax | None:
    """Return the kernels for these inputs; None where torch operations must be used.

    Args:
        query: [B, D].
        vectors: [N, D], of the same dtype.
        matches: ids whose equality masks a candidate in a row, at least one pair.
        shift: [N], subtracted from the scores; None for 0.
        tile_shift: a ``TileShift``; only ``CountShift`` and None can be computed in a kernel.
        narrow: dtype of the matrix products.
    """
    if query.device.type not in DEVICES or query.dtype != torch.float32:
        return None
    if tile_shift is not None and not isinstance(tile_shift, CountShift):
        return None
    width = query.shape[1]
    if not (len(query) and len(vectors) and 0 < width <= MAX_WIDTH):
        return None
    if not _is_usable(query.device, narrow, _block_width(width)):
        return None
    return FusedSoftmax(query, vectors, matches, shift, tile_shift, narrow)


def count_masked(matches: Sequence[Match]) -> Tensor | None:
    """Count the masked candidates of each row, [B] int64; None where kernels cannot be used.

    Args:
        matches: ids whose equality masks a candidate in a row, at least one pair with ids of the
            candidates.
    """
    device, num_rows = matches[0][0].device, len(matches[0][0])
    num_candidates = max((len(ids) for _, ids in matches if ids is not None), default=0)
    if device.type not in DEVICES or not (num_rows and num_candidates):
        return None
    if not _is_usable(device, torch.float32, 64):
        return None
    row_ids, column_ids, index_matches = _stacked(matches)
    num_masked = row_ids.new_empty(num_rows)
    with torch.cuda.device_of(row_ids):
        _kernels().count_masked[(-(-num_rows // COUNTED_ROWS),)](
            row_ids,
            column_ids,
            num_masked,
            num_rows,
            num_candidates,
            NUM_MATCHES=len(matches),
            INDEX_MATCHES=index_matches,
            BLOCK_ROWS=COUNTED_ROWS,
            BLOCK_COLUMNS=COUNTED_COLUMNS,
        )
    return num_masked


@functools.cache
def _kernels() -> ModuleType:
    """Import the kernels.

    Raises:
        ImportError: Triton is not installed.
    """
    from candid.losses.blockwise import triton_kernels

    return triton_kernels


@functools.cache
def _is_usable(device: torch.device, narrow: torch.dtype, block_width: int) -> bool:
    """Return whether the kernels of this dtype and width compile, run and agree with torch."""
    return is_usable(device, lambda: _check(device, narrow, block_width), "losses")


def _check(device: torch.device, narrow: torch.dtype, width: int) -> None:
    """Compare the kernels with torch on a small problem, once in a process."""
    query = torch.linspace(-1.0, 1.0, 40 * width, device=device).view(40, width).sin()
    vectors = torch.linspace(-3.0, 2.0, 70 * width, device=device).view(70, width).cos()
    row_ids = torch.arange(40, device=device)
    column_ids = torch.arange(70, device=device) % 50
    shift = torch.linspace(-1.0, 1.0, 70, device=device)
    kernels = FusedSoftmax(query, vectors, [(row_ids, column_ids)], shift, None, narrow)
    log_sum, mean = kernels.log_sums(needs_mean=True)
    assert mean is not None
    log_total = log_sum.logsumexp(dim=0)
    share = torch.exp(log_sum - log_total)
    gradient = kernels.vector_gradient(log_total, torch.ones_like(log_total))
    logits = query.double() @ vectors.double().T - shift.double()
    logits = logits.masked_fill(row_ids[:, None] == column_ids, -math.inf)
    shares = logits.softmax(dim=1)
    # A score is rounded to 2^-11 (TF32) or 2^-9 (bfloat16) of its terms.
    error = 1e-4 if narrow == torch.float32 and _input_precision() == "ieee" else 0.1
    for result, expected in (
        (log_total, logits.logsumexp(dim=1)),
        ((share[:, :, None] * mean).sum(dim=0), shares @ vectors.double()),
        (gradient, shares.T @ query.double()),
    ):
        if not torch.allclose(result.double(), expected, rtol=error, atol=error):
            raise RuntimeError("the kernel and torch disagree")


def _input_precision() -> str:
    """Return how float32 products are computed: as torch's own products are."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _block_width(width: int) -> int:
    """Return D rounded up to a power of two, at least 16, the least of a product in Triton."""
    return max(16, 1 << (width - 1).bit_length())


def _parts(
    num_outer: int, num_inner: int, sizes: BlockSizes, device: torch.device
) -> tuple[int, int, int]:
    """Return the number of outer blocks, of parts of the inner loop, and the length of a part."""
    blocks = -(-num_outer // sizes.outer)
    iterations = -(-num_inner // sizes.inner)
    splits = min(iterations, max(1, PROGRAMS_PER_PROCESSOR * _num_processors(device) // blocks))
    length = -(-iterations // splits)
    return blocks, -(-iterations // length), length * sizes.inner


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _stacked(matches: Sequence[Match]) -> tuple[Tensor, Tensor, int]:
    """Return ids of rows [M, B], ids of candidates [M, N], and the bits of matches by index."""
    row_ids = torch.stack([of_rows.long() for of_rows, _ in matches])
    given = [ids for _, ids in matches if ids is not None]
    index_matches = sum(1 << i for i, (_, ids) in enumerate(matches) if ids is None)
    if not given:
        return row_ids, row_ids, index_matches  # the kernel does not read the second
    columns = [given[0] if ids is None else ids for _, ids in matches]
    return row_ids, torch.stack([ids.long() for ids in columns]), index_matches


def _count_arguments(counts: CountTerms | None, unused: Tensor) -> dict[str, Any]:
    names = ("fixed_share", "share", "log_miss", "num_of_others")
    if counts is None:
        return {**dict.fromkeys(names, unused), "NUM_PARTS": -1, "MISS_PARTS": 0}
    arrays = {name: getattr(counts, name) for name in names}
    return {**arrays, "NUM_PARTS": counts.num_parts, "MISS_PARTS": counts.miss_parts}
