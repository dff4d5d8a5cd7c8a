"""The checkpoints of one run: the last step, the step before it, and validated models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from candid.atomic import remove_folder
from candid.batches import Loader
from candid.distributed import Group
from candid.errors import ConfigError
from candid.towers import sharded_tables
from candid.training.average import WeightAverage
from candid.training.checkpoint import (
    RESTORE,
    RUN,
    Checkpoint,
    DamagedCheckpointError,
    check_has_training_state,
    load_loss,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from candid.training.last_checkpoint import (
    LAST,
    PREVIOUS,
    SHARDS,
    read_last_checkpoint,
    read_last_shards,
)
from candid.training.optimizer import ModelOptimizer
from candid.training.shard_checkpoint import shard_checkpoints, write_shards
from candid.training.shard_export import export_shards
from candid.training.state import Progress, TrainState
from candid.training.step import Step

BEST: Final = "best.safetensors"
"""Checkpoint of the best validation."""

_VALIDATED = re.compile(r"step-(\d+)\.safetensors")


def validated_checkpoint(step: int) -> str:
    """Return the file of the model validated at a step, below the folder of the run."""
    return f"{SHARDS}/step-{step}.safetensors"


class RunCheckpoints:
    """Writes and reads the checkpoints of a training in the folder of its run.

    With several processes all read, and rank 0 alone writes. With sharded tables every process
    writes and reads its rows, and rank 0 alone joins them to the files that serving reads.

    Args:
        folder: of the run.
        model: on its device.
        optimizer: of the model.
        average: mean of the weights, or None.
        step: has the generator of the samples, and the loss with its sampler.
        loader: its position is stored.
        state: progress of the run; ``load`` writes to it.
        meta: plain JSON values stored in every checkpoint. With an id under "run", a checkpoint
            of another run is refused.
        keep: which validated models stay, as ``TrainingConfig.keep``.
        group: the processes, which call all methods together.
    """

    def __init__(
        self,
        *,
        folder: Path,
        model: nn.Module,
        optimizer: ModelOptimizer,
        average: WeightAverage | None,
        step: Step,
        loader: Loader,
        state: TrainState,
        meta: dict[str, Any],
        keep: str,
        group: Group,
    ) -> None:
        self._folder = folder
        self._model = model
        self._optimizer = optimizer
        self._average = average
        self._step = step
        self._loader = loader
        self._state = state
        self._meta = meta
        self._keep = keep
        self._last_is_damaged = False
        self._group = group
        self._is_sharded = bool(sharded_tables(model))

    def save(self, path: Path | str) -> None:
        """Write a checkpoint from which ``load`` continues exactly.

        An earlier ``last.safetensors`` of the run stays as ``previous.safetensors``.

        Raises:
            ConfigError: the tables are sharded over several processes.
        """
        if self._is_sharded and not self._group.is_single:
            raise ConfigError(
                f"{path} cannot hold tables that are sharded over several processes: use "
                "candid.training.write_shards"
            )
        is_last = Path(path) == self._folder / LAST
        keep = self._folder / PREVIOUS if is_last and not self._last_is_damaged else None
        write_checkpoint(path, self._checkpoint(), keep=keep)
        self._last_is_damaged &= not is_last

    def save_last(self) -> None:
        """Write the checkpoint of the last step."""
        if self._is_sharded:
            shards = self._folder / SHARDS
            if self._last_is_damaged and self._group.is_main:
                # Else it would stay in place of the good one before it.
                for damaged in shard_checkpoints(shards)[:1]:
                    remove_folder(damaged)
            self._last_is_damaged = False
            write_shards(shards, self._state.step, self._checkpoint(), self._model, self._group)
        elif self._group.is_main:
            self.save(self._folder / LAST)

    @property
    def last_path(self) -> Path:
        """File or folder of the checkpoint of the last step."""
        if self._is_sharded:
            return self._folder / SHARDS / f"step-{self._state.step}"
        return self._folder / LAST

    def export_last(self) -> None:
        """Join the parts of the last checkpoint to ``last.safetensors``, at the end of a run."""
        is_new = self._is_sharded and self.last_path in shard_checkpoints(self._folder / SHARDS)
        if is_new and self._group.is_main:
            export_shards(self.last_path, self._folder / LAST, weights_only=False)

    def _checkpoint(self) -> Checkpoint:
        tensors = model_tensors(self._model) | optimizer_tensors(self._model, self._optimizer)
        if self._average is not None:
            tensors |= self._average.tensors()
        generator = self._step.generator
        tensors["random/cpu"] = torch.get_rng_state()
        tensors["random/samples"] = generator.get_state()
        if self._step.candidate_loss is not None:
            state = self._step.candidate_loss.state_dict()
            tensors |= {f"loss/{name}": tensor for name, tensor in state.items()}
        if generator.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(generator.device)
        position = self._loader.position
        meta = self._meta | {
            "state": vars(self._state),
            "position": {"epoch": position.epoch, "step": position.step},
        }
        if self._average is not None:
            meta |= self._average.meta()
        return Checkpoint(tensors, meta)

    def save_validated(self, is_best: bool) -> None:
        """Write the weights that were just validated, where they stay.

        Args:
            is_best: whether the validation is the best one so far.
        """
        names = [validated_checkpoint(self._state.step)] if self._keep == "all" else []
        if is_best and self._keep != "none":
            names.append(BEST)
        if not names:
            return
        meta = self._meta | {"state": vars(self._state)}
        weights = Checkpoint(model_tensors(self._model), meta)
        if self._is_sharded:
            folder = self._folder / SHARDS / "validated"
            path = write_shards(folder, self._state.step, weights, self._model, self._group, kept=1)
            if self._group.is_main:
                for name in names:
                    export_shards(path, self._folder / name)
                remove_folder(folder)
        elif self._group.is_main:
            for name in names:
                write_checkpoint(self._folder / name, weights)

    def load(self, path: Path | str) -> None:
        """Continue from a checkpoint of the same model, loader and seed.

        Raises:
            ArtifactError: the checkpoint is damaged, or of another run, model or dataset.
        """
        checkpoint = read_checkpoint(path, run=self._meta.get(RUN))
        check_has_training_state(checkpoint, path)
        self._continue_from(checkpoint, path)

    def _continue_from(self, checkpoint: Checkpoint, path: Path | str) -> None:
        self._load_tensors(checkpoint, path, checkpoint.meta["state"]["step"])
        if self._step.candidate_loss is not None:
            load_loss(self._step.candidate_loss, checkpoint, path)
        stored, state = checkpoint.meta["state"], self._state
        present = {
            "total_steps": state.total_steps + stored["start_step"],
            "metric": state.metric,
        }
        vars(state).update(stored | present)
        self._loader.position.epoch = checkpoint.meta["position"]["epoch"]
        self._loader.position.step = checkpoint.meta["position"]["step"]

    def resume(self, progress: Progress | None, *, reports: bool = True) -> None:
        """Continue from the last checkpoint, or from the one before it if that is damaged.

        Args:
            progress: receives a sentence about a damaged checkpoint; None: it is a warning.
            reports: False leaves the sentence to another process.

        Raises:
            ArtifactError: both are damaged, or the best weights so far are.
        """
        run, shards = self._meta.get(RUN), self._folder / SHARDS
        if self._is_sharded and shard_checkpoints(shards):
            found = read_last_shards(shards, self._model, self._group, run=run)
            check_has_training_state(found.checkpoint, found.path)
        else:
            found = read_last_checkpoint(self._folder, run=run)
        self._continue_from(found.checkpoint, found.path)
        self._last_is_damaged = found.damage is not None
        if reports:
            found.report(progress)
        if self._state.best is not None and self._keep != "none":
            self._check_best()
        if self._group.is_main:
            self._forget_later_models()

    def forget_previous(self) -> None:
        """Remove the checkpoints of an earlier start of a run that begins again."""
        (self._folder / PREVIOUS).unlink(missing_ok=True)
        if (self._folder / SHARDS).exists():
            remove_folder(self._folder / SHARDS)

    def _forget_later_models(self) -> None:
        """Remove models of validations after the checkpoint: training validates there again."""
        for path in (self._folder / SHARDS).glob("*"):
            match = _VALIDATED.fullmatch(path.name)
            if match is not None and int(match[1]) > self._state.step:
                path.unlink()

    def begin_with(self, start: Checkpoint) -> None:
        """Take over weights, and states and counts where the start has them."""
        path = self._folder / LAST
        step = start.meta.get("step", 0)
        self._load_tensors(start, path, step)
        if self._step.candidate_loss is not None and start.part("loss"):
            load_loss(self._step.candidate_loss, start, path)
        state = self._state
        state.step = state.start_step = step
        state.epoch = state.start_epoch = start.meta.get("epoch", 0)
        state.total_steps += step
        self._loader.position.epoch = state.epoch

    def _check_best(self) -> None:
        """Refuse to continue without the best weights so far, which no later step may replace."""
        path = self._folder / BEST
        if not path.exists():
            raise DamagedCheckpointError(f"{path} is missing: {RESTORE}")
        if self._group.is_main or not self._is_sharded:
            read_checkpoint(path, run=self._meta.get(RUN))

    def _load_tensors(self, checkpoint: Checkpoint, path: Path | str, step: int) -> None:
        load_model(self._model, checkpoint, path)
        load_optimizer(self._model, self._optimizer, checkpoint)
        if self._average is not None:
            self._average.load(checkpoint, step)
        random, generator = checkpoint.part("random"), self._step.generator
        if random:
            torch.set_rng_state(random["cpu"])
            generator.set_state(random["samples"])
        if "cuda" in random and generator.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], generator.device)
