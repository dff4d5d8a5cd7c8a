"""Padded modules: towers as computations on plain tensors, which can be exported as graphs.

Towers read packed records whose inner shapes depend on the data. A graph has fixed operations, so
histories and bags are padded to one length, and the vectors of ids that a tower would compute are
computed beforehand and looked up. The weights and the mathematics are those of the tower.

A tower returns its padded module from ``to_padded``; ``candid.export`` traces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from candid.errors import ConfigError
from candid.features import Bags, Codes, Numbers, Values

PADDING: int = -1
"""Fills histories and bags at their ends; also the id of an unknown user or item."""

NamedTensors = Mapping[str, Tensor]
"""Tensors by the names of the inputs."""

InputKind = Literal["id", "ids", "event_types", "times", "time", "codes", "bag", "numbers"]


@dataclass(frozen=True, slots=True)
class PaddedInput:
    """One input of a padded module; its first axis is the batch.

    Attributes:
        name: "user_id", "item_id", "history", "event_types", "times", "query_time", or side and
            feature: "item.genres".
        kind: "id" and "time" [B]; "ids", "event_types" and "times" [B, L]; "codes" [B, K]; "bag"
            [B, M], M free; "numbers" [B, M], M fixed.
        size: values are below it (of ids, event types, codes and bags); 0 for numbers and
            times.
        width: size of the second axis; None where it is free or absent.
        side: "item", "user" or "context" for a feature, else None.
        feature: name of the feature, or None.
        max_length: largest size of a free second axis, or None.
    """

    name: str
    kind: InputKind
    size: int
    width: int | None = None
    side: str | None = None
    feature: str | None = None
    max_length: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """float32 for numbers, int64 for all other kinds."""
        return torch.float32 if self.kind == "numbers" else torch.int64

    @property
    def axes(self) -> tuple[str | int, ...]:
        """Names of the free axes, sizes of the fixed ones."""
        if self.kind in ("id", "time"):
            return ("batch",)
        if self.kind in ("ids", "event_types", "times"):
            return ("batch", "length" if self.max_length != 1 else 1)
        return ("batch", f"{self.name}.length" if self.width is None else self.width)


def feature_input(side: str, feature: str, form: Values) -> PaddedInput:
    """Return the input that carries a feature.

    Args:
        side: "item", "user" or "context".
        feature: its name.
        form: values of the feature; only their kind, vocabulary and width are read.
    """
    name = f"{side}.{feature}"
    match form:
        case Codes(ids=ids):
            return PaddedInput(name, "codes", form.num_codes, ids.shape[1], side, feature)
        case Bags():
            return PaddedInput(name, "bag", form.num_codes, None, side, feature)
        case Numbers(values=values):
            return PaddedInput(name, "numbers", 0, values.shape[1], side, feature)


def merge_inputs(groups: Iterable[tuple[PaddedInput, ...]]) -> tuple[PaddedInput, ...]:
    """Return the inputs of several modules of one graph, each once, sorted by name.

    Raises:
        ConfigError: two different inputs have the same name.
    """
    by_name: dict[str, PaddedInput] = {}
    for group in groups:
        for padded_input in group:
            if by_name.setdefault(padded_input.name, padded_input) != padded_input:
                raise ConfigError(
                    f"two inputs of the model have the name {padded_input.name!r}; rename that "
                    "feature in the recipe and train again"
                )
    return tuple(by_name[name] for name in sorted(by_name))


@dataclass(frozen=True, slots=True)
class PaddedContext:
    """The properties of the inputs that a tower needs to build its padded module.

    Attributes:
        max_length: L, the longest history.
        users_by: input that identifies the user of a query: the id of a user of the dataset
            ("user_id") or user features ("features").
        features: side -> feature -> values; only the form of the values is read.
    """

    max_length: int
    users_by: Literal["user_id", "features"] = "user_id"
    features: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)


class PaddedModule(nn.Module):
    """Base of padded modules: ``forward`` takes tensors by input name and returns [B, D].

    Attributes:
        inputs: the inputs that it reads.
    """

    inputs: tuple[PaddedInput, ...]


class PaddedLookup(PaddedModule):
    """A table of vectors by id.

    Args:
        name: of the input.
        vectors: [n, D].
        unknown: [D], the vector of id -1; NaN if an unknown id cannot be encoded.
    """

    table: Tensor

    def __init__(self, name: str, vectors: Tensor, unknown: Tensor) -> None:
        super().__init__()
        self.inputs = (PaddedInput(name, "id", len(vectors)),)
        self.register_buffer("table", torch.cat([vectors.float(), unknown.float()[None]]))

    def forward(self, tensors: NamedTensors) -> Tensor:
        """Look up B ids: [B, D]."""
        ids = tensors[self.inputs[0].name]
        return F.embedding(torch.where(ids < 0, len(self.table) - 1, ids), self.table)


class PaddedJoined(PaddedModule):
    """The vectors of several padded modules, side by side, through a perceptron.

    Args:
        modules: padded modules of the parts of a ``joined`` tower.
        perceptron: maps the concatenated vectors to [B, D].
    """

    def __init__(self, modules: Sequence[PaddedModule], perceptron: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.perceptron = perceptron
        self.inputs = merge_inputs(module.inputs for module in modules)

    def forward(self, tensors: NamedTensors) -> Tensor:
        """Encode B queries: [B, D]."""
        vectors: Tensor = self.perceptron(torch.cat([part(tensors) for part in self.parts], dim=1))
        return vectors


def no_padded_form(tower: nn.Module) -> ConfigError:
    """Return the error for a tower without ``to_padded``."""
    return ConfigError(
        f"the tower {type(tower).__name__} cannot be exported as a graph; add a method "
        "to_padded(context) to it that returns a candid.towers.PaddedModule, or leave out the "
        "formats onnx and torch"
    )
