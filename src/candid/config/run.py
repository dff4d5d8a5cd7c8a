"""The whole configuration of a run, composed of its parts' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from candid.batches import BatchesConfig
from candid.component import ComponentConfig, type_name
from candid.config.recipe_file import parse_override, read_toml, with_overrides, with_values
from candid.config.schema import validated
from candid.data import DataConfig, PreparedDataset
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig
from candid.features import FeaturesConfig
from candid.losses import LOSSES, Loss, LossComponent, SampledSoftmax
from candid.samplers import SAMPLERS, SamplerComponent
from candid.towers import ModelConfig
from candid.training import TrainingConfig


class RunConfig(ComponentConfig):
    """Everything that a training run depends on, as one recipe states it."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run; without --out it is stored in runs/NAME",
    )
    seed: int = Field(0, ge=0, description="of every random choice: same seed, same run")
    device: str = Field(
        "auto", description='"auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"'
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads; none: as many as torch chooses"
    )
    data: DataConfig | None = Field(
        None, description="where the interactions are; not needed with --data"
    )
    features: FeaturesConfig = Field(
        default_factory=FeaturesConfig,
        description="what is known of users and items beside their ids",
    )
    batches: BatchesConfig = Field(
        default_factory=BatchesConfig, description="how interactions become batches"
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="the two towers")
    sampler: SamplerComponent | None = Field(
        None, description="where the candidates of a sampled loss come from"
    )
    loss: LossComponent = Field(description="the objective")
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="how long, how fast, and when to stop"
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="what is measured, and on what"
    )

    @model_validator(mode="after")
    def _loss_and_sampler_agree(self) -> Self:
        loss = type_name(LOSSES, "loss", self.loss)
        objective: type[Loss] = LOSSES[loss]
        needs_candidates = objective.needs_candidates
        if needs_candidates and self.sampler is None:
            raise ValueError(
                f"loss {loss!r} compares with candidates, so the recipe needs a section "
                f"[sampler] with a type, one of: {', '.join(sorted(SAMPLERS))}"
            )
        if not needs_candidates and self.sampler is not None:
            raise ValueError(
                f"loss {loss!r} compares with the whole catalog and takes no candidates; remove "
                "the section [sampler] (on the command line: --set sampler=none)"
            )
        return self

    @model_validator(mode="after")
    def _no_jackknife_of_a_set(self) -> Self:
        loss, sampler = self.loss, self.sampler
        is_jackknife = isinstance(loss, SampledSoftmax.Config) and loss.jackknife
        if is_jackknife and sampler is not None and sampler.is_set:
            raise ValueError(
                "loss.jackknife cannot go with a sampler of distinct = true: of a set it adds a "
                "bias that no number of candidates cures (docs/audit.md); set one of the two to "
                "false"
            )
        return self


def parse_config(table: Mapping[str, Any], source: str) -> RunConfig:
    """Make a run's config from plain values, such as those a run's manifest holds.

    Args:
        table: what ``RunConfig.model_dump(mode="json")`` wrote, or a recipe's table.
        source: the file they come from; begins every message.

    Raises:
        ConfigError: a key is unknown, missing or has a value that does not fit.
    """
    return validated(RunConfig, table, source)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe.

    Args:
        path: a TOML file; relative paths inside it start at the current folder.
        overrides: ``key=value`` each, as given to ``--set``; applied before validation.

    Raises:
        ConfigError: the file or an override is wrong: one sentence with the file and the key.
    """
    source = f"{path} with --set" if overrides else str(path)
    return parse_config(with_overrides(read_toml(path), overrides), source)


def override_evaluation(config: RunConfig, overrides: Sequence[str]) -> EvaluationConfig:
    """Return the evaluation settings of a trained run with overrides applied.

    Raises:
        ConfigError: an override is wrong, or would change what was trained.
    """
    for text in overrides:
        key, _ = parse_override(text)
        if key.split(".")[0] != "evaluation":
            raise ConfigError(f"--set {text!r}: the run is trained; only evaluation.* can change")
    table = with_overrides(config.model_dump(mode="json"), overrides)
    return parse_config(table, "command line").evaluation


class _DataSection(ComponentConfig):
    data: DataConfig


def load_data_config(
    path: Path | None, values: Mapping[str, Any], overrides: Sequence[str] = ()
) -> DataConfig:
    """Read only the ``[data]`` section of a recipe, or make one from values alone.

    Args:
        path: a recipe, or None.
        values: dotted keys such as ``data.user``, set on top of the recipe.
        overrides: ``key=value`` each, set on top of both.

    Raises:
        ConfigError: the file, a value or an override is wrong, or overrides something else.
    """
    for text in overrides:
        key, _ = parse_override(text)
        if key.split(".")[0] != "data":
            raise ConfigError(f"--set {text!r}: only data.* decides what is prepared")
    table = {} if path is None else read_toml(path)
    table = with_overrides(with_values(table, values), overrides)
    source = "command line" if path is None else str(path)
    if "data" not in table:
        raise ConfigError(f"{source}: no section [data], which says what to prepare")
    return validated(_DataSection, {"data": table["data"]}, source).data


DEFAULT_RECIPE: Mapping[str, Any] = {
    "name": "default",
    "model": {
        "query_tower": {"type": "causal_transformer"},
        "item_tower": {"type": "item_embedding"},
    },
    "sampler": {
        "type": "mixture",
        "components": [
            {"type": "popularity", "num_candidates": 128},
            {"type": "uniform", "num_candidates": 128},
        ],
    },
    "loss": {"type": "sampled_softmax", "correction": "refined"},
}
"""What ``candid train --data DIR`` trains: a causal transformer by the refined sampled softmax."""

UNORDERED: Mapping[str, Any] = {
    "batches": {"unit": "interaction", "batch_size": 1024},
    "model": {
        "query_tower": {"type": "user_embedding"},
        "item_tower": {"type": "item_embedding"},
    },
}
"""What replaces it where interactions have no order: a history tower has nothing to read."""


def default_recipe(
    overrides: Sequence[str] = (), dataset: PreparedDataset | None = None
) -> RunConfig:
    """Return the default recipe with overrides applied.

    Args:
        overrides: ``key=value`` each.
        dataset: what it is for: without order the towers are plain embeddings, and metrics
            stop at the size of the catalog. None: a large one, in order.

    Raises:
        ConfigError: an override is wrong.
    """
    table = dict(DEFAULT_RECIPE)
    if dataset is not None:
        has_order = dataset.timestamps is not None or dataset.manifest["config"]["order"]
        table |= {} if has_order else UNORDERED
        ks = [k for k in EvaluationConfig().ks if k <= dataset.num_items]
        table["evaluation"] = {"ks": ks, "metric": f"ndcg@{max(k for k in ks if k <= 10)}"}
    return parse_config(with_overrides(table, overrides), "default recipe")
