"""Graphs as files: programs of ``torch.export``, and ONNX made from them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.export.context import ExportContext
from candid.export.graphs import Graph, check_agreement
from candid.export.input_files import write_inputs
from candid.export.tracing import quiet_torch
from candid.towers import NamedTensors, PaddedInput

OPSET = 20
"""ONNX opset: the first with an operator for GELU; ONNX Runtime supports it since version 1.17."""
OUTPUT = "vectors"
CHECKS = ((1, 1), (2, 2), (33, 7))
"""(Batch, length) of the inputs that check a file: the smallest sizes, and sizes larger than the
traced ones."""


def write_torch(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write a ``.pt2`` for each graph, load it again and check its vectors."""
    graphs = {}
    for graph in context.graphs:
        path = folder / f"{graph.name}.pt2"
        with quiet_torch():
            torch.export.save(
                context.programs[graph.name], path, extra_files=dict(context.text_metadata)
            )
        graphs[graph.name] = _check_file(graph, path.name, _load_torch(path))
    write_inputs(context, folder.parent / "inputs")
    return {"graphs": graphs}


def write_onnx(context: ExportContext, folder: Path) -> dict[str, Any]:
    """Write an ``.onnx`` for each graph and check its vectors in ONNX Runtime.

    Raises:
        ConfigError: a package of ``candid-retrieval[export]`` is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the format onnx needs the package {package}, which is not installed; "
                "run pip install 'candid-retrieval[export]'"
            )
    graphs = {}
    for graph in context.graphs:
        path = folder / f"{graph.name}.onnx"
        with quiet_torch():
            program = torch.onnx.export(
                context.programs[graph.name],
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[padded_input.name for padded_input in graph.inputs],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            _name_axes(program.model, graph)
            program.model.metadata_props.update(context.text_metadata)
            program.save(path)
        graphs[graph.name] = _check_file(graph, path.name, _load_onnx(path))
    write_inputs(context, folder.parent / "inputs")
    return {"opset": OPSET, "graphs": graphs}


def _check_file(graph: Graph, file: str, run: Callable[[NamedTensors], Tensor]) -> dict[str, Any]:
    """Return the description of a file, with the largest difference from the model's vectors.

    Raises:
        ArtifactError: the difference is too large.
    """
    largest = 0.0
    for seed, (batch, length) in enumerate(CHECKS):
        tensors = graph.example(batch, length, seed + 1)
        with torch.no_grad():
            expected = graph.reference(tensors)
            largest = max(largest, check_agreement(run(tensors), expected, file))
    return {
        "file": file,
        "inputs": [_describe_input(padded_input) for padded_input in graph.inputs],
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", graph.width]},
        "largest_difference": largest,
    }


def _describe_input(padded_input: PaddedInput) -> dict[str, Any]:
    """Return name, type and shape as in ``export.json``."""
    description: dict[str, Any] = {
        "name": padded_input.name,
        "kind": padded_input.kind,
        "dtype": str(padded_input.dtype).removeprefix("torch."),
        "shape": list(padded_input.axes),
    }
    if padded_input.size:
        description["below"] = padded_input.size
    if padded_input.max_length is not None:
        description["longest"] = padded_input.max_length
    if padded_input.feature is not None:
        description |= {"side": padded_input.side, "feature": padded_input.feature}
    return description


def _load_torch(path: Path) -> Callable[[NamedTensors], Tensor]:
    with quiet_torch():
        module = torch.export.load(path).module()

    def run(tensors: NamedTensors) -> Tensor:
        vectors: Tensor = module(dict(tensors))
        return vectors

    return run


def _load_onnx(path: Path) -> Callable[[NamedTensors], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(tensors: NamedTensors) -> Tensor:
        arrays: Mapping[str, Any] = {name: value.numpy() for name, value in tensors.items()}
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])

    return run


def _name_axes(model: Any, graph: Graph) -> None:
    """Give free axes the names of ``PaddedInput.axes`` instead of s17."""
    names = {}
    for value, padded_input in zip(model.graph.inputs, graph.inputs, strict=True):
        for dim, axis in zip(value.shape, padded_input.axes, strict=True):
            if isinstance(axis, str):
                names[str(dim)] = axis
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [value for node in model.graph for value in node.outputs]
    for value in values:
        for number, dim in enumerate(value.shape or ()):
            if str(dim) in names:
                value.shape[number] = names[str(dim)]
