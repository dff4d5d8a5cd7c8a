"""The graphs of a model: their inputs, their modules, and the vectors of the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.batches import UNKNOWN_TIME
from candid.errors import ArtifactError
from candid.export.export_input import ExportInput
from candid.export.packing import pack_features, pack_queries
from candid.features import Values
from candid.towers import (
    PADDING,
    NamedTensors,
    PaddedContext,
    PaddedInput,
    PaddedLookup,
    PaddedModule,
    RetrievalModel,
)

TOLERANCE = 1e-5
"""Largest difference between a vector of a graph and the model's own, relative to the largest
number in them where that is above 1: sums in another order differ by the rounding of float32."""


class GraphModule(nn.Module):
    """A padded module followed by the scaling of the model: named tensors to vectors.

    Args:
        padded: computes the vectors before scaling.
        model: its similarity and temperature are applied.
        is_query: apply the temperature, as the model does for queries.
    """

    scale: Tensor

    def __init__(self, padded: PaddedModule, model: RetrievalModel, *, is_query: bool) -> None:
        super().__init__()
        self.padded = padded
        self.is_cosine = model.similarity == "cosine"
        scale = torch.exp(-model.log_temperature.detach()) if is_query else torch.ones(())
        self.register_buffer("scale", scale.float())

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Encode B rows: [B, D] float32."""
        vectors: Tensor = self.padded(inputs).float()
        if self.is_cosine:
            vectors = F.normalize(vectors, dim=-1)
        return vectors * self.scale


