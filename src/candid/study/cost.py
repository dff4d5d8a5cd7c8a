"""The CPU time of a study, estimated from a few steps of each distinct setting."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch

from candid.atomic import write_json
from candid.audit.run_inputs import recipe_case, untrained_input
from candid.batches import Loader, epoch_targets
from candid.config import RunConfig
from candid.data import PreparedDataset, Role
from candid.errors import CandidError
from candid.evaluation import evaluate
from candid.json_text import read_json
from candid.runs import build_model, build_objective, fit_features, pick_device, set_threads
from candid.study.arms import NO_SAMPLER, find_arm
from candid.study.datasets import Datasets
from candid.study.grid import Grid, Setting
from candid.study.measure import estimator_at
from candid.study.records import CellKey
from candid.temporary import TemporaryFolder
from candid.training import Trainer

TIMINGS: Final = "timings.json"
STEPS: Final = 3
"""Steps that are timed for each setting; the first one also fills caches and is left out."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Times of a dataset and tower in CPU seconds.

    Attributes:
        validation: of one validation during training.
        test: of the measurements on the test split, the drift left out.
        drift: of one drift measurement.
    """

    validation: float
    test: float
    drift: float


@dataclass(frozen=True, slots=True, order=True)
class CostKey:
    """Cells whose steps take the same time, but for n.

    Attributes:
        dataset: name; its first split is timed.
        tower: name.
        sampler: name.
        kind: what the arm computes.
    """

    dataset: str
    tower: str
    sampler: str
    kind: str

    @classmethod
    def of(cls, setting: Setting) -> CostKey:
        """Return the key of a setting: corrections and the distinct items cost the same."""
        arm = find_arm(setting.arm)
        kind: str = "sampler" if arm.candidates == "distinct" else arm.candidates
        loss = "" if arm.loss["type"] != "learnt_partition" else ", learnt partition"
        jackknife = ", jackknife" if arm.loss.get("jackknife") else ""
        return cls(setting.dataset, setting.tower, setting.sampler, f"{kind}{loss}{jackknife}")


class CostModel:
    """Estimates the CPU time of cells; what was timed is kept in ``timings.json``.

    Args:
        grid: of the study.
        datasets: of the study.
        out: folder of the study.
        note: called with one line before each part of the timing.
    """

    def __init__(
        self, grid: Grid, datasets: Datasets, out: Path, note: Callable[[str], None]
    ) -> None:
        self._grid, self._datasets, self._note = grid, datasets, note
        self._path = out / TIMINGS
        self._known: dict[str, float] = {}
        with suppress(OSError, ValueError, OverflowError):  # timed again
            self._known = _times(read_json(self._path))
        self._steps: dict[CostKey, dict[int, float]] = {}
        self._fixed: dict[tuple[str, str], Fixed] = {}
        self._drifts: dict[str, bool] = {}
        self._counts: dict[tuple[str, str, str, str], tuple[int, int]] = {}

    def time(self, keys: Iterable[CellKey]) -> None:
        """Time what the estimate of these cells needs: the smallest and the largest n of a kind."""
        sizes: dict[CostKey, dict[int, Setting]] = {}
        for setting in sorted({Setting.of(key) for key in keys}):
            sizes.setdefault(CostKey.of(setting), {}).setdefault(setting.num_candidates, setting)
        for cost_key, by_size in sorted(sizes.items()):
            fixed = (cost_key.dataset, cost_key.tower)
            # A setting whose loss has an estimator, because its drift is measured too.
            if fixed not in self._fixed:
                of_tower = [
                    one
                    for key, settings in sizes.items()
                    if (key.dataset, key.tower) == fixed
                    for one in settings.values()
                ]
                timed = max(of_tower, key=lambda one: (self._has_drift(one), one))
                self._fixed[fixed] = self._timed_fixed(timed)
            self._steps[cost_key] = {
                n: self._timed_steps(by_size[n]) for n in {min(by_size), max(by_size)}
            }

    def seconds(self, key: CellKey) -> float:
        """Return the estimated CPU seconds of a cell; ``time`` has timed its setting."""
        setting = Setting.of(key)
        fixed = self._fixed[setting.dataset, setting.tower]
        steps, validations = self._lengths(key)
        total = steps * self._step(setting) + (validations + 1) * fixed.validation
        if key.phase == "main":
            total += fixed.test + (fixed.drift if self._has_drift(setting) else 0.0)
        return total

    def _step(self, setting: Setting) -> float:
        """Return CPU seconds of a step, linear in n between what was timed."""
        timed = self._steps[CostKey.of(setting)]
        low, high = min(timed), max(timed)
        if low == high:
            return timed[low]
        share = (setting.num_candidates - low) / (high - low)
        return timed[low] + share * (timed[high] - timed[low])

    def _has_drift(self, setting: Setting) -> bool:
        """Whether the drift of a setting is measured: its loss estimates a softmax."""
        if setting.arm not in self._drifts:
            self._drifts[setting.arm] = self._config(setting).loss.estimator is not None
        return self._drifts[setting.arm] and setting.sampler != NO_SAMPLER

    def _lengths(self, key: CellKey) -> tuple[int, int]:
        """Return the largest number of steps and validations of a cell."""
        name = (key.phase, key.dataset, key.split, key.tower)
        if name not in self._counts:
            config = self._grid.config(key)
            dataset = self._datasets.open(key.dataset, key.split)
            training = config.training
            per_epoch = Loader(dataset, config.batches, seed=0).num_batches
            steps = min(per_epoch * training.epochs, training.max_steps or 1 << 62)
            self._counts[name] = (steps, num_validations(config, steps, per_epoch))
        return self._counts[name]

    def _timed_steps(self, setting: Setting) -> float:
        config = self._config(setting)
        key = f"steps {setting.dataset} {_digest(config)}"
        if key not in self._known:
            size = f" n={setting.num_candidates}" if setting.num_candidates else ""
            self._note(
                f"timing {setting.dataset} {setting.tower} {setting.sampler}{size} {setting.arm}"
            )
            dataset = self._datasets.open(setting.dataset, setting.split)
            try:
                self._keep({key: time_steps(config, dataset)})
            except CandidError:  # its cells will fail at once, with this sentence
                return 0.0
        return self._known[key]

    def _timed_fixed(self, setting: Setting) -> Fixed:
        config = self._config(setting)
        key = f"{setting.dataset} {_digest(config)}"
        names = {part: f"{part} {key}" for part in ("validation", "test", "drift")}
        if not all(name in self._known for name in names.values()):
            self._note(f"timing the measurements of {setting.dataset} {setting.tower}")
            dataset = self._datasets.open(setting.dataset, setting.split)
            fixed = self._time_fixed(config, dataset)
            self._keep({names[part]: value for part, value in asdict(fixed).items()})
        return Fixed(**{part: self._known[name] for part, name in names.items()})

    def _keep(self, times: dict[str, float]) -> None:
        """Store times at once: a study that is stopped while it times continues there."""
        self._known |= times
        write_json(self._path, self._known)

    def _time_fixed(self, config: RunConfig, dataset: PreparedDataset) -> Fixed:
        settings = self._grid.study.measure
        set_threads(config.threads)
        features = fit_features(config.features, dataset)
        torch.manual_seed(config.seed)
        model = build_model(config, dataset, features).to(pick_device(config.device))
        began = time.process_time()
        report = evaluate(
            model,
            dataset,
            config.evaluation.during_training(),
            role=Role.VALIDATION,
            max_length=config.batches.max_length,
            context=features.context_for(dataset),
            item_counts=epoch_targets(dataset, config.batches).counts,
        )
        validation = time.process_time() - began
        limit = int(settings.max_scores / dataset.num_items)
        share = min(dataset.num_users, max(256, limit)) / max(1, report.counts["users"])
        drift = 0.0
        case = recipe_case(config, dataset)
        if case is not None and settings.drift and dataset.num_items <= settings.drift_max_items:
            began = time.process_time()
            estimator_at(case, untrained_input(config, dataset, 256, features=features))
            drift = time.process_time() - began
        return Fixed(validation, share * validation, drift)

    def _config(self, setting: Setting) -> RunConfig:
        return self._grid.config(setting.cell("main", 1e-4, 0))


def time_steps(config: RunConfig, dataset: PreparedDataset) -> float:
    """Return the CPU seconds of one training step of a recipe, over all threads.

    Raises:
        CandidError: the recipe cannot be trained.
    """
    set_threads(config.threads)
    features = fit_features(config.features, dataset)
    torch.manual_seed(config.seed)
    model = build_model(config, dataset, features).to(pick_device(config.device))
    targets = epoch_targets(dataset, config.batches)
    loss, sampler = build_objective(config, dataset, targets.counts)
    loader = Loader(
        dataset, config.batches, seed=config.seed, context=features.context_for(dataset)
    )
    with TemporaryFolder("study") as folder:
        trainer = Trainer(
            model=model,
            loader=loader,
            loss=loss,
            sampler=sampler,
            config=config.training,
            folder=folder.path,
            item_is_trained=torch.from_numpy(targets.counts > 0),
        )
        times = []
        with closing(loader.epoch()) as batches:
            for batch in islice(batches, STEPS):
                began = time.process_time()
                is_whole = config.batches.micro_batch is None
                trainer.step(batch.to(model.device) if is_whole else batch)
                times.append(time.process_time() - began)
    timed = times[1:] or times
    return sum(timed) / len(timed)


def num_validations(config: RunConfig, steps: int, steps_per_epoch: int) -> int:
    """Return the number of validations of a training, the one after the last step included."""
    training = config.training
    every = training.validate_every_steps or training.validate_every * steps_per_epoch
    return -(-steps // every)


def _times(table: Any) -> dict[str, float]:
    """Return the entries of a file of times that are times."""
    if not isinstance(table, dict):
        return {}
    kinds = (int, float)
    return {k: float(v) for k, v in table.items() if type(v) in kinds and 0 <= v < math.inf}


def _digest(config: RunConfig) -> str:
    """Return a checksum of what decides the cost of a step and of a validation."""
    table = config.model_dump(mode="json")
    for key in (
        *("epochs", "max_steps", "lr"),
        *("validate_every", "validate_every_steps", "checkpoint_every", "checkpoint_every_steps"),
    ):
        table["training"].pop(key)
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]
