"""From a config and a prepared dataset to a trained, measured model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from candid.atomic import write_json
from candid.batches import Loader
from candid.config import RunConfig, parse_config
from candid.data import PreparedDataset, Role, open_dataset
from candid.errors import ArtifactError, ConfigError
from candid.evaluation import EvaluationConfig, EvaluationReport, check_has_relevant, evaluate
from candid.losses import Loss, SampledSoftmax
from candid.runs.features import (
    RunFeatures,
    check_are_read,
    fit_features,
    read_features,
    tower_context,
)
from candid.runs.folder import (
    MANIFEST,
    check_fingerprint,
    check_resumable,
    claimed,
    new_manifest,
    read_manifest,
    result_of,
)
from candid.samplers import Sampler, check_support_covers
from candid.towers import RetrievalModel
from candid.training import (
    BEST,
    LAST,
    Progress,
    Trainer,
    TrainState,
    UnsetWeights,
    bound_kernel_cache,
    load_model,
    read_checkpoint,
)


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        folder: the run.
        state: where training stopped.
        manifest: what ``run.json`` says.
    """

    folder: Path
    state: TrainState
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A trained model with what it belongs to.

    Attributes:
        folder: the run.
        config: the resolved config.
        model: with the weights of the best validation (the last ones where there was none),
            in evaluation mode.
        dataset: the prepared dataset it was trained on.
        manifest: what ``run.json`` says.
        features: what it knows of users and items beside their ids.
    """

    folder: Path
    config: RunConfig
    model: RetrievalModel
    dataset: PreparedDataset
    manifest: dict[str, Any]
    features: RunFeatures

    @property
    def context_columns(self) -> frozenset[str]:
        """What the model reads of the moment of a question, as columns of ``context_frame``."""
        table = self.features.context
        if table is None or not self.model.reads_context:
            return frozenset()
        return frozenset(table.columns.values())


def train_run(
    config: RunConfig,
    data: Path | PreparedDataset,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train as ``config`` says and leave everything in ``out``.

    Args:
        config: the run.
        data: a prepared dataset, or its folder.
        out: the run's folder: new or empty, or with ``resume`` that of an earlier run.
        resume: continue an interrupted run of the same config and dataset.
        progress: told of steps and validations.

    Raises:
        ConfigError: ``out`` already holds a run, or the config cannot work, as where a sampled
            softmax is over items that its sampler can never draw; a run that fails before its
            first step leaves nothing behind.
        DataError: no validation target can be recommended.
        ArtifactError: the dataset is not the one the config or the run to resume was made
            for, or a checkpoint is damaged.
        Interrupted: stopped by a signal, after a checkpoint.
    """
    dataset = data if isinstance(data, PreparedDataset) else open_dataset(data)
    check_dataset_matches(config, dataset)
    bound_kernel_cache()
    set_threads(config.threads)
    device = pick_device(config.device)
    manifest = new_manifest(config, dataset, device)
    if resume:
        # What was learnt is read, not learnt again: another machine might round otherwise.
        before = check_resumable(out, manifest)
        features = read_features(config.features, dataset, out, before.get("features"))
    else:
        features = fit_features(config.features, dataset)
    manifest["features"] = features.fingerprint
    torch.manual_seed(config.seed)
    model = build_model(config, dataset, features).to(device)
    check_are_read(features, model)
    loss, sampler = build_objective(config, dataset)
    if not resume:
        check_catalog_fits(config, dataset, sampler)
    trainer = Trainer(
        model=model,
        loader=Loader(dataset, config.batches, config.seed, features.context_of(dataset)),
        loss=loss,
        sampler=sampler,
        config=config.training,
        folder=out,
        name=config.name,
        seed=config.seed,
        item_is_trained=torch.from_numpy(dataset.train_counts > 0),
        validate=_validation(config, dataset, features, needs_history=model.needs_history),
        metric=config.evaluation.metric,
        meta={"dataset": manifest["dataset"]["fingerprint"]},
        progress=progress,
    )
    manifest["parameters"] = sum(p.numel() for p in model.parameters())
    with nullcontext() if resume else claimed(out, trainer):
        if not resume:
            features.write(out)
        write_json(out / MANIFEST, manifest)
        # A run that was stopped before its first checkpoint goes on from its beginning.
        state = trainer.run(resume=resume and (out / LAST).exists())
    manifest["result"] = result_of(state, device)
    write_json(out / MANIFEST, manifest)
    return TrainResult(out, state, manifest)