@dataclass(frozen=True)
class Graph:
    """One function of a model.

    Attributes:
        name: "query", "query_by_features", "item" or "item_by_features".
        module: takes a dict of tensors by input name, returns [B, D].
        inputs: sorted by name.
        reference: the model's own computation on the same inputs.
        width: D.
        answers_empty: whether an empty history can be encoded (True also without histories).
    """

    name: str
    module: GraphModule
    inputs: tuple[PaddedInput, ...]
    reference: Callable[[NamedTensors], Tensor]
    width: int
    answers_empty: bool = True

    def example(self, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        """Return random inputs of ``batch`` rows by name; see ``random_inputs``."""
        return random_inputs(self.inputs, batch, length, seed, with_empty=self.answers_empty)


def build_graphs(export_input: ExportInput) -> list[Graph]:
    """Return every graph of a model.

    ``query`` encodes users of the dataset by id. ``query_by_features`` encodes other users by
    their features, if the model reads features of users. ``item`` takes item ids.
    ``item_by_features`` takes item features, if the model reads them.

    Raises:
        ConfigError: a tower has no padded form (``to_padded``).
    """
    model = export_input.model
    if model.device.type != "cpu":
        model = copy.deepcopy(model).to("cpu")
    features = {side: each.table.values for side, each in export_input.features.items()}
    length = export_input.max_length
    graphs = [_query_graph("query", model, PaddedContext(length, "user_id", features))]
    if model.reads_user_features and not model.needs_user:
        context = PaddedContext(length, "features", features)
        graphs.append(_query_graph("query_by_features", model, context))
    graphs.append(_item_graph(model))
    if model.reads_item_features:
        context = PaddedContext(length, "user_id", features)
        graphs.append(_item_features_graph(model, context))
    return graphs


def check_agreement(vectors: Tensor, expected: Tensor, name: str) -> float:
    """Compare vectors with the model's own; return the largest difference.

    Args:
        vectors: [B, D], of the graph.
        expected: [B, D], of the model.
        name: of the graph or its file, for the error message.

    Raises:
        ArtifactError: they differ by more than ``TOLERANCE``.
    """
    largest = expected.abs().max().clamp(min=1.0).item()
    difference = (vectors - expected).abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise ArtifactError(
            f"{name} gives vectors that differ by {difference:.1e} from the model's own, more "
            f"than {TOLERANCE * largest:.0e}: this model cannot be exported to this format; "
            "please report it"
        )
    return difference


def random_inputs(
    inputs: Iterable[PaddedInput],
    batch: int,
    length: int,
    seed: int = 0,
    *,
    with_empty: bool = False,
) -> dict[str, Tensor]:
    """Return random inputs of B rows; histories and bags have every length.

    Args:
        inputs: of the graph.
        batch: B.
        length: size of the second axis of histories and bags, where it is free.
        seed: of the random numbers.
        with_empty: whether histories may be empty.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for padded_input in inputs:
        name, size = padded_input.name, padded_input.size
        columns = min(length, padded_input.max_length or length)
        shape = (batch, columns if padded_input.width is None else padded_input.width)
        if padded_input.kind == "numbers":
            tensors[name] = torch.randn(shape, generator=generator)
        elif padded_input.kind == "times":
            tensors[name] = _random_times(shape, generator)
        elif padded_input.kind == "time":
            # After about half of the histories.
            tensors[name] = _random_times((batch, columns + 1), generator)[:, -1]
        elif padded_input.kind == "id":
            tensors[name] = torch.randint(0, size, (batch,), generator=generator)
        else:
            tensors[name] = torch.randint(0, size, shape, generator=generator)
        if padded_input.kind == "bag":
            lengths = torch.randint(0, columns + 1, (batch,), generator=generator)
            tensors[name] = _pad_after(tensors[name], lengths)
    if "history" in tensors:
        columns = tensors["history"].shape[1]
        shortest = 0 if with_empty else 1
        lengths = torch.randint(shortest, columns + 1, (batch,), generator=generator)
        tensors["history"] = _pad_after(tensors["history"], lengths)
    return tensors


def _random_times(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return increasing times with gaps from a second to years; a tenth of them unknown."""
    gaps = 1e6 * 2 ** (25 * torch.rand(shape, generator=generator, dtype=torch.float64))
    times = 10**15 + gaps.long().cumsum(1)
    return times.masked_fill(torch.rand(shape, generator=generator) < 0.1, UNKNOWN_TIME)


def _pad_after(values: Tensor, lengths: Tensor) -> Tensor:
    is_padding = torch.arange(values.shape[1]) >= lengths[:, None]
    return values.masked_fill(is_padding, PADDING)


def _query_graph(
    name: Literal["query", "query_by_features"], model: RetrievalModel, context: PaddedContext
) -> Graph:
    def reference(tensors: NamedTensors) -> Tensor:
        with torch.no_grad():
            return model.encode_queries(pack_queries(tensors, context.features)).float()

    padded = model.query_tower.to_padded(context)
    return Graph(
        name,
        GraphModule(padded, model, is_query=True).eval(),
        tuple(sorted(padded.inputs, key=lambda padded_input: padded_input.name)),
        reference,
        model.item_tower.dim,
        answers_empty=not model.needs_history,
    )


def _item_graph(model: RetrievalModel) -> Graph:
    with torch.no_grad():
        vectors = model.item_tower.catalog()
        unknown = vectors.new_full((vectors.shape[1],), torch.nan)
    padded = PaddedLookup("item_id", vectors, unknown)

    def reference(tensors: NamedTensors) -> Tensor:
        with torch.no_grad():
            return model.encode_items(tensors["item_id"]).float()

    module = GraphModule(padded, model, is_query=False).eval()
    return Graph("item", module, padded.inputs, reference, model.item_tower.dim)


def _item_features_graph(model: RetrievalModel, context: PaddedContext) -> Graph:
    forms: Mapping[str, Values] = context.features["item"]

    def reference(tensors: NamedTensors) -> Tensor:
        values = pack_features("item", forms, tensors)
        with torch.no_grad():
            return model.encode_item_values(values, tensors.get("item_id")).float()

    padded = model.item_tower.to_padded(context)
    return Graph(
        "item_by_features",
        GraphModule(padded, model, is_query=False).eval(),
        tuple(sorted(padded.inputs, key=lambda padded_input: padded_input.name)),
        reference,
        model.item_tower.dim,
    )
