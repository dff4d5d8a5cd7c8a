"""Time and memory of one training step: sampling, loss and gradients."""

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

from candid.audit.audit_input import AuditInput
from candid.audit.audit_sampler import AuditRows, AuditSampler
from candid.losses import full_softmax
from candid.losses.estimator import Estimator
from candid.losses.learnt_partition import LearntPartition
from candid.losses.sampled import SampledSoftmax
from candid.losses.sampled_loss import SampledLoss

MEGABYTE = 10**6


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one step on the CPU.

    Attributes:
        ms: median wall time, milliseconds.
        mb: peak memory of the tensors created in the step, 10⁶ bytes. Tensors that exist before
            the step (item table, sampler) are not counted.
    """

    ms: float
    mb: float


def sampled_cost(
    data: AuditInput,
    sampler: AuditSampler,
    estimator: Estimator,
    num_rows: int,
    *,
    seconds: float = 0.05,
) -> Cost:
    """Measure sampling, scores, loss, and the gradients of the queries and the used vectors.

    The item vectors are taken from the table, and their gradients stay one row per vector. The
    cost of the table's dense gradient or sparse update belongs to the training loop and is the
    same for all sampled losses.

    Args:
        data: the audited model; its rows are repeated to fill a batch.
        sampler: source of the candidates.
        estimator: its loss.
        num_rows: B.
        seconds: duration of the measurement; the step runs at least three times.
    """
    rows, loss = _batch_of(data, num_rows), loss_of(estimator)

    def step() -> None:
        query = rows.query.requires_grad_()

        def vectors(ids: Tensor) -> Tensor:
            return data.item_vectors[ids].requires_grad_()

        candidates = sampler.sample(AuditRows(query.detach(), rows.positive_ids, rows.user_ids))
        loss(query, vectors, rows.positive_ids, candidates).loss.mean().backward()
        if loss.state is not None:
            loss.state.step()
        query.grad = None

    return _measure(step, seconds)


def loss_of(estimator: Estimator) -> SampledLoss:
    """Return the training loss that makes an estimate, in float32."""
    if estimator.cap is not None:
        return LearntPartition.Config(cap=estimator.cap).build(0)
    return SampledSoftmax(
        correction=estimator.correction,
        jackknife=estimator.jackknife,
        precision="float32",
        accidental_hits=estimator.accidental_hits,
    )


def full_softmax_cost(data: AuditInput, num_rows: int, *, seconds: float = 0.05) -> Cost:
    """Measure the blockwise full softmax, with the gradient of the whole item table."""
    rows = _batch_of(data, num_rows)

    def step() -> None:
        query = rows.query.requires_grad_()
        items = data.item_vectors.detach().requires_grad_()
        full_softmax(query, items, rows.positive_ids).loss.mean().backward()
        query.grad = None

    return _measure(step, seconds)


class PeakMemory(TorchDispatchMode):
    """Recorder of the memory of every tensor that is created while the context is active.

    Attributes:
        peak: largest number of bytes in use at one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record the storages that it creates."""
        before = {
            part.untyped_storage()._cdata for part in tree_iter(args) if isinstance(part, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for part in tree_iter(out):
            if isinstance(part, Tensor) and part.untyped_storage()._cdata not in before:
                self._record(part.untyped_storage())
        return out

    def _record(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._now += self._alive[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def _batch_of(data: AuditInput, num_rows: int) -> AuditRows:
    return AuditRows.of(data, torch.arange(num_rows) % len(data.query))


def _measure(step: Callable[[], None], seconds: float) -> Cost:
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
