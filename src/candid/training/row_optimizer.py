"""Optimizers that update only the rows of a step, with one scalar of state per row.

Dense Adam reads and writes three numbers for each weight at every step, for any batch: its cost
grows with the catalog. Here the cost of a step grows with its distinct ids. The second moment is
the mean square of a row's gradient (row-wise Adagrad: Gupta et al., "Training recommender
systems at scale", KDD 2014; Naumov et al., DLRM, arXiv:1906.00091), so the state is V numbers
beside a table of V × D.

Both rules are lazy: a row that a step does not read is not moved, not decayed and keeps its
moments. Moments are therefore means over the visits of a row, and Adam's bias correction counts
these visits, not the steps of the run: with steps, a row first read at step 10,000 would be
moved three times too far.

On CUDA devices ``triton_rows`` takes the step of a table in one kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from candid.errors import ConfigError
from candid.training.triton_rows import FusedRows, fused_rows


class RowGradient(NamedTuple):
    """The gradient of the rows of a step.

    Attributes:
        ids: [n] int64, distinct where ``source`` is None.
        rows: [n, D] float32, summed over the occurrences of each id.
        source: [n] int64, or None. On an accelerator the number of distinct ids is not read, which
            would force a synchronisation: n is the number of look-ups. The first entries are the
            distinct ids, each with its source, itself; the others repeat the first id, with rows of
            zeros and source 0.
    """

    ids: Tensor
    rows: Tensor
    source: Tensor | None = None


def sum_by_row(gradient: Tensor) -> RowGradient:
    """Sum a sparse gradient [V, D] over the occurrences of each row, in float32 at least.

    On the CPU this is slightly faster than ``coalesce``, which sums bfloat16 in bfloat16. A dense
    gradient has every row once.
    """
    if not gradient.is_sparse:
        ids = torch.arange(len(gradient), device=gradient.device)
        return RowGradient(ids, gradient.to(_wide(gradient)))
    ids, position, source = _distinct(gradient._indices()[0])
    values = gradient._values()
    wide = _wide(values)
    rows = values.new_zeros(len(ids), values.shape[1], dtype=wide)
    return RowGradient(ids, rows.index_add_(0, position, values.to(wide)), source)


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``ids`` of ``RowGradient``, the position of each look-up in them, and ``source``."""
    if ids.device.type != "cpu":
        return _padded_distinct(ids)
    distinct, position = torch.unique(ids, return_inverse=True)
    return distinct, position, None


