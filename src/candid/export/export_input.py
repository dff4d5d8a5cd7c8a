"""The input of an export: a trained run or a fitted baseline, its dataset and its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from candid.batches import Ints
from candid.data import PreparedDataset
from candid.errors import ConfigError
from candid.features import FeatureConfig, FeatureTable
from candid.inference import TwoTowerModel, queries_for_users
from candid.runs import (
    FittedBaseline,
    Run,
    holds_baseline,
    load_baseline,
    load_run,
    model_fingerprint,
)
from candid.runs.fitted_baseline import WHOLE_HISTORY
from candid.towers import RetrievalModel


@dataclass(frozen=True)
class FeatureSet:
    """The features of items, of users or of the request context.

    Attributes:
        table: fitted, with the values of the rows of the dataset (no rows for "context").
        configs: by feature name; settings for encoding raw values.
    """

    table: FeatureTable
    configs: Mapping[str, FeatureConfig]


@dataclass(frozen=True)
class ExportInput:
    """The parts of a trained run, or of a fitted baseline, that an export reads.

    Attributes:
        name: of the run or the baseline.
        dataset: training data of the model.
        fingerprint: of the model; an index of its vectors has the same.
        max_length: L, the longest history of a query.
        towers: the model of a run, in evaluation mode; None for a baseline.
        vector_model: encodes items; None: the model has no vectors.
        encode_users: vectors of users of the dataset by dense id [B], [B, D] float32; None for a
            run, whose graphs encode queries.
        features: the features that the model reads, by "item", "user" and "context".
    """

    name: str
    dataset: PreparedDataset
    fingerprint: str
    max_length: int
    towers: RetrievalModel | None
    vector_model: TwoTowerModel | None
    encode_users: Callable[[Ints], Tensor] | None = None
    features: Mapping[str, FeatureSet] = field(default_factory=dict)

    @property
    def model(self) -> RetrievalModel:
        """The model whose towers become graphs.

        Raises:
            ConfigError: a baseline has no towers.
        """
        if self.towers is None:
            raise ConfigError(
                f"the baseline {self.name} has no towers to write as graphs: leave out --format "
                "onnx and torch"
            )
        return self.towers

    @classmethod
    def from_run(cls, run: Run) -> Self:
        """Read a trained run."""
        features, model = run.features, run.model
        sides = {
            "item": (features.item, run.config.features.item, model.reads_item_features),
            "user": (features.user, run.config.features.user, model.reads_user_features),
            "context": (features.context, run.config.features.context, model.reads_context),
        }
        return cls(
            name=run.config.name,
            dataset=run.dataset,
            fingerprint=model_fingerprint(run),
            max_length=run.config.batches.max_length,
            towers=model,
            vector_model=model,
            features={
                side: FeatureSet(table, configs)
                for side, (table, configs, is_read) in sides.items()
                if table is not None and is_read
            },
        )

    @classmethod
    def from_baseline(cls, baseline: FittedBaseline) -> Self:
        """Read a saved baseline."""
        dataset, vector_model = baseline.dataset, baseline.model.vector_model

        def encode_users(user_ids: Ints) -> Tensor:
            assert vector_model is not None
            queries = queries_for_users(dataset, user_ids, max_length=WHOLE_HISTORY)
            with torch.inference_mode():
                return vector_model.encode_queries(queries).float().cpu()

        return cls(
            name=baseline.name,
            dataset=dataset,
            fingerprint=str(baseline.manifest["fingerprint"]),
            max_length=WHOLE_HISTORY,
            towers=None,
            vector_model=vector_model,
            encode_users=None if vector_model is None else encode_users,
        )

    @classmethod
    def open(cls, folder: Path | str, data: Path | str | None = None) -> Self:
        """Open the folder of a run or of a saved baseline.

        Args:
            folder: of the run or the baseline.
            data: folder of the prepared dataset; None: the one that the folder names.

        Raises:
            ArtifactError: neither of the two, a damaged one, or another dataset.
        """
        if holds_baseline(folder):
            return cls.from_baseline(load_baseline(folder, data))
        return cls.from_run(load_run(folder, data))
