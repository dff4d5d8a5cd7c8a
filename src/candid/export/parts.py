"""What an export is made of: a trained model and what it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from candid.data import PreparedDataset
from candid.features import FeatureConfig, FeatureTable
from candid.towers import RetrievalModel


@dataclass(frozen=True)
class Side:
    """The features of one side, and the settings that raw values are read by.

    Attributes:
        table: fitted, with the values of the rows of the dataset (none for "context").
        configs: by feature name.
    """

    table: FeatureTable
    configs: Mapping[str, FeatureConfig]


@dataclass(frozen=True)
class ExportParts:
    """A run, as an export reads it.

    Attributes:
        name: of the run.
        model: in evaluation mode.
        dataset: it was trained on.
        fingerprint: of the model, as an index of its vectors carries it.
        max_length: L, the longest history it is asked with.
        sides: features that the model reads, by "item", "user" and "context".
    """

    name: str
    model: RetrievalModel
    dataset: PreparedDataset
    fingerprint: str
    max_length: int
    sides: Mapping[str, Side] = field(default_factory=dict)
