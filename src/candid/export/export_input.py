"""The input of an export: a trained model, its dataset and its features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from candid.data import PreparedDataset
from candid.features import FeatureConfig, FeatureTable
from candid.runs import Run, model_fingerprint
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
    """The parts of a trained run that an export reads.

    Attributes:
        name: of the run.
        model: in evaluation mode.
        dataset: training data of the model.
        fingerprint: of the model; an index of its vectors has the same.
        max_length: L, the longest history of a query.
        features: the features that the model reads, by "item", "user" and "context".
    """

    name: str
    model: RetrievalModel
    dataset: PreparedDataset
    fingerprint: str
    max_length: int
    features: Mapping[str, FeatureSet] = field(default_factory=dict)

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
            model=model,
            dataset=run.dataset,
            fingerprint=model_fingerprint(run),
            max_length=run.config.batches.max_length,
            features={
                side: FeatureSet(table, configs)
                for side, (table, configs, is_read) in sides.items()
                if table is not None and is_read
            },
        )
