"""Training of a run: the model of a config, fitted to a prepared dataset, in a folder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from candid.batches import Loader, NewTargets, epoch_targets
from candid.checksums import write_sealed_json
from candid.config import RunConfig
from candid.data import PreparedDataset, as_dataset, with_all_training
from candid.distributed import Group, job_id, open_group
from candid.errors import ConfigError, DataError
from candid.runs.build import (
    build_model,
    build_objective,
    check_can_rank_cold_items,
    check_dataset_matches,
    check_sampler_covers_catalog,
    pick_device,
    set_threads,
)
from candid.runs.earlier_run import open_earlier_run
from candid.runs.features import (
    check_features_are_read,
    extend_features,
    fit_features,
    read_features,
)
from candid.runs.folder import (
    BEFORE_REFIT,
    MANIFEST,
    check_resumable,
    check_stored_no_weights,
    new_manifest,
    result_of,
    store_dataset,
)
from candid.runs.refit import (
    REFIT,
    Refit,
    check_can_refit,
    check_has_first_pass,
    check_resumes_refit,
    read_refit,
)
from candid.runs.run_start import JOB, RunStart, run_folder, shared_training_folder
from candid.runs.trained_ids import TrainedIds, find_new_targets, restored_ids
from candid.runs.validation import validation_function
from candid.runs.warm_start import (
    check_resumes_init,
    check_same_event_types,
    check_same_features,
    warm_start,
)
from candid.towers import num_parameters, sharded_from_start
from candid.training import (
    RUN,
    Progress,
    Trainer,
    TrainState,
    UnsetWeights,
    bound_kernel_cache,
    has_checkpoint,
)
from candid.version import __version__


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training run.

    Attributes:
        folder: the folder of the run.
        state: progress of the training when it stopped.
        manifest: content of ``run.json``.
        is_main: whether this process wrote the folder: rank 0 of several.
    """

    folder: Path
    state: TrainState
    manifest: dict[str, Any] = field(repr=False)
    is_main: bool = True

    @property
    def measured(self) -> Path:
        """Folder of the run to measure: with a refit, that of the model before the refit."""
        return self.folder / BEFORE_REFIT if REFIT in self.manifest else self.folder


