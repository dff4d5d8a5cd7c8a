"""What goes into a graph: names, types and shapes; and examples to trace and to check it with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.features import Bags, Codes, Numbers, Values

Named = Mapping[str, Tensor]
"""Tensors by the names of the inputs."""

Kind = Literal["id", "ids", "event_types", "codes", "bag", "numbers"]

PADDING = -1
"""Fills up histories and bags, always at their ends; also the id of somebody or something new."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a graph; its first axis is the batch.

    Attributes:
        name: "user_id", "item_id", "history", "event_types", or side and feature: "item.genres".
        kind: "id" [B]; "ids" and "event_types" [B, L]; "codes" [B, K]; "bag" [B, M], M free;
            "numbers" [B, M], M fixed.
        size: values are below it (of ids, event_types, codes and bags); 0 for numbers.
        width: of the second axis; None where it is free, or there is none.
        side: of the feature, or None.
        feature: its name, or None.
        longest: of a free second axis, or None.
    """

    name: str
    kind: Kind
    size: int
    width: int | None = None
    side: str | None = None
    feature: str | None = None
    longest: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """float32 for numbers, int64 for all else."""
        return torch.float32 if self.kind == "numbers" else torch.int64

    @property
    def axes(self) -> tuple[str | int, ...]:
        """Names of the free axes, sizes of the fixed ones."""
        if self.kind == "id":
            return ("batch",)
        if self.kind in ("ids", "event_types"):
            return ("batch", "length" if self.longest != 1 else 1)
        return ("batch", f"{self.name}.length" if self.width is None else self.width)

    def to_json(self) -> dict[str, Any]:
        """Name, type and shape as ``inputs.json`` has them."""
        return {
            "name": self.name,
            "kind": self.kind,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.axes),
            **({} if self.kind == "numbers" else {"below": self.size}),
            **({} if self.longest is None else {"longest": self.longest}),
            **({} if self.feature is None else {"side": self.side, "feature": self.feature}),
        }


def feature_input(side: str, feature: str, form: Values) -> Input:
    """The input that carries a feature."""
    name = f"{side}.{feature}"
    match form:
        case Codes(ids=ids):
            return Input(name, "codes", form.num_codes, ids.shape[1], side, feature)
        case Bags():
            return Input(name, "bag", form.num_codes, None, side, feature)
        case Numbers(values=values):
            return Input(name, "numbers", 0, values.shape[1], side, feature)


def merged(groups: Iterable[tuple[Input, ...]]) -> tuple[Input, ...]:
    """Inputs of several parts of one graph, each once, by name.

    Raises:
        ConfigError: two different ones have one name.
    """
    found: dict[str, Input] = {}
    for group in groups:
        for one in group:
            if found.setdefault(one.name, one) != one:
                raise ConfigError(
                    f"two inputs of the model would be called {one.name!r}: rename that feature "
                    "in the recipe and train again"
                )
    return tuple(found[name] for name in sorted(found))


def example(
    inputs: Iterable[Input], batch: int, length: int, seed: int = 0, *, empty: bool = False
) -> dict[str, Tensor]:
    """Random inputs of B rows, with unknown ids, and histories and bags of every length.

    Args:
        inputs: of the graph.
        batch: B.
        length: of the second axis of histories and bags, where they may have it.
        seed: of the draws.
        empty: whether some histories are empty.
    """
    generator = torch.Generator().manual_seed(seed)
    named: dict[str, Tensor] = {}
    for one in inputs:
        columns = min(length, one.longest or length)
        shape = (batch, columns if one.width is None else one.width)
        if one.kind == "numbers":
            named[one.name] = torch.randn(shape, generator=generator)
        elif one.kind == "id":
            named[one.name] = torch.randint(0, one.size, (batch,), generator=generator)
        else:
            named[one.name] = torch.randint(0, one.size, shape, generator=generator)
        if one.kind == "bag":
            lengths = torch.randint(0, columns + 1, (batch,), generator=generator)
            named[one.name] = _padded(named[one.name], lengths)
    if "history" in named:
        columns = named["history"].shape[1]
        lengths = torch.randint(0 if empty else 1, columns + 1, (batch,), generator=generator)
        named["history"] = _padded(named["history"], lengths)
    return named


def _padded(values: Tensor, lengths: Tensor) -> Tensor:
    is_padding = torch.arange(values.shape[1]) >= lengths[:, None]
    return values.masked_fill(is_padding, PADDING)


def packed(form: Values, values: Tensor) -> Values:
    """A feature's input as the towers read it."""
    match form:
        case Codes():
            return Codes(values, form.num_codes)
        case Numbers():
            return Numbers(values, form.unknown)
        case Bags():
            is_member = values != PADDING
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), is_member.sum(1).cumsum(0)])
            return Bags(values[is_member], offsets, form.num_codes)
