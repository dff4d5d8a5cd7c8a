"""The refit of a run: its length, which the validation of a first training chose, and its checks.

A training with a refit has two passes. The first is an ordinary run in the folder
``before-refit`` of the run: it trains on the training interactions, validates, and is measured on
the test split. The second trains a new model from the same seed on all interactions, for as many
epochs as validation chose, in the folder of the run itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from candid.config import RunConfig
from candid.data import PreparedDataset, Role, with_all_training
from candid.errors import ArtifactError, ConfigError
from candid.runs.features import FEATURES
from candid.runs.folder import BEFORE_REFIT, MANIFEST, read_manifest
from candid.training import TrainingLength, TrainState

REFIT: Final = "refit"
"""Key of ``run.json`` with the record of a refit."""


@dataclass(frozen=True)
class Refit:
    """The record of a refit in ``run.json``: what the first pass chose, and the length it implies.

    A pass over the data (an epoch) has more steps in the refit, because it has more targets. The
    number of epochs stays, so that each target is seen as often as in the model that was
    validated: steps are multiplied by the ratio of the steps of an epoch and rounded to the
    nearest whole number. The schedule of the learning rate is stretched by the same ratio, so
    that a step has the rate of the step of the first pass at the same share of the training;
    ``warmup_steps`` stays.

    Attributes:
        metric: name of the validation metric that chose.
        best: its best value.
        best_epoch: epochs of the first pass at that validation, without those of an earlier run
            that it continues.
        best_step: steps of the first pass at that validation, likewise.
        schedule_steps_before: steps of the schedule of the first pass.
        steps_per_epoch_before: steps of an epoch of the first pass.
        steps_per_epoch: steps of an epoch of the refit; 0 before it is known.
        steps: steps of the refit.
        schedule_steps: steps of the schedule of the refit.
    """

    metric: str
    best: float
    best_epoch: int
    best_step: int
    schedule_steps_before: int
    steps_per_epoch_before: int
    steps_per_epoch: int = 0
    steps: int = 0
    schedule_steps: int = 0

    @classmethod
    def of(cls, state: TrainState, steps_per_epoch: int) -> Refit:
        """Return what the first pass chose.

        Args:
            state: of the first pass at its end, with at least one validation.
            steps_per_epoch: steps of an epoch of the first pass.
        """
        assert state.metric is not None
        assert state.best is not None
        return cls(
            metric=state.metric,
            best=state.best,
            best_epoch=state.best_epoch - state.start_epoch,
            best_step=state.best_step - state.start_step,
            schedule_steps_before=state.total_steps - state.start_step,
            steps_per_epoch_before=steps_per_epoch,
        )

    def with_epochs_of(self, steps_per_epoch: int) -> Refit:
        """Return the record with the length of the refit.

        Args:
            steps_per_epoch: steps of an epoch of the refit.
        """
        return replace(
            self,
            steps_per_epoch=steps_per_epoch,
            steps=self._converted(self.best_step, steps_per_epoch),
            schedule_steps=self._converted(self.schedule_steps_before, steps_per_epoch),
        )

    @property
    def length(self) -> TrainingLength:
        """The length of the refit."""
        return TrainingLength(self.steps, self.schedule_steps)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"before": BEFORE_REFIT, **asdict(self)}

    def sentence(self) -> str:
        """Return a sentence for a terminal: the length and the reason."""
        epochs = self.best_step / self.steps_per_epoch_before
        steps = f"{self.steps:,} step" + ("" if self.steps == 1 else "s")
        length = f"{steps}, {epochs:.3g} epoch" + ("" if epochs == 1 else "s")
        return f"refit on all interactions: {length} as validation {self.metric} chose"

    def _converted(self, steps: int, steps_per_epoch: int) -> int:
        before = self.steps_per_epoch_before
        return max(1, (2 * steps * steps_per_epoch + before) // (2 * before))


_NO_VALIDATION: Final = (
    "the dataset has no validation split, which chooses the number of steps of a refit"
)


def check_split_can_refit(kind: str | None) -> None:
    """Refuse a refit of a dataset without a split, which may not be prepared yet.

    Args:
        kind: ``split.kind`` of the dataset; None: not known.

    Raises:
        ConfigError: all interactions train.
    """
    if kind == "none":
        raise ConfigError(
            f'{_NO_VALIDATION}; all interactions train already with split.kind = "none": leave '
            "out --refit"
        )


def check_can_refit(dataset: PreparedDataset) -> None:
    """Refuse a refit whose length nothing can choose, or whose histories have no order.

    Raises:
        ConfigError: the dataset has no validation split, or an earlier version stored its
            interactions by role without their order.
    """
    check_split_can_refit(dataset.manifest.get("split", {}).get("kind"))
    if not dataset.has_role(Role.VALIDATION):
        raise ConfigError(
            f"{_NO_VALIDATION}; leave out --refit, or prepare the data with a split that has one"
        )
    is_out_of_order = dataset.manifest.get("split", {}).get("out_of_order", 0) > 0
    if is_out_of_order and dataset.order_ranks is None and dataset.timestamps is None:
        raise ConfigError(
            f"{dataset.origin} was prepared by an earlier version, which stored the interactions "
            "of each user by role and not their order: prepare it again, or leave out --refit"
        )


def check_resumes_refit(out: Path, refit: bool) -> None:
    """Refuse to resume a training with a refit without one, and the other way round.

    Raises:
        ConfigError: the flag is not that of the start.
        ArtifactError: the folder is not a run.
    """
    has_run = (out / MANIFEST).exists()
    was_refit = REFIT in read_manifest(out) if has_run else _has_first_pass(out)
    if refit and not was_refit:
        read_manifest(out)
    check_refit_flag(out, was_refit, refit)


def check_refit_flag(out: Path, was_refit: bool, refit: bool) -> None:
    """Refuse to resume with a flag that is not that of the start.

    Raises:
        ConfigError: the flags differ.
    """
    if was_refit and not refit:
        raise ConfigError(f"{out} was started with --refit: resume with --resume --refit")
    if refit and not was_refit:
        raise ConfigError(
            f"{out} was started without --refit: resume without it, or train with --refit in "
            "another folder"
        )


def _has_first_pass(out: Path) -> bool:
    return (out / BEFORE_REFIT / MANIFEST).exists()


def read_refit(out: Path, config: RunConfig) -> Refit | None:
    """Return the record of a refit that has begun; None: its first pass is not complete.

    Files of a refit that stopped before its ``run.json`` are removed.

    Raises:
        ConfigError: the settings of the training differ, which can no longer change its length.
        ArtifactError: ``run.json`` is damaged, or missing beside the weights of the refit.
    """
    if not (out / MANIFEST).exists():
        if any(out.glob("*.safetensors")):
            raise ArtifactError(
                f"{out / MANIFEST} is missing, and the weights of the refit are there: restore it "
                "from a copy, or train again in another folder"
            )
        (out / FEATURES).unlink(missing_ok=True)
        return None
    manifest = read_manifest(out)
    if manifest["config"]["training"] != config.model_dump(mode="json")["training"]:
        raise ConfigError(
            f"{out} has begun its refit, whose length is fixed: resume with the same section "
            "[training]"
        )
    record = {key: value for key, value in manifest[REFIT].items() if key != "before"}
    return Refit(**record)


def check_has_first_pass(out: Path) -> None:
    """Refuse to resume a complete refit without its first pass, which would be measured again.

    Raises:
        ConfigError: it is complete, and its first pass was removed.
    """
    if "result" in read_manifest(out) and not _has_first_pass(out):
        raise ConfigError(
            f"{out} is complete and can be served: leave out --resume; to measure the model before "
            f"the refit, restore {out / BEFORE_REFIT} from a copy"
        )


def dataset_of_refit(manifest: dict[str, Any], dataset: PreparedDataset) -> PreparedDataset:
    """Return the dataset as the run of ``manifest`` was trained on it."""
    is_own = manifest["dataset"]["fingerprint"] == dataset.fingerprint
    return with_all_training(dataset) if REFIT in manifest and is_own else dataset


def check_is_measurable(folder: Path, manifest: dict[str, Any], dataset: PreparedDataset) -> None:
    """Refuse to measure a run on interactions that its refit trained on.

    Raises:
        ConfigError: the run was refitted on the dataset.
    """
    is_own = manifest["dataset"]["fingerprint"] == dataset.fingerprint
    if REFIT in manifest and is_own:
        raise ConfigError(
            f"{folder} was refitted on all interactions of its dataset, those of test included: "
            f"measure the model before the refit ({folder / BEFORE_REFIT}), or this one on a "
            "dataset with later interactions (--data)"
        )