def load_run(folder: Path, data: Path | PreparedDataset | None = None) -> Run:
    """Open a trained run.

    Args:
        folder: of ``train_run``.
        data: the prepared dataset, or its folder; None for the one that the run names.

    Raises:
        ArtifactError: not a run, no checkpoint, a damaged one, another dataset, or features
            that are not those of training.
    """
    manifest = read_manifest(folder)
    try:
        config = parse_config(manifest["config"], str(folder / MANIFEST))
    except ConfigError as error:
        raise ArtifactError(
            f"{error}; the file is damaged or of another version of candid: train again"
        ) from None
    if data is None:
        if manifest["dataset"]["path"] is None:
            raise ArtifactError(
                f"{folder} was trained on a dataset in memory: name one with --data"
            )
        data = Path(manifest["dataset"]["path"])
        if not data.exists():
            raise ArtifactError(
                f"{folder} was trained on {data}, which is no longer there: name the dataset "
                "with --data"
            )
    dataset = data if isinstance(data, PreparedDataset) else open_dataset(data)
    check_fingerprint(folder, manifest, dataset)
    set_threads(config.threads)
    features = read_features(config.features, dataset, folder, manifest.get("features"))
    with UnsetWeights():
        model = build_model(config, dataset, features)
    path = folder / BEST if (folder / BEST).exists() else folder / LAST
    load_model(model, read_checkpoint(path), path, averaged=True)
    model.to(pick_device(config.device)).eval()
    return Run(folder, config, model, dataset, manifest, features)


def evaluate_run(
    run: Run,
    role: Role = Role.TEST,
    config: EvaluationConfig | None = None,
    **options: Any,
) -> EvaluationReport:
    """Measure a run on a split; ``options`` go to ``evaluation.evaluate``."""
    return evaluate(
        run.model,
        run.dataset,
        config or run.config.evaluation,
        role=role,
        max_length=run.config.batches.max_length,
        context=run.features.context_of(run.dataset),
        **options,
    )


def build_model(
    config: RunConfig, dataset: PreparedDataset, features: RunFeatures | None = None
) -> RetrievalModel:
    """A fresh model for a dataset, on the CPU; ``features`` None: fitted here."""
    features = fit_features(config.features, dataset) if features is None else features
    return config.model.build(tower_context(dataset, config.batches, features))


def build_objective(config: RunConfig, dataset: PreparedDataset) -> tuple[Loss, Sampler | None]:
    """The loss and, where it needs one, the sampler."""
    counts = torch.from_numpy(dataset.train_counts)
    sampler = None if config.sampler is None else config.sampler.build(counts)
    return config.loss.build(dataset.num_items), sampler


def check_catalog_fits(
    config: RunConfig, dataset: PreparedDataset, sampler: Sampler | None
) -> None:
    """Refuse a sampled softmax over items that its sampler can never draw.

    Raises:
        ConfigError: naming the first by its source id, and the ways out.
    """
    if sampler is not None and isinstance(config.loss, SampledSoftmax.Config):
        check_support_covers(
            sampler,
            torch.from_numpy(dataset.train_counts > 0),
            config.training.softmax_over,
            dataset.items["source_id"].to_list(),
        )


def pick_device(name: str) -> torch.device:
    """The device of a config.

    Raises:
        ConfigError: unknown, not on this machine, or without float64.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Expected counts and exact search are worked in float64, which not every device has.
        torch.empty(0, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here: {reason}") from None
    return device


def set_threads(threads: int | None) -> None:
    """Use this many CPU threads; None leaves torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def check_dataset_matches(config: RunConfig, dataset: PreparedDataset) -> None:
    """Refuse a dataset that was prepared otherwise than the recipe's ``[data]`` says.

    Raises:
        ArtifactError: naming the first key that differs.
    """
    prepared = dataset.manifest.get("config")
    if config.data is None or prepared is None:
        return
    wanted = config.data.model_dump(mode="json")
    for key in sorted(wanted.keys() | prepared.keys()):
        if wanted.get(key) != prepared.get(key):
            raise ArtifactError(
                f"{dataset.path} was prepared with data.{key} = {prepared.get(key)!r}, the recipe "
                f"says {wanted.get(key)!r}: run candid prepare with this recipe, or name another "
                "dataset with --data"
            )


def _validation(
    config: RunConfig, dataset: PreparedDataset, features: RunFeatures, *, needs_history: bool
) -> Callable[[RetrievalModel], Mapping[str, float]] | None:
    """What training asks after an epoch; None where nothing is held out for it."""
    config.evaluation.check_fits(dataset.num_items)
    if not np.any(dataset.roles == Role.VALIDATION):
        return None
    settings, context = config.evaluation.during_training(), features.context_of(dataset)
    # An epoch may take hours, and what can be asked is known before it.
    check_has_relevant(dataset, settings, Role.VALIDATION, needs_history=needs_history)

    def validate(model: RetrievalModel) -> Mapping[str, float]:
        report = evaluate(
            model,
            dataset,
            settings,
            role=Role.VALIDATION,
            max_length=config.batches.max_length,
            context=context,
        )
        return report.summary()

    return validate
