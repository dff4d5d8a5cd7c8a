"""The training loop: batch, gradients, step of the optimizer; validation and early stopping.

A run can be interrupted at any step. It resumes from one checkpoint with the loader's position,
every random state and the optimizer's moments, so that a resumed run takes the same steps as an
uninterrupted one.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from candid.batches import Batch, Loader
from candid.distributed import Group
from candid.errors import CandidError, ConfigError, Interrupted
from candid.losses.candidate_loss import ObjectiveWithSampler
from candid.losses.output import Loss, LossOutput
from candid.samplers.sampler import Sampler
from candid.towers import RetrievalModel, sharded_tables
from candid.training.average import WeightAverage
from candid.training.checkpoint import Checkpoint
from candid.training.config import TrainingConfig
from candid.training.kernel_cache import bound_kernel_cache
from candid.training.optimizer import clipped_norm, learning_rate, make_optimizer
from candid.training.run_checkpoints import RunCheckpoints
from candid.training.state import Progress, TrainingLength, TrainState
from candid.training.step import Step
from candid.training.step_values import RowRate
from candid.training.stop_signal import stop_signal
from candid.training.trackers import Tracker, open_trackers


class DivergedError(CandidError):
    """The loss is NaN or infinite."""


class Trainer:
    """The training loop of one model, with checkpoints and logs in one folder.

    Args:
        model: on its device.
        loader: batches; checkpoints store its position.
        loss: objective; if it needs candidates, ``sampler`` must be given.
        sampler: source of the candidates, or None.
        config: settings.
        folder: folder of the run; must exist.
        name: name of the run, for trackers.
        seed: seed of dropout and of the sampler.
        item_is_trained: [V] bool, needed if ``config.softmax_over`` is "trained".
        validate: returns validation metrics of the current model, by name. None: no validation.
        metric: name of the metric for early stopping (larger is better), needed to validate.
        meta: plain JSON values stored in every checkpoint (fingerprints, resolved config). With
            an id under "run", a checkpoint of another run is refused.
        progress: display of steps and validations, or None.
        length: largest number of steps and length of the schedule; None: of the settings.
        start: what a new run begins with: weights, and optionally states of the optimizer, of the
            random generators and of the loss, with "step" and "epoch" in ``meta`` to count on from
            there without a warm-up. None: the weights of ``model``.
        group: processes that train together, each with its share of every batch; rank 0 alone
            writes to the folder. None: this process alone.

    Raises:
        ConfigError: loss and sampler do not fit together, or settings and the number of processes;
            or ``item_is_trained`` or ``metric`` is missing.
    """

    def __init__(
        self,
        *,
        model: RetrievalModel,
        loader: Loader,
        loss: Loss,
        sampler: Sampler | None,
        config: TrainingConfig,
        folder: Path | str,
        name: str = "run",
        seed: int = 0,
        item_is_trained: Tensor | None = None,
        validate: Callable[[RetrievalModel], Mapping[str, float]] | None = None,
        metric: str | None = None,
        meta: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        length: TrainingLength | None = None,
        start: Checkpoint | None = None,
        group: Group | None = None,
    ) -> None:
        if loss.needs_candidates and sampler is None:
            raise ConfigError("this loss needs candidates: add a section [sampler]")
        if validate is not None and metric is None:
            raise ConfigError(
                "validation needs the name of the metric for early stopping: pass metric"
            )
        group = Group() if group is None else group
        if sampler is not None and not group.is_single:
            config.check_fits_processes()
        if config.shards_tables and not group.is_single:
            _check_reads_by_id(sampler)
        bound_kernel_cache()
        self.model = model
        self.loader = loader
        self.loss = loss
        self.config = config
        self.folder = Path(folder)
        self.name = name
        self.validate = validate
        self.meta = dict(meta or {})
        self.progress = progress
        self.group = group
        self.optimizer = make_optimizer(model, config, group)
        self.average = (
            None
            if config.average is None
            else WeightAverage(model, decay=config.average, rows=self.optimizer.rows)
        )
        total = min(loader.num_batches * config.epochs, config.max_steps or sys.maxsize)
        self._length = TrainingLength(total, total) if length is None else length
        self.state = TrainState(total_steps=self._length.steps, metric=metric)
        self._step = Step(
            model=model,
            loss=loss,
            sampler=sampler,
            config=config,
            micro_batch=loader.config.micro_batch,
            seed=seed,
            item_is_trained=item_is_trained,
            group=self.group,
        )
        self._checkpoints = RunCheckpoints(
            folder=self.folder,
            model=model,
            optimizer=self.optimizer,
            average=self.average,
            step=self._step,
            loader=loader,
            state=self.state,
            meta=self.meta,
            keep=config.keep,
            group=self.group,
        )
        self._seed = seed
        self._start = start
        self._trackers: list[Tracker] = []
        self._saved_step: int | None = None

    @property
    def candidate_loss(self) -> ObjectiveWithSampler | None:
        """The loss with its sampler; None for a loss over the whole catalog."""
        return self._step.candidate_loss

    def run(self, resume: bool = False) -> TrainState:
        """Train until a stopping rule of the settings holds, from the start or a checkpoint.

        Args:
            resume: continue from ``last.safetensors``; if that is damaged or missing, from
                ``previous.safetensors``.

        Returns:
            the state at the end of training.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; a checkpoint was written.
            DivergedError: the loss became NaN or infinite.
            ArtifactError: the checkpoint to resume from is damaged or of another model.
        """
        torch.manual_seed(self._seed)
        self._step.seed_samples()
        if resume:
            self._checkpoints.resume(self.progress, reports=self.group.is_main)
        else:
            if self.group.is_main:
                self._checkpoints.forget_previous()
            if self._start is not None:
                self._checkpoints.begin_with(self._start)
        position = self.loader.position
        where = f"step {self.state.step}, epoch {position.epoch}, batch {position.step}"
        # The folder of the run may have another checkpoint, or none, on another machine.
        self.group.check_same({"checkpoint": where if resume else "none"})
        # Other machines may round the initial weights differently.
        sharded = sharded_tables(self.model)
        shared = [p for name, p in self.model.named_parameters() if name not in sharded]
        self.group.broadcast_([*shared, *self.model.buffers()], "weights")
        if self.group.is_main:
            from_step = self.state.step if resume else None
            self._trackers = open_trackers(self.config.trackers, self.folder, self.name, from_step)
        with ExitStack() as closers:
            for tracker in self._trackers:
                closers.callback(tracker.close)
            stop = closers.enter_context(stop_signal())
            while not self._finished():
                self._train_part(stop)
            self._checkpoints.export_last()
            # Rank 0 has written the last files.
            self.group.barrier()
        return self.state

    def step(
        self, batch: Batch, effective_sample_size: bool = False
    ) -> tuple[Tensor, LossOutput, Tensor]:
        """Take one optimizer step.

        Args:
            batch: the whole batch; on the CPU if there is a micro-batch or several processes.
            effective_sample_size: report ``effective_sample_size`` (costs a pass over the scores).

        Returns:
            the mean loss [] (detached), the output of the rows of this process, and the gradient
            norm [] before clipping.
        """
        self.optimizer.zero_grad()
        value, output = self._step.gradients(batch, self.state.step, effective_sample_size)
        # The schedule is that of this run; one that continues another has no warm-up.
        skipped = self.config.warmup_steps if self.state.start_step else 0
        rate = learning_rate(
            self.config,
            self.state.step - self.state.start_step + skipped,
            self._length.schedule_steps + skipped,
        )
        norm = self.optimizer.step(rate, self.config.clip_norm)
        self.state.step += 1
        self.state.rows += len(batch)
        if self.average is not None:
            self.average.update(self.state.step)
        return value, output, norm

    def save(self, path: Path | str) -> None:
        """Write a checkpoint from which ``load`` continues exactly.

        An earlier ``last.safetensors`` of the run stays as ``previous.safetensors``.
        """
        self._checkpoints.save(path)

    def load(self, path: Path | str) -> None:
        """Continue from a checkpoint of the same model, loader and seed.

        Raises:
            ArtifactError: the checkpoint is damaged, or of another run, model or dataset.
        """
        self._checkpoints.load(path)

    def _finished(self) -> bool:
        config, state = self.config, self.state
        return (
            state.step >= state.total_steps
            or state.epoch - state.start_epoch >= config.epochs
            or (config.patience is not None and state.stale >= config.patience)
            or (config.max_seconds is not None and state.seconds >= config.max_seconds)
        )

    def _validation_is_due(self) -> bool:
        return self._is_due(self.config.validate_every_steps, self.config.validate_every)

    def _checkpoint_is_due(self) -> bool:
        return self._is_due(self.config.checkpoint_every_steps, self.config.checkpoint_every)

    def _is_due(self, steps: int | None, epochs: int) -> bool:
        if steps is not None:
            return self.state.step % steps == 0
        position = self.loader.position
        return position.step == 0 and position.epoch % epochs == 0

    def _train_part(self, stop: threading.Event) -> None:
        """Train to the end of the epoch, or to what is due, a limit or a signal within it."""
        state, started, cpu_started = self.state, time.perf_counter(), time.process_time()
        seconds_left = (self.config.max_seconds or float("inf")) - state.seconds
        epoch = self.loader.position.epoch
        self.model.train()
        window, value = RowRate(), torch.zeros(())
        with closing(self.loader.epoch()) as batches:
            for batch in batches:
                logs = (state.step + 1) % self.config.log_every == 0
                batch = self._step.placed(batch)
                value, output, norm = self.step(batch, effective_sample_size=logs)
                window.add(len(batch))
                if logs:
                    self._log_step(epoch, value, output, norm, len(batch), window)
                    window = RowRate()
                over_time = time.perf_counter() - started >= seconds_left
                # All processes end the epoch after the same step.
                stops, over_time = map(bool, self.group.largest([stop.is_set(), over_time], "stop"))
                is_over = stops or over_time or state.step >= state.total_steps
                if is_over or self._validation_is_due() or self._checkpoint_is_due():
                    break
        self._check_finite(value)
        self._add_time(started, cpu_started, is_training=True)
        state.epoch = self.loader.position.epoch
        self._end_part()
        # A signal may have reached one process meanwhile, and all of them must agree.
        if any(self.group.largest([stop.is_set()], "stop")):
            self._interrupt()

    def _end_part(self) -> None:
        """Validate and write a checkpoint where they are due, and after the last step."""
        started, cpu_started = time.perf_counter(), time.process_time()
        if self.validate is not None and (self._validation_is_due() or self._finished()):
            with nullcontext() if self.average is None else self.average.in_place():
                self._validate()
        self._add_time(started, cpu_started, is_training=False)
        if self._checkpoint_is_due() or self._finished():
            self._save_last()

    def _add_time(self, started: float, cpu_started: float, is_training: bool) -> None:
        """Add the time since both starts: that of the slowest process, and the CPU time of all."""
        (seconds,) = self.group.largest([time.perf_counter() - started])
        cpu = torch.tensor([time.process_time() - cpu_started], dtype=torch.float64)
        self.state.seconds += seconds
        self.state.train_seconds += seconds if is_training else 0.0
        self.state.cpu_seconds += float(self.group.sum(cpu))

    def _save_last(self) -> None:
        # The log first: a resume continues after the steps of the checkpoint.
        for tracker in self._trackers:
            tracker.flush()
        self._checkpoints.save_last()
        self._saved_step = self.state.step

    def _validate(self) -> None:
        assert self.validate is not None
        metrics = dict(self.validate(self.model))
        state = self.state
        self._checkpoints.save_validated(state.update_best(metrics))
        line = {
            "epoch": state.epoch,
            "seconds": round(state.seconds, 3),
            "cpu_seconds": round(state.cpu_seconds, 3),
        } | {f"validation/{name}": value for name, value in metrics.items()}
        state.history.append({"step": state.step, **line})
        for tracker in self._trackers:
            tracker.log(state.step, line)
        if self.progress is not None:
            self.progress.on_validation(state, metrics)

    def _log_step(
        self,
        epoch: int,
        value: Tensor,
        output: LossOutput,
        norm: Tensor,
        num_rows: int,
        window: RowRate,
    ) -> None:
        metrics = {
            "loss": float(value),
            "sample_weight": self._mean(output.sample_weight, num_rows),
            "gradient_norm": float(norm),
            "gradient_norm_clipped": float(clipped_norm(norm, self.config.clip_norm)),
            "lr": self.optimizer.lr,
            "rows_per_second": window.rate(),
            "epoch": epoch,
        }
        if output.effective_sample_size is not None:
            metrics["effective_sample_size"] = self._mean(output.effective_sample_size, num_rows)
        if self.candidate_loss is not None:
            metrics |= self.candidate_loss.metrics()
        self._check_finite(value)
        for tracker in self._trackers:
            tracker.log(self.state.step, metrics)
        if self.progress is not None:
            self.progress.on_step(self.state, metrics)

    def _mean(self, values: Tensor, num_rows: int) -> float:
        """Return the mean over the rows of a batch, of which this process has a share."""
        if self.group.is_single:
            return float(values.mean())
        return float(self.group.sum(values.sum())) / num_rows

    def _check_finite(self, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise DivergedError(
                f"the loss became {float(value)} by step {self.state.step}: lower training.lr, "
                "or set training.clip_norm"
            )

    def _interrupt(self) -> None:
        if self._saved_step != self.state.step:  # The checkpoint before it stays.
            self._save_last()
        # A process that ends earlier would end rank 0 while it writes.
        self.group.barrier()
        path = self._checkpoints.last_path
        raise Interrupted(
            f"stopped at step {self.state.step} and wrote {path}: run the same command with "
            "--resume to continue"
        )


def _check_reads_by_id(sampler: Sampler | None) -> None:
    """Refuse a sampler that needs all rows of a sharded table."""
    if sampler is not None and sampler.refresh_every is not None:
        raise ConfigError(
            "this sampler needs the vectors of all items, and no process holds all rows of sharded "
            "tables: choose a sampler that does not follow the model, or set training.tables "
            "without 'sharded_'"
        )
