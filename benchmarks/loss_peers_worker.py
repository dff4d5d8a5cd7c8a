"""Softmax losses of candid and of other libraries: the worker of ``loss_peers.py``.

Each environment has one. A line of standard input names a kind of work, a contender and a number
of items; the answer is one line of JSON. ``step`` returns CPU seconds, ``check`` writes loss and
gradients to a file, ``peak`` returns MiB.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS, WIDTH = 1024, 64
CHUNK = 128
SMALL = ((400, 400), (500, 700), (600, 900))
"""Rows and items of the steps before a measurement: a compiler that meets a second size compiles
for all sizes."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The mean loss [] of queries [B, D] and vectors [V, D] for positives [B]."""


def inputs(num_rows: int, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [B, D], vectors [V, D] and positives [B], the same in each environment."""
    generator = torch.Generator().manual_seed(0)
    query, vectors = (
        (0.3 * torch.randn(size, WIDTH, generator=generator)).requires_grad_()
        for size in (num_rows, num_items)
    )
    return query, vectors, torch.randint(num_items, (num_rows,), generator=generator)


def plain(query: Tensor, vectors: Tensor, positives: Tensor) -> Tensor:
    """Return the cross-entropy of dense scores."""
    return functional.cross_entropy(query @ vectors.T, positives)


def plain_bfloat16(query: Tensor, vectors: Tensor, positives: Tensor) -> Tensor:
    """Return the same under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return plain(query, vectors, positives)


def narrow(loss: Loss) -> Loss:
    """Return the loss of inputs that are rounded to bfloat16."""
    return lambda query, vectors, *rest: loss(query.bfloat16(), vectors.bfloat16(), *rest)


def candid_loss(precision: Any) -> Loss:
    """Return candid's loss."""
    from candid.losses import full_softmax

    def loss(query: Tensor, vectors: Tensor, positives: Tensor) -> Tensor:
        return full_softmax(query, vectors, positives, precision=precision).loss.mean()

    return loss


def cut_cross_entropy(impl: str) -> Loss:
    """Return Apple's loss; "cce" are its Triton kernels."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda *args: linear_cross_entropy(*args, impl=impl)


def liger_triton(*, fused: bool) -> Loss:
    """Return the loss of Liger's Triton kernels, which take the scores or compute them."""
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerFusedLinearCrossEntropyLoss

    if fused:
        module = LigerFusedLinearCrossEntropyLoss()
        return lambda query, vectors, positives: module(vectors, query, positives)
    dense = LigerCrossEntropyLoss()
    return lambda query, vectors, positives: dense(query @ vectors.T, positives)


def liger_chunked(chunk: int) -> Loss:
    """Return the cross-entropy of Liger's chunked losses, which are written in torch.

    It is the hard loss of the base class of the distillation losses; the soft loss has weight 0 and
    a teacher of one class, which costs nothing.
    """
    from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase

    class HardLoss(LigerFusedLinearDistillationBase):  # type: ignore[misc]
        @staticmethod
        def distillation_loss_fn(student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
            return teacher.new_zeros(())

        @classmethod
        def forward(
            cls, ctx: Any, query: Tensor, vectors: Tensor, positives: Tensor, one: Tensor
        ) -> Any:
            return super().forward(
                cls,
                ctx,
                query,
                vectors,
                one,
                one[:1],
                positives,
                chunk_size=chunk,
                weight_hard_loss=1.0,
                weight_soft_loss=0.0,
            )

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return *LigerFusedLinearDistillationBase.backward(ctx, grad)[:2], None, None

    return lambda query, *rest: HardLoss.apply(query, *rest, query.new_zeros(len(query), 1))


CONTENDERS: dict[str, tuple[str, Callable[[], Loss]]] = {
    "torch cross_entropy, float32": ("candid", lambda: plain),
    "torch cross_entropy, bfloat16": ("candid", lambda: plain_bfloat16),
    "cut-cross-entropy torch_compile, float32": (
        "peers",
        lambda: cut_cross_entropy("torch_compile"),
    ),
    "cut-cross-entropy torch_compile, bfloat16": (
        "peers",
        lambda: narrow(cut_cross_entropy("torch_compile")),
    ),
    "Liger chunked, float32": ("peers", lambda: liger_chunked(ROWS)),
    f"Liger chunked by {CHUNK}, float32": ("peers", lambda: liger_chunked(CHUNK)),
    f"Liger chunked by {CHUNK}, bfloat16": ("peers", lambda: narrow(liger_chunked(CHUNK))),
    "candid full_softmax, float32": ("candid", lambda: candid_loss("float32")),
    "candid full_softmax, bfloat16": ("candid", lambda: candid_loss("bfloat16")),
    "cut-cross-entropy cce": ("peers", lambda: narrow(cut_cross_entropy("cce"))),
    "Liger cross_entropy": ("peers", lambda: liger_triton(fused=False)),
    "Liger fused_linear_cross_entropy": ("peers", lambda: liger_triton(fused=True)),
}
"""Environment and loss of each contender, in the order of the table."""


def stepper(loss: Loss, num_rows: int, num_items: int) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function that runs a forward and a backward pass."""
    query, vectors, positives = inputs(num_rows, num_items)

    def step() -> tuple[Tensor, ...]:
        query.grad = vectors.grad = None
        value = loss(query, vectors, positives)
        value.backward()
        assert query.grad is not None
        assert vectors.grad is not None
        return value.detach(), query.grad, vectors.grad

    return step


def compilations() -> int:
    """Return how often torch.compile has compiled a frame or gave up in this process."""
    return sum(torch._dynamo.utils.counters["frames"].values())


def seconds_of(step: Callable[[], Any]) -> float:
    """Run twice and return the CPU seconds of the second run."""
    step()
    started = time.process_time()
    step()
    return time.process_time() - started


def peak_mib(step: Callable[[], Any]) -> float:
    """Return the growth of the resident set over two steps, in MiB (Linux only)."""

    def status(key: str) -> int:
        match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert match
        return int(match[1])

    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed before would be reused
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step()
    step()
    return (status("VmHWM") - before) / 1024


def main() -> None:
    """Answer the lines of standard input."""
    torch.set_num_threads(1)
    losses: dict[str, Loss] = {}
    for line in sys.stdin:
        kind, name, size, *rest = json.loads(line)
        try:
            if name not in losses:
                losses[name] = CONTENDERS[name][1]()
                for small in SMALL:
                    stepper(losses[name], *small)()
            step = stepper(losses[name], ROWS, size)
            if kind == "check":
                torch.save(step(), rest[0])
            before = compilations()
            value = {"check": lambda _: 0.0, "step": seconds_of, "peak": peak_mib}[kind](step)
            answer: dict[str, Any] = {"value": value, "compiled": compilations() - before}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip()}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
