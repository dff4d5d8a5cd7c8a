"""Warm start: a training that begins with the weights of an earlier run, mapped by source id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from candid.batches import target_counts, users_with_rows
from candid.config import RunConfig
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError
from candid.runs.earlier_run import EarlierRun, difference_error
from candid.runs.folder import served_checkpoint
from candid.runs.trained_ids import earlier_rows
from candid.runs.weight_mapping import WeightMapping
from candid.towers import RetrievalModel
from candid.training import RUN, Checkpoint, read_checkpoint, read_last_checkpoint

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WarmStart:
    """The start of a training.

    Attributes:
        checkpoint: its first weights and, with ``training.init_optimizer = "keep"``, the states of
            the optimizer and of the random generators, and the numbers of steps and epochs.
        facts: plain JSON values for ``run.json``.
    """

    checkpoint: Checkpoint
    facts: dict[str, Any]

    @property
    def sentence(self) -> str:
        """The numbers of items and users with a row of the earlier run."""
        parts = [
            f"{self.facts[kind]['mapped']:,} of {self.facts[kind]['total']:,} {kind}"
            for kind in ("items", "users")
        ]
        count = self.facts["new_values"]
        values = f"; {count:,} new feature value" + ("" if count == 1 else "s") if count else ""
        return f"; started from {self.facts['run']}, which has {' and '.join(parts)}{values}"


def check_resumes_init(out: Path, manifest: Mapping[str, Any], init: Path | str | None) -> None:
    """Refuse to resume a run with another earlier run than the one it was started from.

    Args:
        out: folder of the run to resume.
        manifest: content of its ``run.json``.
        init: folder of the earlier run; None: whichever it was.

    Raises:
        ConfigError: it is another one.
    """
    if init is None:
        return
    facts = manifest.get("init")
    if facts is None:
        raise ConfigError(
            f"{out} was not started from an earlier run: leave out --init, or choose another folder"
        )
    if Path(facts["run"]) != Path(init).resolve():
        raise ConfigError(
            f"{out} was started from {facts['run']}, not from {init}: leave out --init to resume "
            "it, or choose another folder"
        )


def check_same_event_types(earlier: EarlierRun, dataset: PreparedDataset) -> None:
    """Refuse a dataset whose event types have other codes than those of the earlier run.

    Raises:
        ConfigError: the event types differ.
    """
    before = earlier.manifest.get("event_types")
    if before is not None and before != list(dataset.event_type_names):
        raise ConfigError(
            f"the event types of {earlier.folder} are {before} and those of the dataset are "
            f"{list(dataset.event_type_names)}: prepare the dataset with the same data.event_types"
        )


def check_same_features(earlier: EarlierRun, config: RunConfig) -> None:
    """Refuse other features than those of the earlier run, whose fitted values are used.

    Raises:
        ConfigError: the sections differ; the message has the first key.
    """
    # Compared as text: the weights depend on the order of features, which == of dicts ignores.
    if _as_text(earlier.config.features) != _as_text(config.features):
        reason = "the weights belong to these features"
        raise difference_error(earlier, config, reason, sections=("features",))


def warm_start(
    earlier: EarlierRun,
    config: RunConfig,
    dataset: PreparedDataset,
    model: RetrievalModel,
) -> WarmStart:
    """Map the weights of an earlier run to the ids of a dataset.

    A row of an item or user that the earlier run trained is copied. Rows of new items and users,
    and of those that only now have a training target, come from ``training.init_rows``; so do rows
    of new values of features, which begin with the row of unknown values. All other
    tensors are copied as they are. With ``training.init_optimizer = "reset"`` these are the weights
    that the run serves; with "keep" they are those of its last checkpoint, with the optimizer's
    state.

    Args:
        earlier: the run.
        config: of the training.
        dataset: of the training.
        model: untrained, built for ``dataset``; its random rows are read.

    Raises:
        ConfigError: a tensor has another shape, rows of items and users aside, or the state of
            another optimizer should be kept.
        DataError: the ids are of another type.
        ArtifactError: the checkpoint is missing or damaged.
    """
    keep = config.training.init_optimizer == "keep"
    if keep and earlier.config.training.row_rule != config.training.row_rule:
        raise ConfigError(
            f"training.tables is {earlier.config.training.tables!r} in {earlier.folder} (init) and "
            f"{config.training.tables!r} here, and training.init_optimizer = 'keep' needs the same "
            "optimizer: use training.init_optimizer = 'reset'"
        )
    stored = _last(earlier) if keep else _served(earlier)
    rows = {
        "item": _rows("item", earlier, dataset.items, target_counts(dataset, config.batches) > 0),
        "user": _rows("user", earlier, dataset.users, users_with_rows(dataset, config.batches)),
    }
    mapping = WeightMapping(earlier, config, dataset, model, rows)
    weights = stored.part("model") if keep else stored.part("model") | stored.average()
    tensors = {f"model/{name}": value for name, value in mapping.weights(weights)}
    meta: dict[str, Any] = {}
    if keep:
        if average := stored.average():
            tensors |= {
                f"average/{name}": value for name, value in mapping.weights(average, partial=True)
            }
        tensors |= {
            f"optimizer/{name}": mapping.state(name.rpartition("/")[0], name, value)
            for name, value in stored.part("optimizer").items()
        }
        tensors |= {name: t for name, t in stored.tensors.items() if name.startswith("random/")}
        if _has_same_ids(rows) and _samples_alike(earlier.config, config):
            tensors |= {name: t for name, t in stored.tensors.items() if name.startswith("loss/")}
        position = stored.meta["position"]
        # An epoch that was not completed is another one with other data.
        epoch = position["epoch"] + int(position["step"] > 0)
        meta = {"step": stored.meta["state"]["step"], "epoch": epoch}
    facts: dict[str, Any] = {
        "run": str(earlier.folder.resolve()),
        "dataset": earlier.manifest["dataset"]["fingerprint"],
        "optimizer": config.training.init_optimizer,
    }
    for kind, source in rows.items():
        facts[f"{kind}s"] = {"total": len(source), "mapped": int((source >= 0).sum())}
    facts["new_values"] = mapping.num_new_codes
    return WarmStart(Checkpoint(tensors, meta), facts)


def _last(earlier: EarlierRun) -> Checkpoint:
    """Return the last checkpoint of a run, with the optimizer's state.

    The one before a damaged one is not used: it gives another model, and a nightly job would not
    show why.
    """
    advice = "training.init_optimizer = 'reset' starts without the optimizer's state"
    try:
        found = read_last_checkpoint(earlier.folder, run=earlier.manifest.get(RUN))
    except ArtifactError as error:
        raise type(error)(f"{error}; {advice}") from None
    if found.damage is not None:
        raise ArtifactError(f"{found.damage}: restore it from a copy, or {advice}")
    return found.checkpoint


def served_weights(
    earlier: EarlierRun, dataset: PreparedDataset, model: RetrievalModel, rows: Mapping[str, Ints]
) -> dict[str, Tensor]:
    """Return the weights that an earlier run serves, by name, with rows in the ids of a dataset.

    Args:
        earlier: the run.
        dataset: whose ids the rows have.
        model: of the run's config, built for ``dataset``; unknown items and users have its rows.
        rows: for "item" and "user" the earlier row of each id now, [n] int64, or -1.

    Raises:
        ConfigError: the dataset needs other shapes of other tensors.
        ArtifactError: the checkpoint is missing or damaged.
    """
    training = earlier.config.training.model_copy(update={"init_rows": "random"})
    config = earlier.config.model_copy(update={"training": training})
    stored = _served(earlier)
    weights = stored.part("model") | stored.average()
    return dict(WeightMapping(earlier, config, dataset, model, rows).weights(weights))


def _served(earlier: EarlierRun) -> Checkpoint:
    path = served_checkpoint(earlier.folder, earlier.manifest)
    return read_checkpoint(path, run=earlier.manifest.get(RUN))


def _rows(kind: str, earlier: EarlierRun, now: Any, is_trained: npt.NDArray[np.bool_]) -> Ints:
    """Return the row of the earlier run for each id now: [n] int64, -1 for a new row.

    A row that was not trained and will be now is new: it holds only what training did to it as a
    negative.
    """
    before = getattr(earlier.ids, f"{kind}s")
    source = earlier_rows(before, now, kind, str(earlier.folder))
    was_trained = np.append(before["is_trained"].to_numpy(), False)[source]
    return np.where(~was_trained & is_trained, -1, source)


def _has_same_ids(rows: Mapping[str, Ints]) -> bool:
    return all(np.array_equal(source, np.arange(len(source))) for source in rows.values())


def _samples_alike(before: RunConfig, now: RunConfig) -> bool:
    return all(_as_text(getattr(before, key)) == _as_text(getattr(now, key)) for key in _OBJECTIVE)


_OBJECTIVE = ("loss", "sampler", "batches")


def _as_text(section: Any) -> str:
    return "null" if section is None else json.dumps(section.model_dump(mode="json"))
