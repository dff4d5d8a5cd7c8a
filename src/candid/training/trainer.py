"""The training loop: batch, encode, sample, compute loss, step; validation and early stopping.

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
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from candid.batches import Batch, Loader, Queries
from candid.errors import CandidError, ConfigError, Interrupted
from candid.features.transfer import to_device
from candid.losses.candidate_loss import ObjectiveWithSampler
from candid.losses.output import Loss, LossOutput
from candid.samplers.sampler import Sampler
from candid.towers import RetrievalModel
from candid.towers.row_noise import seed_noise
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
from candid.training.config import TrainingConfig
from candid.training.gradient_cache import GradientCache, WholeBatch
from candid.training.kernel_cache import bound_kernel_cache
from candid.training.last_checkpoint import LAST, PREVIOUS, read_last_checkpoint
from candid.training.optimizer import learning_rate, make_optimizer
from candid.training.state import Progress, TrainingLength, TrainState
from candid.training.step_values import RowRate, weighted_mean
from candid.training.stop_signal import stop_signal
from candid.training.trackers import open_trackers

SAMPLE_STREAM: Final = 1
NOISE_STREAM: Final = 2
"""Streams of random numbers of a seed: of the samples, and of dropout and hidden values."""

BEST: Final = "best.safetensors"
"""Checkpoint of the best validation."""


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

    Attributes:
        candidate_loss: the loss with its sampler; None for a loss over the whole catalog.

    Raises:
        ConfigError: loss and sampler do not fit together, or loss and ``config.tables``; or
            ``item_is_trained`` or ``metric`` is missing.
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
    ) -> None:
        if loss.needs_candidates and sampler is None:
            raise ConfigError("this loss needs candidates: add a section [sampler]")
        if validate is not None and metric is None:
            raise ConfigError(
                "validation needs the name of the metric for early stopping: pass metric"
            )
        if not loss.needs_candidates and config.tables != "dense":
            raise ConfigError(
                "this loss reads the whole catalog, so every row of the item table has a gradient: "
                "set training.tables = 'dense', or choose a loss with candidates"
            )
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
        self.optimizer = make_optimizer(model, config)
        self.average = (
            None if config.average is None else WeightAverage(model, decay=config.average)
        )
        total = min(loader.num_batches * config.epochs, config.max_steps or sys.maxsize)
        self._length = TrainingLength(total, total) if length is None else length
        self.state = TrainState(total_steps=self._length.steps, metric=metric)
        size = loader.config.micro_batch
        self._encoder = (
            WholeBatch(model, self._encode_queries)
            if size is None
            else GradientCache(model, self._encode_queries, size)
        )
        self._seed = seed
        self._last_is_damaged = False
        self._start = start
        self._trained: tuple[Tensor, Tensor] | None = None
        if config.softmax_over == "trained":
            if item_is_trained is None:
                raise ConfigError("training.softmax_over = 'trained' needs item_is_trained")
            is_trained = item_is_trained.to(model.device)
            self._trained = is_trained.nonzero()[:, 0], is_trained.cumsum(0) - 1
        self._generator = torch.Generator(device=model.device)
        self.candidate_loss: ObjectiveWithSampler | None = None
        if sampler is not None and loss.needs_candidates:
            self.candidate_loss = ObjectiveWithSampler(
                loss, sampler, num_groups=config.num_groups
            ).to(model.device)

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
        # Dropout and the sampler must not share a stream of random numbers.
        self._generator.manual_seed(_derived_seed(self._seed, SAMPLE_STREAM))
        if resume:
            self._resume()
        else:
            # That of an earlier start of a run that begins again.
            (self.folder / PREVIOUS).unlink(missing_ok=True)
            if self._start is not None:
                self._begin_with(self._start)
        trackers = open_trackers(
            self.config.trackers, self.folder, self.name, self.state.step if resume else None
        )
        self._trackers = trackers
        with ExitStack() as closers:
            for tracker in trackers:
                closers.callback(tracker.close)
            stop = closers.enter_context(stop_signal())
            while not self._finished():
                self._epoch(stop)
        return self.state

    def step(
        self, batch: Batch, effective_sample_size: bool = False
    ) -> tuple[Tensor, LossOutput, Tensor]:
        """Take one optimizer step.

        Args:
            batch: on the CPU or on the model's device.
            effective_sample_size: report ``effective_sample_size`` (costs a pass over the scores).

        Returns:
            the mean loss [] (detached), the output of the rows, and the gradient norm [] before
            clipping.
        """
        self.optimizer.zero_grad()
        seed_noise(self.model, _derived_seed(self._seed, NOISE_STREAM, self.state.step))
        output = self._forward(batch, effective_sample_size)
        weights = batch.weights
        mean = weighted_mean(output.loss, None if weights is None else self._placed(weights))
        self._encoder.backward(mean)
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
        return mean.detach(), output, norm

    def save(self, path: Path | str) -> None:
        """Write a checkpoint from which ``load`` continues exactly.

        An earlier ``last.safetensors`` of the run stays as ``previous.safetensors``.
        """
        tensors = model_tensors(self.model) | optimizer_tensors(self.model, self.optimizer)
        if self.average is not None:
            tensors |= self.average.tensors()
        tensors["random/cpu"] = torch.get_rng_state()
        tensors["random/samples"] = self._generator.get_state()
        if self.candidate_loss is not None:
            state = self.candidate_loss.state_dict()
            tensors |= {f"loss/{name}": tensor for name, tensor in state.items()}
        if self.model.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.model.device)
        position = self.loader.position
        meta = self.meta | {
            "state": vars(self.state),
            "position": {"epoch": position.epoch, "step": position.step},
        }
        is_last = Path(path) == self.folder / LAST
        keep = self.folder / PREVIOUS if is_last and not self._last_is_damaged else None
        write_checkpoint(path, Checkpoint(tensors, meta), keep=keep)
        self._last_is_damaged &= not is_last

    def load(self, path: Path | str) -> None:
        """Continue from a checkpoint of the same model, loader and seed.

        Raises:
            ArtifactError: the checkpoint is damaged, or of another run, model or dataset.
        """
        checkpoint = read_checkpoint(path, run=self.meta.get(RUN))
        check_has_training_state(checkpoint, path)
        self._continue_from(checkpoint, path)

    def _continue_from(self, checkpoint: Checkpoint, path: Path | str) -> None:
        self._load_tensors(checkpoint, path)
        if self.candidate_loss is not None:
            load_loss(self.candidate_loss, checkpoint, path)
        stored = checkpoint.meta["state"]
        total = self.state.total_steps + stored["start_step"]
        present = {"total_steps": total, "metric": self.state.metric}
        self.state = TrainState(**(stored | present))
        self.loader.position.epoch = checkpoint.meta["position"]["epoch"]
        self.loader.position.step = checkpoint.meta["position"]["step"]

    def _resume(self) -> None:
        found = read_last_checkpoint(self.folder, run=self.meta.get(RUN))
        self._continue_from(found.checkpoint, found.path)
        self._last_is_damaged = found.damage is not None
        found.report(self.progress)
        if self.state.best is not None:
            self._check_best()

    def _check_best(self) -> None:
        """Refuse to continue without the best weights so far, which no later step may replace."""
        path = self.folder / BEST
        if not path.exists():
            raise DamagedCheckpointError(f"{path} is missing: {RESTORE}")
        read_checkpoint(path, run=self.meta.get(RUN))

    def _begin_with(self, start: Checkpoint) -> None:
        """Take over weights, and states and counts where the start has them."""
        path = self.folder / LAST
        self._load_tensors(start, path)
        if self.candidate_loss is not None and start.part("loss"):
            load_loss(self.candidate_loss, start, path)
        state, step = self.state, start.meta.get("step", 0)
        state.step = state.start_step = step
        state.epoch = state.start_epoch = start.meta.get("epoch", 0)
        state.total_steps += step
        self.loader.position.epoch = state.epoch

    def _load_tensors(self, checkpoint: Checkpoint, path: Path | str) -> None:
        load_model(self.model, checkpoint, path)
        load_optimizer(self.model, self.optimizer, checkpoint)
        if self.average is not None:
            self.average.load(checkpoint)
        random = checkpoint.part("random")
        if random:
            torch.set_rng_state(random["cpu"])
            self._generator.set_state(random["samples"])
        if "cuda" in random and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.model.device)

    def _forward(self, batch: Batch, effective_sample_size: bool) -> LossOutput:
        query = self._encoder.queries(batch)
        positive_ids = self._placed(batch.positive_ids)
        if self.candidate_loss is None:
            if self._trained is None:
                catalog = self._encoder.catalog()
            else:
                item_ids, position = self._trained
                catalog, positive_ids = self._encoder.items(item_ids), position[positive_ids]
            return self.loss(
                query, catalog, positive_ids, effective_sample_size=effective_sample_size
            )
        return self.candidate_loss.compare(
            query,
            self._encoder.items,
            positive_ids,
            self._placed(batch.user_ids),
            None if batch.negative_ids is None else self._placed(batch.negative_ids),
            generator=self._generator,
            item_vectors=self._item_vectors,
            effective_sample_size=effective_sample_size,
        )

    def _encode_queries(self, queries: Queries) -> Tensor:
        is_narrow = self.config.precision == "bfloat16"
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16) if is_narrow else nullcontext():
            return self.model.encode_queries(queries)

    def _placed(self, values: Tensor) -> Tensor:
        return to_device(values, self.model.device)

    def _item_vectors(self) -> Tensor:
        """Return the vectors of all items, without dropout: [V, D]."""
        was_training = self.model.training
        self.model.eval()
        vectors = self.model.encode_catalog()
        self.model.train(was_training)
        return vectors

    def _finished(self) -> bool:
        config, state = self.config, self.state
        return (
            state.step >= state.total_steps
            or state.epoch - state.start_epoch >= config.epochs
            or (config.patience is not None and state.stale >= config.patience)
            or (config.max_seconds is not None and state.seconds >= config.max_seconds)
        )

    def _epoch(self, stop: threading.Event) -> None:
        state, started, cpu_started = self.state, time.perf_counter(), time.process_time()
        seconds_left = (self.config.max_seconds or float("inf")) - state.seconds
        epoch = self.loader.position.epoch
        self.model.train()
        window = RowRate()
        value = torch.zeros(())
        with closing(self.loader.epoch()) as batches:
            for batch in batches:
                logs = (state.step + 1) % self.config.log_every == 0
                if self.loader.config.micro_batch is None:
                    batch = batch.to(self.model.device)
                value, output, norm = self.step(batch, effective_sample_size=logs)
                window.add(len(batch))
                if logs:
                    self._log_step(epoch, value, output, norm, window)
                    window = RowRate()
                over_time = time.perf_counter() - started >= seconds_left
                if stop.is_set() or over_time or state.step >= state.total_steps:
                    break
        self._check_finite(value)
        elapsed = time.perf_counter() - started
        state.train_seconds += elapsed
        state.seconds += elapsed
        state.cpu_seconds += time.process_time() - cpu_started
        state.epoch = self.loader.position.epoch
        if self.loader.position.step == 0 or not stop.is_set():
            self._end_of_epoch()
        if stop.is_set():
            self._interrupt()

    def _end_of_epoch(self) -> None:
        started, cpu_started = time.perf_counter(), time.process_time()
        due = self.state.epoch % self.config.validate_every == 0
        if self.validate is not None and (due or self._finished()):
            with nullcontext() if self.average is None else self.average.in_place():
                self._validate()
        self.state.seconds += time.perf_counter() - started
        self.state.cpu_seconds += time.process_time() - cpu_started
        if self.state.epoch % self.config.checkpoint_every == 0 or self._finished():
            self._save_last()

    def _save_last(self) -> None:
        # The log first: a resume continues after the steps of the checkpoint.
        for tracker in self._trackers:
            tracker.flush()
        self.save(self.folder / LAST)

    def _validate(self) -> None:
        assert self.validate is not None
        metrics = dict(self.validate(self.model))
        state = self.state
        if state.update_best(metrics):
            meta = self.meta | {"state": vars(state)}
            write_checkpoint(self.folder / BEST, Checkpoint(model_tensors(self.model), meta))
        line = {"epoch": state.epoch, "seconds": round(state.seconds, 3)} | {
            f"validation/{name}": value for name, value in metrics.items()
        }
        state.history.append(line)
        for tracker in self._trackers:
            tracker.log(state.step, line)
        if self.progress is not None:
            self.progress.on_validation(state, metrics)

    def _log_step(
        self, epoch: int, value: Tensor, output: LossOutput, norm: Tensor, window: RowRate
    ) -> None:
        metrics = {
            "loss": float(value),
            "sample_weight": float(output.sample_weight.mean()),
            "gradient_norm": float(norm),
            "lr": self.optimizer.lr,
            "rows_per_second": window.rate(),
            "epoch": epoch,
        }
        if output.effective_sample_size is not None:
            metrics["effective_sample_size"] = float(output.effective_sample_size.mean())
        if self.candidate_loss is not None:
            metrics |= self.candidate_loss.metrics()
        self._check_finite(value)
        for tracker in self._trackers:
            tracker.log(self.state.step, metrics)
        if self.progress is not None:
            self.progress.on_step(self.state, metrics)

    def _check_finite(self, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise DivergedError(
                f"the loss became {float(value)} by step {self.state.step}: lower training.lr, "
                "or set training.clip_norm"
            )

    def _interrupt(self) -> None:
        self._save_last()
        raise Interrupted(
            f"stopped at step {self.state.step} and wrote {self.folder / LAST}: run the same "
            "command with --resume to continue"
        )


def _derived_seed(seed: int, *stream: int) -> int:
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1)[0])