def train_run(
    config: RunConfig,
    data: PreparedDataset | Path | str,
    out: Path | str,
    *,
    init: Path | str | None = None,
    resume: bool = False,
    refit: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the run of a config and write everything to ``out``.

    A dataset in memory is stored in the folder ``data`` of the run, where ``load_run`` finds it.

    Under torchrun all processes call this, with the same arguments. They train one model, each
    with its share of every batch; the result is that of one process up to rounding. Rank 0 alone
    writes; the folder and the dataset must be visible to all.

    Args:
        config: of the run.
        data: a prepared dataset, or its folder.
        out: folder of the run: new or empty, or with ``resume`` that of an earlier run.
        init: folder of an earlier run whose weights the training starts from, mapped by source id;
            its fitted features are used. A resumed run has it stored, and another one is refused.
            Both passes of a refit start from it.
        resume: continue an interrupted run of the same config and dataset.
        refit: train twice. The first pass, in ``out / "before-refit"``, validates and can be
            measured; the second trains a new model on all interactions, those of validation and
            test included, for as many epochs as validation chose (``candid.runs.refit.Refit``
            states the rule). ``out`` holds the second model.
        progress: called with steps and validations.

    Raises:
        ConfigError: ``out`` already holds a run, the config cannot work (such as a sampled
            softmax over items that its sampler can never draw), a refit has no validation split,
            or the run to resume was not started from ``init``. A run that fails before its first
            step leaves no file behind.
        DataError: no validation target can be recommended.
        ArtifactError: the dataset is not the one of the config or of the run to resume, or a
            checkpoint is damaged.
        Interrupted: stopped by a signal, after a checkpoint.
        PeerError: another process failed; it reports why.
        PeerInterrupted: another process was interrupted.
        ProcessGroupError: the other processes cannot be reached.
    """
    out = Path(out)
    with open_group(config.training.timeout_seconds) as group:
        if config.sampler is not None and not group.is_single:
            config.training.check_fits_processes()
        dataset = as_dataset(data, wait=False)
        check_dataset_matches(config, dataset)
        with shared_training_folder(group, out, dataset, init, resume=resume, refit=refit) as start:
            shown = progress if group.is_main else None
            result = _train_in(group, out, config, dataset, start, refit, shown)
            # Rank 0 has written the folder: the others may read it.
            group.barrier()
            return result


def _train_in(
    group: Group,
    out: Path,
    config: RunConfig,
    dataset: PreparedDataset,
    start: RunStart,
    refit: bool,
    progress: Progress | None,
) -> TrainResult:
    if start.resume:
        check_resumes_refit(out, refit)
    if not refit:
        return _train(group, config, dataset, out, start.init, start.resume, progress, None, start)
    check_can_refit(dataset)
    init: Path | str | None = start.init
    record = read_refit(out, config) if start.resume else None
    resumes_refit = record is not None
    if resumes_refit:
        check_has_first_pass(out)
    if record is None:
        first_out = out / BEFORE_REFIT
        first = _train(group, config, dataset, first_out, init, start.resume, progress, None, start)
        init = None if first.manifest["init"] is None else first.manifest["init"]["run"]
        record = Refit.of(first.state, first.manifest["steps_per_epoch"])
    return _train(group, config, dataset, out, init, resumes_refit, progress, record, start)


def _train(
    group: Group,
    config: RunConfig,
    dataset: PreparedDataset,
    out: Path,
    init: Path | str | None,
    resume: bool,
    progress: Progress | None,
    refit: Refit | None,
    start_in: RunStart,
) -> TrainResult:
    """Train one model.

    Args:
        group: processes that train together; rank 0 alone writes.
        config: of the run.
        dataset: the prepared dataset.
        out: folder of the run.
        init: as for ``train_run``.
        resume: continue from the checkpoint in ``out``.
        progress: called with steps and validations.
        refit: the record of the refit that this is: all interactions train, and the record
            decides the length; None: the training interactions, and the config and the
            validation decide.
        start_in: the start in the folder of the whole training.
    """
    bound_kernel_cache()
    set_threads(config.threads)
    device = pick_device(config.device, group)
    manifest, stored = new_manifest(config, dataset, device, out), dataset
    manifest |= {RUN: uuid.uuid4().hex, "init": None, "event_types": list(dataset.event_type_names)}
    if refit is not None:
        dataset = with_all_training(dataset)
    if resume:
        # Fitted features are read, not fitted again: another machine might round differently.
        before = check_resumable(out, manifest)
        check_resumes_init(out, before, init)
        features = read_features(config.features, dataset, out, before.get("features"))
        manifest[RUN], manifest["init"] = before.get(RUN), before.get("init")
        init = None if manifest["init"] is None else manifest["init"]["run"]
    elif init is not None:
        earlier = open_earlier_run(init)
        check_same_event_types(earlier, dataset)
        check_same_features(earlier, config)
        fitted = earlier.manifest.get("features")
        features = read_features(config.features, dataset, earlier.folder, fitted)
        features = extend_features(features, config.features, dataset)
    else:
        features = fit_features(config.features, dataset)
    manifest["features"] = features.fingerprint
    if (job := job_id()) is not None:
        manifest[JOB] = job
    _check_same_input(group, config, manifest)
    manifest[RUN] = group.broadcast_json(manifest[RUN])
    torch.manual_seed(config.seed)
    # A run that stopped before its first checkpoint starts again from the beginning.
    goes_on = resume and has_checkpoint(out)
    if resume and not goes_on:
        check_stored_no_weights(out, before)
    # A warm start maps the rows of whole tables.
    shards_from_start = config.training.shards_tables and (init is None or goes_on)
    # Every process would sample whole tables, of which the checkpoint has all numbers.
    unset = UnsetWeights() if goes_on else nullcontext()
    with sharded_from_start(group if shards_from_start else None), unset:
        model = build_model(config, dataset, features, is_read=goes_on or init is not None)
    start = None
    if init is not None and not goes_on:
        start = warm_start(open_earlier_run(init), config, dataset, model)
        manifest["init"] = start.facts
    model = model.to(device)
    check_features_are_read(features, model)
    new = _new_targets(config, dataset, init)
    targets = dealt = epoch_targets(dataset, config.batches)
    if new is not None:
        # What is trained and evaluated are all targets; candidates follow those that are dealt.
        dealt = epoch_targets(dataset, config.batches, new)
    loss, sampler = build_objective(config, dataset, dealt.counts)
    if not resume:
        check_can_rank_cold_items(config, model)
        check_sampler_covers_catalog(config, dataset, sampler, dealt.counts)
    loader = Loader(
        dataset, config.batches, seed=config.seed, context=features.context_for(dataset), new=new
    )
    training, validate, sentence = config.training, None, dealt.summary.sentence()
    if config.training.epochs_new is not None:
        training = training.model_copy(update={"epochs": config.training.epochs_new})
    if refit is None:
        validate, validation_sentence = validation_function(
            config,
            dataset,
            features,
            item_counts=targets.counts,
            needs_history=model.needs_history,
            group=group,
        )
        sentence += validation_sentence
    else:
        refit = refit.with_epochs_of(loader.num_batches)
        training = training.model_copy(update={"max_seconds": None})
        sentence = f"{refit.sentence()}; {sentence}"
        manifest[REFIT] = refit.to_json()
    trainer = Trainer(
        model=model,
        loader=loader,
        loss=loss,
        sampler=sampler,
        config=training,
        folder=out,
        name=config.name,
        seed=config.seed,
        item_is_trained=torch.from_numpy(targets.counts > 0),
        validate=validate,
        metric=config.evaluation.metric,
        meta={"dataset": manifest["dataset"]["fingerprint"], RUN: manifest[RUN]},
        progress=progress,
        length=None if refit is None else refit.length,
        start=None if start is None else start.checkpoint,
        group=group,
    )
    manifest["steps_per_epoch"] = loader.num_batches
    manifest["targets"] = dealt.summary.to_json()
    manifest["parameters"] = num_parameters(model)
    dataset.wait_until_verified()
    kept = start_in.kept | ({BEFORE_REFIT} if refit is not None else set())
    writes_new = group.is_main and not resume
    with run_folder(out, trainer, kept) if writes_new else nullcontext():
        if not group.is_main:
            pass
        elif not resume:
            features.write(out)
            manifest["files"] = TrainedIds.of(dataset, config.batches).write(out)
        else:
            manifest["files"] = restored_ids(out, before, dataset, config.batches)
        if group.is_main:
            store_dataset(out, stored)
            manifest = write_sealed_json(out / MANIFEST, manifest)
        if progress is not None:
            if (start_in.begins_again and refit is None) or (resume and not goes_on):
                sentence = f"stopped before the first checkpoint, begins again; {sentence}"
            progress.on_start(sentence if start is None else sentence + start.sentence)
        state = trainer.run(resume=goes_on)
    manifest["result"] = result_of(state, device, training.keep)
    if group.is_main:
        manifest = write_sealed_json(out / MANIFEST, manifest)
    return TrainResult(out, state, manifest, group.is_main)


def _check_same_input(group: Group, config: RunConfig, manifest: Mapping[str, Any]) -> None:
    """Refuse processes that read other datasets or recipes.

    Raises:
        ConfigError: they differ; names what does.
    """
    group.check_same(
        {
            "dataset": manifest["dataset"]["fingerprint"],
            "features": json.dumps(manifest["features"], sort_keys=True),
            "recipe": config.model_dump_json(),
            "version of candid": __version__,
        }
    )


def _new_targets(
    config: RunConfig, dataset: PreparedDataset, init: Path | str | None
) -> NewTargets | None:
    """Return the targets that an earlier run did not have; None without ``epochs_new``.

    Raises:
        ConfigError: there is no earlier run.
        DataError: there is no new target.
    """
    if config.training.epochs_new is None:
        return None
    if init is None:
        raise ConfigError(
            "training.epochs_new needs the earlier run whose targets are not new: name it with "
            "init (--init), or set training.epochs"
        )
    earlier = open_earlier_run(init)
    first_new = find_new_targets(earlier.ids.users, dataset, str(init))
    if (first_new == dataset.user_offsets[1:]).all():
        raise DataError(
            f"the dataset has no training interaction that {init} did not train on: leave out "
            "training.epochs_new (--epochs-new), or prepare the dataset with newer data"
        )
    return NewTargets(first_new, config.training.replay)
