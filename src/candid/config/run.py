"""The configuration of a run: the configs of all its parts, and the default recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from pydantic import Field, model_validator

from candid.batches import BatchesConfig
from candid.component import ComponentConfig, type_name
from candid.config.data_facts import DataFacts
from candid.config.defaults import DEFAULT_RECIPE, Default, data_defaults
from candid.config.recipe_file import (
    parse_override,
    read_toml,
    with_overrides,
    with_values,
)
from candid.config.schema import validated
from candid.config.sections import SECTIONS
from candid.data import DataConfig, PreparedDataset
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig
from candid.features import FeaturesConfig
from candid.losses import LOSSES, LossComponent
from candid.samplers import SAMPLERS, SamplerComponent
from candid.towers import ModelConfig
from candid.training import TrainingConfig

MAX_THREADS: Final = 1024
"""Largest number of CPU threads; torch ends the process where it cannot start a thread."""


class RunConfig(ComponentConfig):
    """Everything that a training run depends on: the content of one recipe."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run; without --out it is stored in runs/NAME",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    device: str = Field(
        "auto", description='"auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1"'
    )
    threads: int | None = Field(
        None, ge=1, le=MAX_THREADS, description="CPU threads; none: chosen by torch"
    )
    data: DataConfig | None = Field(None, description=SECTIONS["data"])
    features: FeaturesConfig = Field(
        default_factory=FeaturesConfig, description=SECTIONS["features"]
    )
    batches: BatchesConfig = Field(default_factory=BatchesConfig, description=SECTIONS["batches"])
    model: ModelConfig = Field(default_factory=ModelConfig, description=SECTIONS["model"])
    sampler: SamplerComponent | None = Field(None, description=SECTIONS["sampler"])
    loss: LossComponent = Field(description=SECTIONS["loss"])
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description=SECTIONS["training"]
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description=SECTIONS["evaluation"]
    )

    @model_validator(mode="after")
    def _check_loss_and_sampler(self) -> Self:
        if self.loss.needs_candidates and self.sampler is None:
            raise ValueError(
                f"loss {self._loss_name!r} needs candidates; add a section [sampler] with a type, "
                f"one of: {', '.join(sorted(SAMPLERS))}"
            )
        if not self.loss.needs_candidates and self.sampler is not None:
            raise ValueError(
                f"loss {self._loss_name!r} reads the whole catalog and takes no candidates; remove "
                "the section [sampler] (on the command line: --set sampler=none)"
            )
        if self.sampler is not None and self.sampler.is_set and not self.loss.works_with_sets:
            raise ValueError(
                "loss.jackknife does not work with a sampler of distinct = true: it adds a bias "
                "that does not shrink with the number of candidates; set one of the two to false"
            )
        if self.sampler is not None:
            try:
                self.loss.check_candidates(
                    has_exact=self.sampler.has_exact, is_set=self.sampler.is_set
                )
            except ConfigError as error:
                raise ValueError(f"loss.correction: {error}") from None
        return self

    @property
    def _loss_name(self) -> str:
        return type_name(LOSSES, "loss", self.loss)


def parse_config(table: Mapping[str, Any], source: str) -> RunConfig:
    """Build the config of a run from plain values, such as those in a run's manifest.

    Args:
        table: output of ``RunConfig.model_dump(mode="json")``, or the table of a recipe.
        source: file that the values come from; begins every message.

    Raises:
        ConfigError: a key is unknown, missing or has a value that does not fit.
    """
    return validated(RunConfig, table, source)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe.

    Args:
        path: TOML file; relative paths inside it start at the current folder.
        overrides: ``key=value`` each, as passed to ``--set``; applied before validation.

    Raises:
        ConfigError: the file or an override is wrong; the message names file and key.

    Example:
        >>> load_recipe("films.toml", ["training.epochs=5"]).training.epochs  # doctest: +SKIP
        5
    """
    source = f"{path} with --set" if overrides else str(path)
    return parse_config(with_overrides(read_toml(path), overrides), source)


def override_evaluation(config: EvaluationConfig, overrides: Sequence[str]) -> EvaluationConfig:
    """Return the evaluation settings of a saved model with overrides applied.

    Raises:
        ConfigError: an override is wrong, or of another section.
    """
    for text in overrides:
        key, _ = parse_override(text)
        if key.split(".")[0] != "evaluation":
            raise ConfigError(
                f"--set {text!r}: only keys of [evaluation] can change here; remove it"
            )
    table = with_overrides({"evaluation": config.model_dump(mode="json")}, overrides)
    return validated(_Evaluation, table, "command line").evaluation


class _Evaluation(ComponentConfig):
    """The section [evaluation] of a recipe alone, so that errors have its dotted keys."""

    evaluation: EvaluationConfig = Field(description=SECTIONS["evaluation"])


def default_recipe(
    overrides: Sequence[str] = (), dataset: PreparedDataset | None = None
) -> RunConfig:
    """Return the default recipe with overrides applied.

    Args:
        overrides: ``key=value`` each.
        dataset: dataset to train on, from which settings follow (``recipe_for``). None: the same
            recipe for all data, which suits a large dataset with order.

    Raises:
        ConfigError: an override is wrong.

    Example:
        >>> default_recipe(["training.epochs=5"]).training.epochs
        5
    """
    if dataset is None:
        return parse_config(with_overrides(dict(DEFAULT_RECIPE), overrides), "default recipe")
    return recipe_for(DataFacts.of(dataset), dict(map(parse_override, overrides)))[0]


def recipe_for(
    facts: DataFacts,
    changes: Mapping[str, Any] = MappingProxyType({}),
    source: str = "default recipe",
) -> tuple[RunConfig, tuple[Default, ...]]:
    """Return the default recipe for data, and the settings that were chosen from facts of it.

    Args:
        facts: of the dataset.
        changes: dotted keys with their values, applied last. A changed loss or sampler decides
            whether the loss is sampled. Defaults that a change replaces, or that do not fit it,
            are left out.
        source: begins every message.

    Returns:
        the config, and the chosen defaults that it has.

    Raises:
        ConfigError: a change is wrong.
    """
    if changes.get("batches.unit") == "interaction":
        facts = facts.without_order()
    chosen = data_defaults(facts, changes, sampled=_samples(changes))
    table = with_values(dict(DEFAULT_RECIPE), {one.key: one.value for one in chosen})
    return parse_config(with_values(table, changes), source), chosen


def _samples(changes: Mapping[str, Any]) -> bool | None:
    """Whether changed keys ask for a sampled loss; None: they leave it open."""
    loss = changes.get("loss.type", changes.get("loss"))
    loss = loss.get("type") if isinstance(loss, Mapping) else loss
    if isinstance(loss, str) and loss in LOSSES:
        return bool(LOSSES[loss].Config.needs_candidates)
    if any(key.split(".")[0] == "sampler" for key in changes):
        return changes.get("sampler", "") is not None
    of_all = LOSSES["full_softmax"].Config.model_fields.keys()
    only_sampled = LOSSES["sampled_softmax"].Config.model_fields.keys() - of_all
    return True if {f"loss.{key}" for key in only_sampled} & changes.keys() else None
