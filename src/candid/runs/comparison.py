"""Comparison of trained runs and saved baselines on the same targets of one dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from candid.component import toml_value
from candid.data import PreparedDataset, open_dataset
from candid.errors import ArtifactError, ConfigError
from candid.evaluation import (
    EvaluationConfig,
    EvaluationReport,
    ReportComparison,
    compare_reports,
)
from candid.inference import StageProgress
from candid.runs.mapped_run import mapped_run
from candid.runs.saved_model import SavedModel, dataset_facts_of, holds_baseline, load


def load_runs(
    folders: Sequence[Path | str], data: Path | str | None = None
) -> dict[str, SavedModel]:
    """Open several runs or saved baselines on one dataset.

    Args:
        folders: at least two different ones.
        data: a prepared dataset, on which all are measured: a run of another dataset is mapped by
            source id (``mapped_run``), a baseline must have the same ids. None: the dataset of all.

    Returns:
        folder as given -> run.

    Raises:
        ConfigError: fewer than two folders, or one twice.
        ArtifactError: not a run, or the runs were trained on different datasets and ``data`` is
            None or has other ids.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ConfigError(
            "name at least two runs to compare; candid evaluate measures a single one"
        )
    for number, path in enumerate(paths):
        if path.resolve() in {other.resolve() for other in paths[:number]}:
            raise ConfigError(f"{path} is named twice; name different runs")
    if data is None:
        _check_same_dataset(paths)
        return {str(path): load(path) for path in paths}
    dataset = open_dataset(Path(data))
    return {str(path): load_on(path, dataset) for path in paths}


def compare_runs(
    runs: Mapping[str, SavedModel],
    split: str = "test",
    config: EvaluationConfig | None = None,
    *,
    progress: StageProgress | None = None,
) -> ReportComparison:
    """Evaluate runs on the same targets with the same settings and compare them with the first.

    Args:
        runs: at least two by name, on one dataset; the first is the reference.
        split: "test" or "validation".
        config: settings of all evaluations; None: those of the first run.
        progress: called with (stage, done, total).

    Returns:
        the comparison; slices by popularity and warm items follow the training targets of the
        first one.

    Raises:
        ConfigError: an unknown split, or a setting that does not fit.
        DataError: the split has no target that a run can be evaluated on.

    Example:
        >>> runs = load_runs(["runs/a", "runs/b"])  # doctest: +SKIP
        >>> compare_runs(runs).differences["ndcg@10"]  # doctest: +SKIP
    """
    first = next(iter(runs.values()))
    config = first.evaluation if config is None else config
    reports: dict[str, EvaluationReport] = {
        name: run.evaluate(split, config, item_counts=first.item_counts, progress=progress)
        for name, run in runs.items()
    }
    return compare_reports(reports, confidence=config.confidence, seed=config.seed)


def differing_settings(runs: Mapping[str, SavedModel]) -> dict[str, dict[str, str]]:
    """Return the recipe keys whose values differ: key -> name of the run -> value as in TOML.

    A key that a run does not have is "–". Sections of data, trackers and evaluation are left out.
    """
    tables = {name: dict(_keys(run.settings)) for name, run in runs.items()}
    keys = dict.fromkeys(key for table in tables.values() for key in table)
    result: dict[str, dict[str, str]] = {}
    for key in keys:
        if key.split(".")[0] in ("name", "data", "evaluation") or key == "training.trackers":
            continue
        values = {name: table.get(key, "–") for name, table in tables.items()}
        if len(set(values.values())) > 1:
            result[key] = values
    return result


def notes_of(runs: Mapping[str, SavedModel], comparison: ReportComparison) -> list[str]:
    """Return what limits the comparison, a sentence without full stop for each fact."""
    notes = []
    first = comparison.names[0]
    num_users = comparison.reports[first].counts["users"]
    for name, run in runs.items():
        if run.manifest["dataset"]["fingerprint"] != run.dataset.fingerprint:
            notes.append(
                f"{name} was trained on {_name_of(run.manifest['dataset'])} and is measured on "
                f"{run.dataset.origin}: its training rows may contain targets of this split"
            )
        if comparison.reports[name].counts["users"] != num_users:
            notes.append(
                f"{name} is measured on {comparison.reports[name].counts['users']:,} users and "
                f"{first} on {num_users:,}, because one of them needs a history; differences are "
                "over the users of both"
            )
        if "nll" in comparison.metrics and not run.estimates_probability:
            notes.append(f"the loss of {name} does not estimate probabilities, so ignore its nll")
    return notes


def _keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", toml_value(value)


def _check_same_dataset(paths: Sequence[Path]) -> None:
    first, *others = [(path, dataset_facts_of(path)) for path in paths]
    for path, facts in others:
        if facts["fingerprint"] == first[1]["fingerprint"]:
            continue
        raise ArtifactError(
            f"{first[0]} was trained on {_name_of(first[1])} and {path} on "
            f"{_name_of(facts)}, which differ: name a prepared dataset that has the ids of both "
            "with --data, or train both on one dataset"
        )


def _name_of(facts: Mapping[str, Any]) -> str:
    """Return the path of a dataset and its version, since a path may hold another one by now."""
    return f"{facts['path']} (fingerprint {str(facts['fingerprint'])[:8]})"


def load_on(path: Path, dataset: PreparedDataset) -> SavedModel:
    """Open a model on ``dataset``; a run is mapped by source id, a baseline needs the same ids."""
    facts = dataset_facts_of(path)
    if facts["fingerprint"] == dataset.fingerprint:
        return load(path, dataset)
    if not holds_baseline(path):
        return mapped_run(path, dataset)
    run = load(path)
    for kind in ("users", "items"):
        own, other = getattr(run.dataset, kind), getattr(dataset, kind)
        if not own["source_id"].equals(other["source_id"]):
            raise ArtifactError(
                f"{path} was trained on {_name_of(facts)}, whose {kind} are not those of "
                f"{dataset.origin}: name a prepared dataset with the same ids"
            )
    if run.dataset.event_type_names != dataset.event_type_names:
        raise ArtifactError(
            f"{path} was trained on {_name_of(facts)}, whose event types are not those of "
            f"{dataset.origin}: name a prepared dataset with the same event types"
        )
    return replace(run, dataset=dataset)
