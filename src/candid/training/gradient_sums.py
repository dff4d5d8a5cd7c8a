"""Sums of gradients over processes: one message for all dense parameters, rows of tables apart."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from candid.distributed import Group
from candid.towers import row_tables, sharded_tables

NONE: Final = -1
DENSE: Final = -2
"""Stand for the number of rows of a gradient that is missing, or is not sparse."""


class GradientSums:
    """Adds the gradients of a model over processes, so that all of them take the same step.

    Each process has the gradient of the loss of its rows, which is part of a sum over the batch;
    nothing is averaged. A parameter without a gradient on every process stays without one. The rows
    of sharded tables are left to ``ModelOptimizer``, which sends their gradients to the owners.

    Args:
        model: the same weights on every process.
        group: of the processes.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        self._model = model
        self._group = group

    @torch.no_grad()
    def add(self, value: Tensor) -> Tensor:
        """Replace every gradient by its sum over processes; return the sum of ``value`` [].

        The value travels with the gradients, without a message of its own.
        """
        if self._group.is_single:
            return value
        tables = {table.weight for _, table in row_tables(self._model) if table.sparse}
        sharded = sharded_tables(self._model)
        parameters = [
            p for n, p in self._model.named_parameters() if p.requires_grad and n not in sharded
        ]
        dense = self._add_tables([p for p in parameters if p in tables])
        dense += [p for p in parameters if p not in tables]
        total = value.detach().clone()
        by_dtype: dict[torch.dtype, list[Tensor]] = {total.dtype: []}
        for parameter in dense:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for dtype, same in by_dtype.items():
            added = self._add_dense(same, total[None].to(dtype))
            if dtype == value.dtype:
                total = added
        return total

    def _add_dense(self, parameters: list[Tensor], value: Tensor) -> Tensor:
        """Add the gradients of parameters of one dtype, and one value [1]; return the value []."""
        has_gradient = [p.grad is not None for p in parameters]
        flags = torch.tensor(has_gradient, dtype=value.dtype, device=value.device)
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
        flat = self._group.sum_(torch.cat([*parts, flags, value]), "sum of gradients")
        *sums, flags, value = flat.split([*(p.numel() for p in parameters), len(flags), 1])
        # Read only where a gradient is missing here: reading forces a synchronisation on CUDA.
        is_needed = has_gradient if all(has_gradient) else (flags > 0).tolist()
        for parameter, gradient, needed in zip(parameters, sums, is_needed, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient.view_as(parameter))
            elif needed:
                parameter.grad = gradient.view_as(parameter).clone()
        return value[0]

    def _add_tables(self, tables: list[Tensor]) -> list[Tensor]:
        """Add sparse gradients; return the tables whose gradient is dense on some process."""
        if not tables:
            return []
        gradients = [self._sparse(table) for table in tables]
        kinds = self._group.gather_counts([kind for kind, _ in gradients], "rows of tables")
        dense = []
        for number, (table, (_, gradient)) in enumerate(zip(tables, gradients, strict=True)):
            counts = [row[number] for row in kinds]
            if DENSE in counts:
                table.grad = None if table.grad is None else _dense(table.grad)
                dense.append(table)
            elif max(counts) > NONE:
                table.grad = self._gathered(table, gradient, [max(count, 0) for count in counts])
        return dense

    def _sparse(self, table: Tensor) -> tuple[int, Tensor | None]:
        """Return the number of rows of a gradient, or its kind, and the gradient if it is sparse.

        Repeated rows are added first, except in bfloat16, which would round their sum.
        """
        gradient = table.grad
        if gradient is None:
            return NONE, None
        if not gradient.is_sparse:
            return DENSE, None
        if gradient.dtype != torch.bfloat16:
            gradient = gradient.coalesce()
        return len(gradient._values()), gradient

    def _gathered(self, table: Tensor, gradient: Tensor | None, counts: list[int]) -> Tensor:
        if gradient is None:
            ids = torch.empty(0, dtype=torch.int64, device=table.device)
            rows = table.new_empty(0, table.shape[1])
        else:
            ids, rows = gradient._indices()[0], gradient._values()
        return torch.sparse_coo_tensor(
            self._group.gather_rows(ids, counts, "ids of table rows")[None],
            self._group.gather_rows(rows, counts, "gradients of table rows"),
            table.shape,
            check_invariants=False,
        )


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
