"""What one step of an objective costs: time and memory of draw, loss and gradients."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from candid.audit.estimators import Variant
from candid.audit.sampler import AuditSampler, Rows
from candid.audit.subject import Subject
from candid.losses import full_softmax, sampled_softmax

MEGABYTE = 10**6


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one step, on the CPU.

    Attributes:
        ms: median wall time, milliseconds.
        mb: most memory of tensors made in the step that live at one time, 10⁶ bytes. What was
            there before (item table, sampler) is not counted.
    """

    ms: float
    mb: float


def sampled_cost(
    subject: Subject, sampler: AuditSampler, variant: Variant, num_rows: int, seconds: float = 0.05
) -> Cost:
    """Draw candidates, score them, and form the gradients of queries and of the vectors used.

    The item vectors are taken out of the table, and their gradients are left as the rows that
    they are: what a table's dense gradient or a sparse update of it costs is the training
    loop's business, and the same for all sampled losses.

    Args:
        subject: what is audited; its rows are repeated to fill a batch.
        sampler: where candidates come from.
        variant: the correction.
        num_rows: B.
        seconds: how long to repeat the step for, three times at least.
    """
    rows = _batch_of(subject, num_rows)

    def step() -> None:
        query = rows.query.requires_grad_()

        def vectors(ids: Tensor) -> Tensor:
            return subject.item_vectors[ids].requires_grad_()

        out = sampled_softmax(
            query,
            vectors,
            rows.positive_ids,
            sampler.sample(Rows(query.detach(), rows.positive_ids, rows.user_ids)),
            correction=variant.correction,
            jackknife=variant.jackknife,
        )
        out.loss.mean().backward()
        query.grad = None

    return _cost_of(step, seconds)


def exact_cost(subject: Subject, num_rows: int, seconds: float = 0.05) -> Cost:
    """The same for the blockwise full softmax; the gradient of the whole table is part of it."""
    rows = _batch_of(subject, num_rows)

    def step() -> None:
        query = rows.query.requires_grad_()
        items = subject.item_vectors.detach().requires_grad_()
        full_softmax(query, items, rows.positive_ids).loss.mean().backward()
        query.grad = None

    return _cost_of(step, seconds)


class PeakMemory(TorchDispatchMode):
    """Follows the memory of every tensor that is made while it is entered.

    Attributes:
        peak: most bytes alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and take note of the storages that it made."""
        before = {
            part.untyped_storage()._cdata for part in tree_iter(args) if isinstance(part, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for part in tree_iter(out):
            if isinstance(part, Tensor) and part.untyped_storage()._cdata not in before:
                self._watch(part.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._now += self._alive[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def _batch_of(subject: Subject, num_rows: int) -> Rows:
    places = torch.arange(num_rows) % len(subject.query)
    return Rows.of(subject, places)


def _cost_of(step: Callable[[], None], seconds: float) -> Cost:
    step()
    with PeakMemory() as memory:
        step()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    return Cost(statistics.median(times) * 1e3, memory.peak / MEGABYTE)
