"""Graphs as files: programs of ``torch.export``, and ONNX made from them."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.export.graphs import Graph, check_agrees
from candid.export.input_files import write_inputs
from candid.export.inputs import Named

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from candid.export.material import Material

OPSET = 20
"""Of ONNX: the first with an operator for GELU; ONNX Runtime reads it from 1.17 on."""
OUTPUT = "vectors"
CHECKS = ((1, 1), (2, 2), (33, 7))
"""Batch and length of the inputs that a file is checked with: the least, and larger than the
ones that were traced."""


def write_torch(material: Material, folder: Path) -> dict[str, Any]:
    """Write a ``.pt2`` for each graph, and check what it gives when it is read again."""
    graphs = {}
    for graph in material.graphs:
        path = folder / f"{graph.name}.pt2"
        with _without_remarks():
            torch.export.save(
                material.programs[graph.name], path, extra_files=dict(material.metadata)
            )
            program = torch.export.load(path).module()
        graphs[graph.name] = _checked(graph, path.name, lambda named, p=program: p(dict(named)))
    write_inputs(material, folder.parent / "inputs")
    return {"graphs": graphs}


def write_onnx(material: Material, folder: Path) -> dict[str, Any]:
    """Write an ``.onnx`` for each graph, and check it in ONNX Runtime.

    Raises:
        ConfigError: a package of ``candid[export]`` is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the format onnx needs the package {package}: install it with pip install "
                "candid[export]"
            )
    graphs = {}
    for graph in material.graphs:
        path = folder / f"{graph.name}.onnx"
        with _without_remarks():
            found = torch.onnx.export(
                material.programs[graph.name],
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[one.name for one in graph.inputs],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert found is not None
            _name_axes(found.model, graph)
            found.model.metadata_props.update(material.metadata)
            found.save(path)
        graphs[graph.name] = _checked(graph, path.name, _runtime(path))
    write_inputs(material, folder.parent / "inputs")
    return {"opset": OPSET, "graphs": graphs}


def traced(graph: Graph) -> ExportedProgram:
    """Trace a graph, free in the sizes of the batch, of histories and of bags."""
    axes: dict[str, Any] = {}

    def axis(one: str | int, longest: int | None) -> Any:
        if isinstance(one, int):
            return torch.export.Dim.STATIC
        if one not in axes:
            most = {} if longest is None else {"max": longest}
            axes[one] = torch.export.Dim(f"axis_{len(axes)}", min=1, **most)
        return axes[one]

    shapes = {
        one.name: {
            place: axis(name, one.longest if place else None) for place, name in enumerate(one.axes)
        }
        for one in graph.inputs
    }
    with _without_remarks():
        return torch.export.export(
            graph.module, (graph.example(3, 5),), dynamic_shapes={"inputs": shapes}
        )


def _checked(graph: Graph, file: str, run: Any) -> dict[str, Any]:
    """What a file is, and how far its vectors are from the model's own.

    Raises:
        ArtifactError: too far.
    """
    largest = 0.0
    for seed, (batch, length) in enumerate(CHECKS):
        named = graph.example(batch, length, seed + 1)
        with torch.no_grad():
            largest = max(largest, check_agrees(run(named), graph.reference(named), file))
    return {
        "file": file,
        "inputs": [one.to_json() for one in graph.inputs],
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", graph.width]},
        "largest_difference": largest,
    }


def _runtime(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(named: Named) -> Tensor:
        arrays: Mapping[str, Any] = {name: value.numpy() for name, value in named.items()}
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])

    return run


def _name_axes(model: Any, graph: Graph) -> None:
    """Call free axes what ``inputs.json`` calls them, not s17."""
    names = {}
    for value, one in zip(model.graph.inputs, graph.inputs, strict=True):
        for dim, axis in zip(value.shape, one.axes, strict=True):
            if isinstance(axis, str):
                names[str(dim)] = axis
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [value for node in model.graph for value in node.outputs]
    for value in values:
        for place, dim in enumerate(value.shape or ()):
            if str(dim) in names:
                value.shape[place] = names[str(dim)]


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep back what torch says of its own insides: nobody who exports can act on it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
