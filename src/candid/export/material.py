"""What several formats of one export share, made once and only where one asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.evaluation import StageProgress, encoded_catalog, inference
from candid.export.graphs import Graph, graphs_of
from candid.export.parts import ExportParts

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Material:
    """Vectors, graphs and tables of one export.

    Args:
        parts: the run.
        vector_column: name of the column that holds vectors.
        progress: called with (stage, done, in all).

    Raises:
        ConfigError: a column of the items has the name of the vectors.
    """

    def __init__(
        self,
        parts: ExportParts,
        vector_column: str = "vector",
        progress: StageProgress | None = None,
    ) -> None:
        if vector_column in parts.dataset.items.columns:
            raise ConfigError(
                f"the items have a column {vector_column!r} of their own: name that of their "
                "vectors with --vector-column"
            )
        self.parts = parts
        self.vector_column = vector_column
        self.progress = progress
        self._items = _plain(parts.dataset.items)

    @property
    def facts(self) -> dict[str, Any]:
        """What every file is told of the model, as plain JSON values."""
        return {
            "run": self.parts.name,
            "fingerprint": self.parts.fingerprint,
            "similarity": "inner product",
            "temperature": "folded into the query vectors",
            "dim": self.dim,
            "num_items": self.parts.dataset.num_items,
        }

    @property
    def dim(self) -> int:
        """D."""
        return self.parts.model.item_tower.dim

    @property
    def metadata(self) -> dict[str, str]:
        """``facts`` for formats whose metadata are texts."""
        return {f"candid.{name}": str(value) for name, value in self.facts.items()}

    @cached_property
    def vectors(self) -> Tensor:
        """[V, D] float32, of the items.

        Raises:
            ArtifactError: one is not finite.
        """
        with inference(self.parts.model):
            vectors = encoded_catalog(self.parts.model, self.progress).detach().float().cpu()
        for rows in vectors.split(65_536):
            if not torch.isfinite(rows).all():
                raise ArtifactError(
                    "the vectors of some items are not finite: train again, with a lower "
                    "training.lr"
                )
        return vectors

    @cached_property
    def graphs(self) -> list[Graph]:
        """The graphs of the model."""
        return graphs_of(self.parts)

    @cached_property
    def programs(self) -> dict[str, ExportedProgram]:
        """Each graph as ``torch.export`` traces it, by name."""
        from candid.export.program import traced

        return {graph.name: traced(graph) for graph in self.graphs}

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Columns of ``frames``."""
        vector = pl.Array(pl.Float32, self.dim)
        return {**self._items.schema, self.vector_column: vector}

    def frames(self, rows: int, stage: str) -> Iterator[pl.DataFrame]:
        """Source ids, titles, attributes and vectors of all items, some rows at a time.

        Args:
            rows: at most, of each frame.
            stage: name of this work, for progress.
        """
        num_items = self.parts.dataset.num_items
        vectors = self.vectors.numpy()
        vector = self.schema[self.vector_column]
        for begin in range(0, num_items, rows):
            part = self._items.slice(begin, rows)
            values = pl.Series(self.vector_column, vectors[begin : begin + rows], dtype=vector)
            yield part.with_columns(values)
            if self.progress is not None:
                self.progress(stage, min(begin + rows, num_items), num_items)


def _plain(items: pl.DataFrame) -> pl.DataFrame:
    """Texts as texts: what codes stand for in a table of ours is nothing to other programs."""
    coded = [n for n, dtype in items.schema.items() if isinstance(dtype, pl.Categorical | pl.Enum)]
    return items.with_columns(pl.col(coded).cast(pl.String))
