"""The vectors, graphs and tables that several formats of one export share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor

from candid.errors import ArtifactError, ConfigError
from candid.export.export_input import ExportInput
from candid.export.graphs import Graph, build_graphs
from candid.export.tracing import trace
from candid.inference import StageProgress, encode_catalog, inference_mode

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class ExportContext:
    """Vectors, graphs and tables of one export, each computed once and on first use.

    Args:
        export_input: the trained model.
        vector_column: name of the column that holds vectors.
        progress: called with (stage, items done, total items).

    Attributes:
        items: n rows: source ids, titles and attributes of the items of the dataset, without
            retired ones.

    Raises:
        ConfigError: the items have a column of that name.
    """

    def __init__(
        self,
        export_input: ExportInput,
        *,
        vector_column: str = "vector",
        progress: StageProgress | None = None,
    ) -> None:
        if vector_column in export_input.dataset.items.columns:
            raise ConfigError(
                f"the items already have a column {vector_column!r}; choose another name for "
                "the column of vectors with --vector-column"
            )
        self.export_input = export_input
        self.vector_column = vector_column
        self.progress = progress
        self._retired = export_input.dataset.retired_items
        items = _decode_categories(export_input.dataset.items)
        self.items = items if self._retired is None else items.filter(~self._retired)

    def __repr__(self) -> str:
        """Return run and number of items."""
        return f"ExportContext(run={self.export_input.name!r}, num_items={self.items.height})"

    @property
    def metadata(self) -> dict[str, Any]:
        """Description of the model for every file, as plain JSON values."""
        vectors: dict[str, Any] = {}
        if self.export_input.vector_model is not None:
            vectors = {
                "similarity": "inner product",
                "temperature": "folded into the query vectors",
                "dim": self.dim,
            }
        return {
            "run": self.export_input.name,
            "fingerprint": self.export_input.fingerprint,
            **vectors,
            "num_items": self.items.height,
        }

    @property
    def text_metadata(self) -> dict[str, str]:
        """``metadata`` as text, for formats that store only text."""
        return {f"candid.{name}": str(value) for name, value in self.metadata.items()}

    @property
    def dim(self) -> int:
        """D, width of the vectors."""
        towers = self.export_input.towers
        return self.vectors.shape[1] if towers is None else towers.item_tower.dim

    @cached_property
    def vectors(self) -> Tensor:
        """Vectors of the items, [n, D] float32.

        Raises:
            ConfigError: the model has no vectors.
            ArtifactError: a vector is not finite.
        """
        model = self.export_input.vector_model
        if model is None:
            raise ConfigError(
                f"the baseline {self.export_input.name} has no item vectors to export: write the "
                "lists of its users with candid recommend --all-users --out recs.parquet"
            )
        with inference_mode(model):
            vectors = encode_catalog(model, self.progress).detach().float().cpu()
        if self._retired is not None:
            vectors = vectors[torch.from_numpy(~self._retired)]
        for rows in vectors.split(65_536):
            if not torch.isfinite(rows).all():
                raise ArtifactError(
                    "the vectors of some items are not finite; train again, with a lower "
                    "training.lr"
                )
        return vectors

    @cached_property
    def graphs(self) -> list[Graph]:
        """The graphs of the model."""
        return build_graphs(self.export_input)

    @cached_property
    def programs(self) -> dict[str, ExportedProgram]:
        """Each graph as ``torch.export`` traces it, by name."""
        return {graph.name: trace(graph) for graph in self.graphs}

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Columns of ``frames``."""
        vector = pl.Array(pl.Float32, self.dim)
        return {**self.items.schema, self.vector_column: vector}

    def frames(self, rows: int, stage: str) -> Iterator[pl.DataFrame]:
        """Yield source ids, titles, attributes and vectors of the items, in chunks.

        Args:
            rows: largest height of a frame.
            stage: name of this work, for ``progress``.
        """
        num_items = self.items.height
        vectors = self.vectors.numpy()
        vector_type = self.schema[self.vector_column]
        for begin in range(0, num_items, rows):
            chunk = self.items.slice(begin, rows)
            values = pl.Series(self.vector_column, vectors[begin : begin + rows], dtype=vector_type)
            yield chunk.with_columns(values)
            if self.progress is not None:
                self.progress(stage, min(begin + rows, num_items), num_items)


def _decode_categories(items: pl.DataFrame) -> pl.DataFrame:
    """Return the items with categories as text: other programs cannot read Polars' codes."""
    names = [n for n, dtype in items.schema.items() if isinstance(dtype, pl.Categorical | pl.Enum)]
    return items.with_columns(pl.col(names).cast(pl.String))
