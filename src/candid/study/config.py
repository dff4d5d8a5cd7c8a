"""Settings of a study: the file STUDY.toml as one typed object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from candid.component import ComponentConfig
from candid.config import read_toml, validated
from candid.data import DataConfig
from candid.errors import ConfigError, UnknownNameError
from candid.study.arms import ARMS, SAMPLERS, find_arm
from candid.synthetic import SyntheticConfig

Table = dict[str, Any]
C = TypeVar("C", bound=ComponentConfig)

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of a study file are parts of paths."""
SET_BY_THE_GRID: Final = ("data", "loss", "sampler", "seed", "training.keep", "training.lr")
"""Recipe keys that the study sets for each cell: given elsewhere they would change the arms."""
AS_PREPARED: Final = "as-prepared"
"""Name of the split of a dataset that was prepared before."""


class DatasetConfig(ComponentConfig):
    """One dataset: a prepared one, files with the keys of [data], or a synthetic catalog."""

    prepared: Path | None = Field(None, description="folder of a prepared dataset")
    data: Table | None = Field(
        None, description="keys of the section [data] of a recipe, without split"
    )
    synthetic: Table | None = Field(
        None, description="keys of a synthetic dataset, such as num_items"
    )
    splits: dict[str, Table] = Field(
        default_factory=lambda: {"leave-one-out": {"kind": "leave-one-out"}},
        description="splits by name, each with the keys of [data.split]",
    )
    source: str | None = Field(
        None,
        description="name of the data behind it; datasets of one source are not independent, and "
        "stay together in the bootstrap of C5; absent: the name of the dataset",
    )
    recipe: Table = Field(default_factory=dict, description="recipe keys of this dataset")
    learning_rates: tuple[float, ...] = Field(
        (), description="learning rates of its pilot; empty: those of the pilot"
    )

    @field_validator("learning_rates")
    @classmethod
    def _rates_ascend(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return _ascending(rates)

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [name for name in ("prepared", "data", "synthetic") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "a dataset needs exactly one of prepared, data and synthetic, got "
                f"{' and '.join(given) or 'none'}"
            )
        if self.prepared is not None and "splits" in self.model_fields_set:
            raise ValueError(
                "a prepared dataset has its split already: remove splits, or name the files with "
                "data"
            )
        if self.data is not None and "split" in self.data:
            raise ValueError("data.split has no effect here: write splits.NAME")
        return self

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return (AS_PREPARED,) if self.prepared is not None else tuple(self.splits)


class GridConfig(ComponentConfig):
    """One block of cells: all combinations of its lists that are defined."""

    datasets: tuple[str, ...] = Field((), description="names of datasets; empty: all")
    splits: tuple[str, ...] = Field(
        (), description="names of splits, of the datasets that have them; empty: all"
    )
    towers: tuple[str, ...] = Field((), description="names of towers; empty: all")
    samplers: tuple[str, ...] = Field(("popularity",), description="names of samplers")
    num_candidates: tuple[int, ...] = Field(
        (64,), min_length=1, description="numbers of candidates n; not for 'whole_batch'"
    )
    arms: tuple[str, ...] = Field(min_length=1, description="names of arms")
    seeds: tuple[int, ...] = Field((), description="seeds; empty: those of the study")

    @field_validator("num_candidates")
    @classmethod
    def _n_is_positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if min(values) < 1:
            raise ValueError(f"must be at least 1, got {min(values)}")
        return values

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(str(UnknownNameError("sampler of a study", name, SAMPLERS)))
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(str(UnknownNameError("arm", name, ARMS)))
            arm = find_arm(name)
            if not arm.reads_catalog and not set(arm.samplers) & set(self.samplers):
                raise ValueError(
                    f"the arm {name!r} is not defined for the samplers of its grid "
                    f"({', '.join(self.samplers)}): add one of {', '.join(arm.samplers)}"
                )
        return self


class PilotConfig(ComponentConfig):
    """The pilot: short trainings that choose the learning rate of each arm on validation."""

    learning_rates: tuple[float, ...] = Field(min_length=1, description="learning rates to try")
    seed: int = Field(1000, ge=0, description="seed of the pilot, none of the main cells")
    metric: Literal["ndcg@10", "nll"] = Field(
        "ndcg@10", description="validation metric that chooses: the best value wins"
    )
    num_candidates: tuple[int, ...] = Field(
        (),
        description="numbers of candidates of the pilot; other cells have the learning rate of the "
        "nearest one; empty: all",
    )
    extend: bool = Field(
        True,
        description="where the best learning rate is the smallest or the largest one, try up to "
        "four more beyond it, until a further one is worse",
    )
    recipe: Table = Field(default_factory=dict, description="recipe keys of the pilot")

    @field_validator("learning_rates")
    @classmethod
    def _rates_ascend(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return _ascending(rates)


class MeasureConfig(ComponentConfig):
    """What is measured of each trained model of the main cells."""

    max_scores: float = Field(
        2e9,
        gt=0,
        description="scores of one measurement on the test split: with more users times items a "
        "fixed random sample of users is measured, at least 256",
    )
    drift: bool = Field(True, description="measure chi2 and the predicted drift")
    drift_max_items: int = Field(
        200_000, ge=1, description="largest catalog with chi2 and drift, which score it many times"
    )
    calibration_users: int = Field(
        1024, ge=0, description="largest number of users of the calibration; 0: none"
    )


class BudgetConfig(ComponentConfig):
    """The largest estimated cost of a study; not checked again while cells run."""

    cpu_hours: float = Field(
        gt=0,
        description="CPU hours over all threads: a call whose cells cost more, those that have "
        "ended and the estimate of the missing ones together, is refused before its first cell",
    )


class StudyConfig(ComponentConfig):
    """Everything that a study depends on: the content of STUDY.toml."""

    name: str = Field(pattern=rf"^{NAME.pattern}$", description="name of the study")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seeds of the main cells")
    recipe: Table = Field(default_factory=dict, description="recipe keys of all cells")
    datasets: dict[str, Table] = Field(min_length=1, description="datasets by name")
    towers: dict[str, Table] = Field(
        min_length=1, description="recipe keys by name, such as model.query_tower"
    )
    grids: tuple[Table, ...] = Field(min_length=1, description="blocks of cells")
    pilot: Table = Field(description="choice of the learning rates")
    measure: Table = Field(default_factory=dict, description="measurements of each model")
    budget: Table = Field(description="largest cost")


class Study:
    """A study file, read and checked.

    Args:
        config: the file.
        source: name of the file; begins every message.

    Attributes:
        config: the file.
        source: name of the file.
        datasets: by name.
        grids: the blocks of cells, with all names filled in.
        pilot: choice of the learning rates.
        measure: measurements of each model.
        cpu_hours: the budget.

    Raises:
        ConfigError: a part of the file is wrong; one sentence with its key.
    """

    def __init__(self, config: StudyConfig, source: str) -> None:
        self.config, self.source = config, source
        self._check_recipe(config.recipe, "recipe")
        for name, table in config.towers.items():
            self._check_recipe(table, f"towers.{name}")
        for kind, names in (("dataset", config.datasets), ("tower", config.towers)):
            for name in names:
                self._check_name(kind, name)
        self.datasets = {
            name: self._part(DatasetConfig, table, f"datasets.{name}")
            for name, table in config.datasets.items()
        }
        for name, dataset in self.datasets.items():
            self._check_recipe(dataset.recipe, f"datasets.{name}.recipe")
            for split in dataset.split_names:
                self._check_name(f"split of {name}", split)
                self.data_config(name, split, Path())
        self.pilot = self._part(PilotConfig, config.pilot, "pilot")
        self._check_recipe(self.pilot.recipe, "pilot.recipe")
        self.measure = self._part(MeasureConfig, config.measure, "measure")
        self.cpu_hours = self._part(BudgetConfig, config.budget, "budget").cpu_hours
        self.grids = tuple(
            self._grid(table, f"grids.{number}") for number, table in enumerate(config.grids)
        )
        if any(self.pilot.seed in grid.seeds for grid in self.grids):
            raise ConfigError(
                f"{source}: [pilot]: seed = {self.pilot.seed} is a seed of the main cells too, "
                "which would be measured with the noise that chose their learning rate; choose "
                "another one"
            )

    @property
    def sources(self) -> dict[str, str]:
        """Name of the data behind each dataset."""
        return {name: one.source or name for name, one in self.datasets.items()}

    def learning_rates(self, name: str) -> tuple[float, ...]:
        """Return the learning rates of the pilot of a dataset, ascending."""
        return self.datasets[name].learning_rates or self.pilot.learning_rates

    def data_config(self, name: str, split: str, files: Path | str) -> DataConfig | None:
        """Return the section [data] of a dataset and split; None for a prepared dataset.

        Args:
            name: of the dataset.
            split: of the dataset.
            files: folder with the files of a synthetic dataset.

        Raises:
            ConfigError: a key is wrong.
        """
        dataset = self.datasets[name]
        if dataset.prepared is not None:
            return None
        table: Table = dict(dataset.data or {})
        if dataset.synthetic is not None:
            self.synthetic(name)
            table = {
                "interactions": str(Path(files) / "interactions.parquet"),
                "time": "timestamp",
            }
        table["split"] = dataset.splits[split]
        return self._part(DataConfig, table, f"datasets.{name}.data with splits.{split}")

    def synthetic(self, name: str) -> SyntheticConfig | None:
        """Return the settings of a synthetic dataset; None for another one.

        Raises:
            ConfigError: a key is wrong.
        """
        table = self.datasets[name].synthetic
        if table is None:
            return None
        return self._part(SyntheticConfig, table, f"datasets.{name}.synthetic")

    def _part(self, part: type[C], table: Mapping[str, Any], key: str) -> C:
        return validated(part, table, f"{self.source}: [{key}]")

    def _check_recipe(self, table: Table, key: str) -> None:
        """Refuse recipe keys that the study sets for each cell."""
        for name in SET_BY_THE_GRID:
            section, _, inner = name.partition(".")
            value = table.get(section)
            if section in table and (not inner or (isinstance(value, Mapping) and inner in value)):
                raise ConfigError(
                    f"{self.source}: [{key}]: {name} is set by the study for each cell; remove "
                    "the key"
                )

    def _check_name(self, kind: str, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{self.source}: the {kind} {name!r} must be named with letters, digits, '.', '_' "
                "and '-' alone; rename it"
            )

    def _grid(self, table: Table, key: str) -> GridConfig:
        grid = self._part(GridConfig, table, key)
        known_splits = {one for d in self.datasets.values() for one in d.split_names}
        for kind, names, known in (
            ("dataset", grid.datasets, self.datasets.keys()),
            ("split", grid.splits, known_splits),
            ("tower", grid.towers, self.config.towers.keys()),
        ):
            for name in names:
                if name not in known:
                    problem = UnknownNameError(kind, name, known)
                    raise ConfigError(f"{self.source}: [{key}]: {problem}")
        datasets = grid.datasets or tuple(self.datasets)
        splits = grid.splits or tuple(sorted(known_splits))
        for name in datasets:
            if not set(splits) & set(self.datasets[name].split_names):
                raise ConfigError(
                    f"{self.source}: [{key}]: the dataset {name!r} has none of the splits "
                    f"{', '.join(splits)}; add one of "
                    f"{', '.join(self.datasets[name].split_names)}"
                )
        return grid.model_copy(
            update={
                "datasets": datasets,
                "splits": splits,
                "towers": grid.towers or tuple(self.config.towers),
                "seeds": grid.seeds or self.config.seeds,
            }
        )


def _ascending(rates: tuple[float, ...]) -> tuple[float, ...]:
    if rates and min(rates) <= 0:
        raise ValueError(f"a learning rate must be above 0, got {min(rates):g}")
    return tuple(sorted(set(rates)))


def parse_study(table: Mapping[str, Any], source: str) -> Study:
    """Build a study from plain values.

    Args:
        table: content of the file.
        source: name of the file; begins every message.

    Raises:
        ConfigError: a key is unknown, missing or has a value that does not fit.
    """
    return Study(validated(StudyConfig, table, source), source)


def read_study(path: Path | str) -> Study:
    """Read a study file.

    Raises:
        ConfigError: the file cannot be read, or a key is wrong; one sentence with file and key.

    Example:
        >>> read_study("studies/small.toml").config.name  # doctest: +SKIP
        'small'
    """
    return parse_study(read_toml(path, "study"), str(path))
