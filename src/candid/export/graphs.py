"""The graphs of a model: what each answers, what it reads, and what the model itself says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.batches import History, Queries
from candid.errors import ArtifactError
from candid.export.inputs import PADDING, Input, Named, example, packed
from candid.export.padded import Asked, FeatureValues, Forms, Part, Rows, padded_query
from candid.export.parts import ExportParts
from candid.towers import RetrievalModel
from candid.towers.feature_tower import ItemFeatures

TOLERANCE = 1e-5
"""How far a vector of a graph may be from the model's own, by the largest number in them where
that is above 1: sums in another order differ by float32's rounding."""


class GraphModule(nn.Module):
    """A part with the model's scaling: named tensors to vectors.

    Args:
        part: what it computes.
        model: whose similarity it has.
        is_query: whether the temperature is folded in, as into queries.
    """

    scale: Tensor

    def __init__(self, part: Part, model: RetrievalModel, *, is_query: bool) -> None:
        super().__init__()
        self.part = part
        self.is_cosine = model.similarity == "cosine"
        scale = torch.exp(-model.log_temperature.detach()) if is_query else torch.ones(())
        self.register_buffer("scale", scale.float())

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Encode B rows: [B, D] float32."""
        vectors: Tensor = self.part(inputs).float()
        if self.is_cosine:
            vectors = F.normalize(vectors, dim=-1)
        return vectors * self.scale


@dataclass(frozen=True)
class Graph:
    """One function of a model.

    Attributes:
        name: "query", "query_by_features", "item" or "item_by_features".
        module: takes a dict of tensors by input name, gives [B, D].
        inputs: by name, sorted.
        reference: what the model itself makes of the same inputs.
        width: D.
        answers_empty: whether an empty history has an answer (or there are no histories).
    """

    name: str
    module: GraphModule
    inputs: tuple[Input, ...]
    reference: Callable[[Named], Tensor]
    width: int
    answers_empty: bool = True

    def example(self, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs; see ``inputs.example``."""
        return example(self.inputs, batch, length, seed, empty=self.answers_empty)


def graphs_of(parts: ExportParts) -> list[Graph]:
    """Every graph that a model has.

    ``query`` is asked by a user of the dataset, ``query_by_features`` by somebody else, where
    the model reads features of users; ``item`` takes item ids, ``item_by_features`` what is
    known of items, where it reads that.

    Raises:
        ConfigError: a tower that has no graph.
    """
    model = parts.model
    if model.device.type != "cpu":
        model = copy.deepcopy(model).to("cpu")
    forms = {side: known.table.values for side, known in parts.sides.items()}
    graphs = [_query(parts, model, forms, "user_id")]
    if model.reads_user_features and not model.needs_user:
        graphs.append(_query(parts, model, forms, "features"))
    graphs.append(_item(model))
    if isinstance(model.item_tower, ItemFeatures):
        graphs.append(_item_by_features(model, model.item_tower, forms))
    return graphs


def check_agrees(found: Tensor, expected: Tensor, what: str) -> float:
    """Compare vectors with the model's own; the largest difference.

    Raises:
        ArtifactError: they differ by more than ``TOLERANCE``.
    """
    largest = expected.abs().max().clamp(min=1.0).item()
    difference = (found - expected).abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise ArtifactError(
            f"{what} gives vectors that differ by {difference:.1e} from the model's own, more than "
            f"{TOLERANCE * largest:.0e}: this model cannot be exported so; please report it"
        )
    return difference


def _query(parts: ExportParts, model: RetrievalModel, forms: Forms, asked: Asked) -> Graph:
    part = padded_query(
        model.query_tower, asked, forms, parts.max_length, model.item_tower.num_items
    )

    def reference(named: Named) -> Tensor:
        with torch.no_grad():
            return model.encode_queries(packed_queries(named, forms)).float()

    return Graph(
        "query" if asked == "user_id" else "query_by_features",
        GraphModule(part, model, is_query=True).eval(),
        tuple(sorted(part.inputs, key=lambda one: one.name)),
        reference,
        model.item_tower.dim,
        answers_empty=not model.needs_history,
    )


def _item(model: RetrievalModel) -> Graph:
    with torch.no_grad():
        vectors = model.item_tower.catalog()
        unknown = vectors.new_full((vectors.shape[1],), torch.nan)
    part = Rows("item_id", vectors, unknown)

    def reference(named: Named) -> Tensor:
        with torch.no_grad():
            return model.encode_items(named["item_id"]).float()

    module = GraphModule(part, model, is_query=False).eval()
    return Graph("item", module, part.inputs, reference, model.item_tower.dim)


def _item_by_features(model: RetrievalModel, tower: ItemFeatures, forms: Forms) -> Graph:
    part = FeatureValues(tower.encoder, "item", forms["item"])

    def reference(named: Named) -> Tensor:
        values = {name: packed(form, named[f"item.{name}"]) for name, form in forms["item"].items()}
        with torch.no_grad():
            return model.encode_item_values(values, named.get("item_id")).float()

    return Graph(
        "item_by_features",
        GraphModule(part, model, is_query=False).eval(),
        tuple(sorted(part.inputs, key=lambda one: one.name)),
        reference,
        model.item_tower.dim,
    )


def packed_queries(named: Named, forms: Forms) -> Queries:
    """The inputs of a query graph as the towers read them."""
    batch = len(next(iter(named.values())))
    nobody = torch.full((batch,), PADDING)
    values = {
        side: {
            name: packed(form, named[f"{side}.{name}"])
            for name, form in forms.get(side, {}).items()
            if f"{side}.{name}" in named
        }
        for side in ("user", "context")
    }
    return Queries(
        user_ids=named.get("user_id", nobody),
        history=_packed_history(named),
        context=values["context"] or None,
        user_features=values["user"] or None,
    )


def _packed_history(named: Named) -> History | None:
    if "history" not in named:
        return None
    is_token = named["history"] != PADDING
    lengths = is_token.sum(1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return History(
        item_ids=named["history"][is_token],
        offsets=offsets,
        query_positions=torch.where(lengths > 0, offsets[1:] - 1, PADDING),
        event_types=named["event_types"][is_token] if "event_types" in named else None,
    )
