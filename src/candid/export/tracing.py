"""Tracing of graphs by ``torch.export``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from candid.export.graphs import Graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def trace(graph: Graph) -> ExportedProgram:
    """Trace a graph with free sizes of the batch, of histories and of bags."""
    dims: dict[str, Any] = {}

    def dim_of(axis: str | int, max_length: int | None) -> Any:
        if isinstance(axis, int):
            return torch.export.Dim.STATIC
        if axis not in dims:
            bound = {} if max_length is None else {"max": max_length}
            dims[axis] = torch.export.Dim(f"axis_{len(dims)}", min=1, **bound)
        return dims[axis]

    shapes = {
        padded_input.name: {
            number: dim_of(axis, padded_input.max_length if number else None)
            for number, axis in enumerate(padded_input.axes)
        }
        for padded_input in graph.inputs
    }
    with quiet_torch():
        return torch.export.export(
            graph.module, (graph.example(3, 5),), dynamic_shapes={"inputs": shapes}
        )


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Suppress warnings of torch about its own internals: a user cannot act on them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