def _padded_distinct(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``_distinct`` with shapes that do not depend on the ids."""
    ordered, order = ids.sort()
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    group = is_first.cumsum(0) - 1
    position = torch.empty_like(ids).scatter_(0, order, group)
    distinct = ordered[:1].repeat(len(ids)).scatter_(0, group, ordered)
    slots = torch.arange(len(ids), device=ids.device)
    return distinct, position, torch.where(slots <= group[-1:], slots, 0)


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Base of the row-wise optimizers.

    It needs the sparse gradients of ``nn.Embedding(sparse=True)``. A bfloat16 table is written
    with stochastic rounding: an update far below the spacing of its numbers, as most are, still
    moves it by the right amount on average, without a float32 copy. The random bits come from
    the global generator of the device.

    Weight decay is decoupled from the gradient, as in AdamW, and applies to the rows of the step
    only: a row is decayed as often as it is visited.

    Args:
        params: tables [V, D], float32 or bfloat16.
        lr: learning rate.
        weight_decay: weight decay of visited rows.
        eps: term added to the root of the second moment.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, eps: float
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "eps": eps})
        self._gradients: dict[Tensor, RowGradient] = {}

    def tables(self) -> list[Tensor]:
        """Return the tables that it moves."""
        return [table for group in self.param_groups for table in group["params"]]

    def gradients(self) -> list[RowGradient]:
        """Return the gradient of each table that has one, duplicates summed once for this step.

        Scaling ``rows`` in place, as clipping does, scales what ``step`` applies.

        Raises:
            ConfigError: a gradient is dense.
        """
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table not in self._gradients:
                    self._gradients[table] = sum_by_row(_check_sparse(table.grad))
        return list(self._gradients.values())

    def set_gradient(self, table: Tensor, gradient: Tensor) -> None:
        """Set the gradient of a table for this step, in place of ``table.grad``.

        Args:
            table: [V, D], one of ``params``.
            gradient: [V, D] of any dtype; autograd would round it to that of the table. A sparse
                one has the rows of the step; with a dense one every row is a row of the step.
        """
        self._gradients[table] = sum_by_row(gradient)

    def gradient_of(self, table: Tensor) -> RowGradient | None:
        """Return the gradient of a table, as ``gradients`` does, or None."""
        self.gradients()
        return self._gradients.get(table)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; a sparse one is never kept as zeros."""
        super().zero_grad(set_to_none=True)
        self._gradients.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the rows that have a gradient.

        Raises:
            ConfigError: a gradient is dense, or a closure is given.
        """
        if closure is not None:
            raise ConfigError("row-wise optimizers take no closure: call backward, then step")
        self.gradients()
        for group in self.param_groups:
            for table in group["params"]:
                if table in self._gradients:
                    self._move(table, self._gradients[table], group)
        self._gradients.clear()

    def _move(self, table: Tensor, gradient: RowGradient, group: dict[str, Any]) -> None:
        if not self.state[table]:
            self.state[table].update(self.new_state(table))
        fused = fused_rows(table, *gradient)
        if fused is not None:
            return self.move_fused(fused, self.state[table], group)
        ids, rows, source = gradient
        if source is not None:
            # Equal ids have equal rows now, and write the same numbers below.
            rows = rows.index_select(0, source)
        direction, scale = self.direction(self.state[table], ids, rows, group["eps"])
        weights = table.index_select(0, ids).to(rows.dtype)
        if group["weight_decay"]:
            weights.mul_(1 - group["lr"] * group["weight_decay"])
        weights.addcmul_(direction, scale[:, None], value=-group["lr"])
        if table.dtype == torch.bfloat16:
            weights = round_stochastically(weights, source)
        table.index_copy_(0, ids, weights)

    @property
    @abstractmethod
    def state_names(self) -> frozenset[str]:
        """Names in the state of a table."""

    @abstractmethod
    def new_state(self, table: Tensor) -> dict[str, Tensor]:
        """Return the initial state of a table."""

    @abstractmethod
    def move_fused(self, fused: FusedRows, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Update state and rows of a table in one kernel.

        Args:
            fused: kernels for the rows of the step.
            state: state of the table; its rows are written.
            group: learning rate, weight decay and eps.
        """

    @abstractmethod
    def direction(
        self, state: dict[str, Tensor], ids: Tensor, rows: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Update the state; return direction [n, D] and scale [n] of the step, without the rate.

        Args:
            state: state of the table; its rows ``ids`` are written.
            ids: [n] int64; where an id is repeated its rows are equal.
            rows: [n, D], the gradients of the rows.
            eps: term added to the root of the second moment.
        """


class RowAdagrad(RowOptimizer):
    """Row-wise Adagrad: w -= lr · g / (sqrt(Σ mean(g²)) + eps), the sum over a row's visits.

    Args:
        params: tables [V, D], float32 or bfloat16.
        lr: learning rate.
        weight_decay: weight decay of visited rows.
        eps: term added to the root of the sum.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, eps=eps)

    @property
    def state_names(self) -> frozenset[str]:
        """Names of ``new_state``."""
        return frozenset({"square_sum"})

    def new_state(self, table: Tensor) -> dict[str, Tensor]:
        """Return ``square_sum`` [V], float32; float64 beside a table of float64."""
        return {"square_sum": _zeros_per_row(table)}

    def move_fused(self, fused: FusedRows, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Update state and rows of a table in one kernel; see ``RowOptimizer``."""
        fused.adagrad(state["square_sum"], **_rates(group))

    def direction(
        self, state: dict[str, Tensor], ids: Tensor, rows: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient and its scale; see ``RowOptimizer``."""
        square_sum = state["square_sum"].index_select(0, ids).add_(_mean_square(rows))
        state["square_sum"].index_copy_(0, ids, square_sum)
        return rows, square_sum.sqrt_().add_(eps).reciprocal_()


class RowAdam(RowOptimizer):
    """Row-wise Adam: the second moment of a row is a mean of mean(g²) over its visits.

    Args:
        params: tables [V, D], float32 or bfloat16.
        lr: learning rate.
        betas: decay of the two moments per visit of a row. If the first is 0 no first moment is
            stored, and the state is 8 bytes per row.
        weight_decay: weight decay of visited rows.
        eps: term added to the root of the second moment.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.0, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, eps=eps)
        self.betas = betas

    @property
    def state_names(self) -> frozenset[str]:
        """Names of ``new_state``."""
        return frozenset({"mean_square", "visits", *(["mean"] if self.betas[0] else [])})

    def new_state(self, table: Tensor) -> dict[str, Tensor]:
        """Return ``mean_square`` [V], ``visits`` [V] int32, and ``mean`` [V, D] if it is used.

        Moments are float32, or float64 beside a table of float64.
        """
        state = {"mean_square": _zeros_per_row(table), "visits": _zeros_per_row(table, torch.int32)}
        if self.betas[0]:
            state["mean"] = torch.zeros_like(table, dtype=_wide(table))
        return state

    def move_fused(self, fused: FusedRows, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Update state and rows of a table in one kernel; see ``RowOptimizer``."""
        fused.adam(
            state["mean_square"],
            state["visits"],
            state.get("mean"),
            betas=self.betas,
            **_rates(group),
        )

    def direction(
        self, state: dict[str, Tensor], ids: Tensor, rows: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient and its scale; see ``RowOptimizer``."""
        first, second = self.betas
        visits = state["visits"].index_select(0, ids).add_(1)
        state["visits"].index_copy_(0, ids, visits)
        count = visits.to(rows.dtype)
        mean_square = state["mean_square"].index_select(0, ids)
        mean_square.lerp_(_mean_square(rows), 1 - second)
        state["mean_square"].index_copy_(0, ids, mean_square)
        scale = (mean_square / (1 - second**count)).sqrt_().add_(eps).reciprocal_()
        if not first:
            return rows, scale
        mean = state["mean"].index_select(0, ids).lerp_(rows, 1 - first)
        state["mean"].index_copy_(0, ids, mean)
        return mean, scale / (1 - first**count)


def round_stochastically(values: Tensor, source: Tensor | None = None) -> Tensor:
    """Round float32 to bfloat16 stochastically: the expected result is the value itself.

    Args:
        values: [n, D], or any shape without ``source``.
        source: [n] int64, the row whose random bits each row uses; None for its own.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    if source is not None:
        noise = noise.index_select(0, source)
    # A bfloat16 is the upper half of a float32; the carry out of the lower half rounds up.
    bits = (values.view(torch.int32) + noise) & -(1 << 16)
    return bits.view(torch.float32).to(torch.bfloat16)


def _rates(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("lr", "weight_decay", "eps")}


def _mean_square(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norm.square_().div_(rows.shape[1])


def _zeros_per_row(table: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.zeros(len(table), dtype=dtype or _wide(table), device=table.device)


def _wide(table: Tensor) -> torch.dtype:
    return torch.promote_types(table.dtype, torch.float32)


def _check_sparse(gradient: Tensor) -> Tensor:
    if not gradient.is_sparse:
        raise ConfigError(
            f"a row-wise optimizer needs sparse gradients, but a table of {len(gradient)} rows "
            "has a gradient for every row: look up its rows by id, or set "
            "training.tables = 'dense'"
        )
    return gradient
