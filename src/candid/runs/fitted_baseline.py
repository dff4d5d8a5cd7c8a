"""A fitted baseline: the model, its dataset and its settings, to ask, to save and to load."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from candid.atomic import atomic_folder
from candid.batches import Ints
from candid.checksums import (
    check_file,
    check_seal,
    file_entry,
    read_error,
    verification,
    write_sealed_json,
)
from candid.component import lookup
from candid.config import default_recipe, validated
from candid.config.fallbacks import Fallback
from candid.data import PreparedDataset, Role, as_dataset
from candid.errors import ArtifactError, ConfigError
from candid.evaluation import EvaluationConfig, EvaluationReport, check_has_relevant, evaluate
from candid.index import Index
from candid.inference import (
    NewItems,
    Recommendations,
    StageProgress,
    TwoTowerModel,
    inference_mode,
    query_set,
    recommend,
    score_batch_size,
)
from candid.runs.fallback import ADVICE, FallbackModels, recommend_or_fall_back
from candid.runs.folder import BASELINE, check_is_empty, dataset_facts, dataset_of, store_dataset
from candid.runs.history_times import Time
from candid.runs.similar import SimilarItems
from candid.runs.source_ids import (
    Attributes,
    Histories,
    SourceIds,
    allowed_items,
    query_ids,
)
from candid.runs.splits import role_of
from candid.version import __version__

if TYPE_CHECKING:
    from candid.baselines import Baseline

FORMAT: Final = 2
"""Version of ``baseline.json`` and the arrays beside it."""
SAVE_AGAIN: Final = "save the baseline again"
ARRAYS: Final = "arrays.safetensors"
ITEMS: Final = "items.parquet"
WHOLE_HISTORY: Final = 2**31 - 1
"""Longest history that a baseline reads: every one."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class FittedBaseline:
    """A baseline with the dataset that it was fitted to; methods take and return source ids.

    Attributes:
        name: in ``candid.baselines.BASELINES``.
        model: the fitted baseline.
        dataset: the prepared dataset.
        evaluation: settings of evaluations, those of the tuning.
        manifest: content of ``baseline.json``, without the fingerprint before ``save``.
        folder: where it is saved; None: nowhere.

    Example:
        >>> baseline = candid.fit_baseline("data/films", "item_knn")
        >>> baseline.recommend(users=[12, 40], k=5)
        >>> baseline.save("baselines/item_knn")
    """

    name: str
    model: Baseline
    dataset: PreparedDataset
    evaluation: EvaluationConfig
    manifest: dict[str, Any]
    folder: Path | None = None

    estimates_probability = False
    """Whether the softmax of the scores is a probability."""
    recommends_by_attributes = False
    """Whether the list of a user without a history follows attributes of the user."""
    reads_query_time = False
    """Whether the list of a user depends on the time of the query."""

    def __repr__(self) -> str:
        return (
            f"FittedBaseline({self.name!r}, users={self.dataset.num_users}, "
            f"items={self.dataset.num_items})"
        )

    @cached_property
    def fallbacks(self) -> FallbackModels:
        """Popularity lists for users without a history."""
        return FallbackModels(self.dataset)

    @cached_property
    def similar_items(self) -> SimilarItems:
        """The search for similar items, by the vectors of all items.

        Raises:
            ConfigError: the baseline has no vectors.
        """
        return SimilarItems(self.dataset, self._vector_model().encode_catalog())

    @property
    def has_vectors(self) -> bool:
        """Whether scores are products of query and item vectors."""
        return self.model.has_vectors

    @property
    def settings(self) -> dict[str, Any]:
        """Name and settings, as keys of one table."""
        return {"baseline": {"type": self.name, **self.manifest["settings"]}}

    @property
    def item_counts(self) -> npt.NDArray[np.float64]:
        """[V] float64, the number of training targets of each item."""
        return self.model.target_counts

    def recommend(
        self,
        users: SourceIds | None = None,
        *,
        histories: Histories | None = None,
        k: int | None = None,
        filter_seen: bool | None = None,
        allow: SourceIds | None = None,
        deny: SourceIds | None = None,
        fallback: Fallback | None = None,
    ) -> pl.DataFrame:
        """Recommend items to users of the dataset, or for given histories.

        Args:
            users: one source id or several (a list, a series, an array); the whole history of each
                user in the dataset is used.
            histories: for anonymous users, instead of ``users``: source ids of the items of
                each history, earliest first.
            k: recommendations per query; None: 10, or all items of a smaller catalog.
            filter_seen: leave out the items of the whole history (with event types: of target
                event types only); None: as the baseline is measured, ``evaluation.filter_seen``.
            allow: the only items that may be recommended; None: all.
            deny: items that are never recommended; None: none.
            fallback: list of users without a history and of users that the dataset does not have,
                "popular" or "recent"; None: the latter are refused.

        Returns:
            one row per recommendation, best first: ``query`` (source id of the user, or row
            number of ``histories``), ``rank`` (from 1), ``item``, ``score`` and ``title`` (for
            datasets with titles); with a ``fallback`` also ``recommended_by``, "model" or the
            name of the fallback. Items without a score follow by popularity with scores below 0.

        Raises:
            DataError: an id is unknown or of another type.
            ConfigError: k is larger than the catalog, or no item is allowed.
        """
        if fallback is not None:
            return recommend_or_fall_back(
                self,
                self.fallbacks.get(fallback),
                users=users,
                histories=query_ids(self.dataset, None, histories, None)[1],
                k=k,
                filter_seen=filter_seen,
                is_allowed=allowed_items(self.dataset, allow, deny),
            ).to_frame()
        user_ids, item_ids, _ = query_ids(self.dataset, users, histories, None, ADVICE)
        return self.recommend_ids(
            user_ids=user_ids,
            histories=item_ids,
            k=k,
            filter_seen=filter_seen,
            is_allowed=allowed_items(self.dataset, allow, deny),
        ).to_frame()

    def recommend_ids(
        self,
        *,
        user_ids: Sequence[int] | Ints | None = None,
        histories: Sequence[Sequence[int] | Ints] | None = None,
        history_times: Sequence[Sequence[int | None]] | None = None,
        attributes: Sequence[Attributes] | None = None,
        k: int | None = None,
        filter_seen: bool | None = None,
        is_allowed: Bools | None = None,
        time: Time | None = None,
        event_type: str | None = None,
        new_items: NewItems | None = None,
        role: Role | None = None,
        index: Index | None = None,
        progress: StageProgress | None = None,
    ) -> Recommendations:
        """Recommend in dense ids; see ``recommend``.

        The arguments are those of ``Run.recommend_ids``. A baseline reads neither
        times of histories, nor attributes, nor the time or event type of a query, and has no
        vectors for new items.

        Raises:
            ConfigError: as for ``recommend``, or an argument is given that a baseline does not
                read.
        """
        given = {
            "the times of a history: leave out --history-time": history_times is not None,
            "attributes of users: leave out --user-attribute": attributes is not None,
            "the time of a query: leave out time (--at)": time is not None,
            "the event type of a query: leave out event_type (--event-type)": event_type
            is not None,
            "new items: leave out --new-items": new_items is not None,
            "an index: leave out --index": index is not None,
        }
        for what, is_given in given.items():
            if is_given:
                raise ConfigError(f"the baseline {self.name} does not read {what}")
        return recommend(
            self.model,
            self.dataset,
            user_ids=user_ids,
            histories=histories,
            k=k,
            max_length=WHOLE_HISTORY,
            filter_seen=self.evaluation.filter_seen if filter_seen is None else filter_seen,
            is_allowed=is_allowed,
            role=role,
            progress=progress,
        )

    def evaluate(
        self,
        split: str = "test",
        config: EvaluationConfig | None = None,
        *,
        item_counts: npt.NDArray[np.float64] | None = None,
        progress: StageProgress | None = None,
        **overrides: Any,
    ) -> EvaluationReport:
        """Evaluate the baseline on a split, over the full catalog, as ``Run.evaluate`` does.

        Args:
            split: "test" or "validation".
            config: settings; None: those of the tuning.
            item_counts: as for ``candid.evaluate``; None: those of the baseline.
            progress: called with (stage, done, total).
            **overrides: keys of ``EvaluationConfig`` that replace those of ``config``.

        Raises:
            ConfigError: an unknown split or setting, or a cut-off k larger than the catalog.
            DataError: the split has no target that can be measured.
        """
        role = role_of(split)
        config = self.evaluation if config is None else config
        if overrides:
            table = {**config.model_dump(mode="json"), **overrides}
            config = validated(EvaluationConfig, table, "evaluate")
        counts = self.item_counts if item_counts is None else item_counts
        check_has_relevant(self.dataset, config, role, needs_history=False, item_counts=counts)
        batch_size = score_batch_size(self.dataset.num_items, config.batch_size)
        return evaluate(
            self.model,
            self.dataset,
            config.model_copy(update={"batch_size": batch_size}),
            role=role,
            max_length=max(1, int(np.diff(self.dataset.user_offsets).max())),
            item_counts=counts,
            progress=progress,
        )

    def item_vectors(self) -> tuple[pl.Series, Floats]:
        """Return source ids [V] and item vectors [V, D] float32.

        Raises:
            ConfigError: the baseline has no vectors.
        """
        vectors: Floats = self._vector_model().encode_catalog().numpy().copy()
        return self.dataset.items["source_id"], vectors

    def query_vectors(
        self,
        users: SourceIds | None = None,
        *,
        histories: Histories | None = None,
    ) -> Floats:
        """Return the vectors of users of the dataset, or of histories: [n, D] float32.

        Raises:
            DataError: an id is unknown or of another type.
            ConfigError: the baseline has no vectors.
        """
        model = self._vector_model()
        user_ids, item_ids, _ = query_ids(self.dataset, users, histories, None)
        queries = query_set(
            self.dataset, user_ids=user_ids, histories=item_ids, max_length=WHOLE_HISTORY
        )
        with inference_mode(model):
            batches = queries.encode(model, torch.device("cpu"))
            vectors = [query.numpy() for _, query in batches]
        width = model.encode_catalog().shape[1]
        return np.concatenate([np.zeros((0, width), dtype=np.float32), *vectors])

    def save(self, folder: Path | str) -> FittedBaseline:
        """Write the baseline into a new or empty folder, completely or not at all.

        The folder holds ``baseline.json``, the arrays of the fit, and the source id of each item
        in their order; and the dataset, if that is in memory. ``candid.load(folder)`` reads it.

        Returns:
            the same baseline, with its folder.

        Raises:
            ConfigError: the folder has content.
            ArtifactError: the operating system refuses.
        """
        from candid.baselines.storage import write_arrays

        folder = Path(folder)
        check_is_empty(folder, "--save")
        with atomic_folder(folder) as temporary:
            write_arrays(temporary / ARRAYS, self.model)
            self.dataset.items.select("source_id").write_parquet(temporary / ITEMS)
            store_dataset(temporary, self.dataset)
            files = {name: file_entry(temporary / name) for name in (ARRAYS, ITEMS)}
            facts = {"fingerprint": files[ARRAYS]["sha256"], "files": files}
            manifest = write_sealed_json(temporary / BASELINE, self.manifest | facts)
        return replace(self, manifest=manifest, folder=folder)

    def _vector_model(self) -> TwoTowerModel:
        model = self.model.vector_model
        if model is None:
            raise ConfigError(
                f"the baseline {self.name} has no vectors: use recommend, or a baseline that has "
                "vectors, such as als"
            )
        return model


def fit_baseline(
    data: PreparedDataset | Path | str,
    name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    tuning: bool = True,
    evaluation: EvaluationConfig | None = None,
    seconds: float | None = None,
) -> FittedBaseline:
    """Fit a baseline to the training rows of a dataset, tuned on its validation targets.

    Args:
        data: a prepared dataset, or its folder.
        name: in ``candid.baselines.BASELINES``, such as "item_knn".
        settings: keys of the baseline's ``Config``; nothing is tuned. None: tuned ones.
        tuning: whether to tune; a dataset without validation targets gives the defaults.
        evaluation: metric of the tuning, and whether seen items are hidden; None: those of the
            default recipe for the dataset.
        seconds: CPU time after which tuning stops; None: no limit.

    Raises:
        ConfigError: the name or a setting is unknown, or the baseline cannot be fitted to such
            data.
        DataError: the dataset has no training interaction, or no validation target that can be
            measured.

    Example:
        >>> baseline = candid.fit_baseline("data/films", "markov")
        >>> baseline.recommend(histories=[[260, 1196]], k=5)
    """
    # Here, because only these functions need scipy.
    from candid.baselines import BASELINES, fit_tuned, training_rows

    dataset = as_dataset(data)
    baseline = lookup(BASELINES, "baseline", name)
    config = default_recipe(dataset=dataset).evaluation if evaluation is None else evaluation
    if settings is not None:
        model = baseline.fit(
            training_rows(dataset), validated(baseline.Config, settings, f"baseline {name}")
        )
        return fitted_baseline(name, model, dataset, config)
    tuned = fit_tuned(dataset, name, config, tuning=tuning, seconds=seconds)
    return fitted_baseline(name, tuned.model, dataset, config, tuned.validation, tuned.trials)


def fitted_baseline(
    name: str,
    model: Baseline,
    dataset: PreparedDataset,
    evaluation: EvaluationConfig,
    validation: float | None = None,
    trials: int = 0,
) -> FittedBaseline:
    """Return a fitted baseline with its dataset, ready to be saved.

    Args:
        name: in ``candid.baselines.BASELINES``.
        model: fitted to ``dataset``.
        dataset: the prepared dataset.
        evaluation: settings of evaluations.
        validation: validation metric of the settings; None: they were not tuned.
        trials: settings that were measured on validation.
    """
    manifest = {
        "format": FORMAT,
        "candid": __version__,
        "baseline": name,
        "settings": model.config.model_dump(mode="json"),
        "tuning": None
        if validation is None
        else {"metric": evaluation.metric, "validation": validation, "trials": trials},
        "evaluation": evaluation.model_dump(mode="json"),
        "dataset": dataset_facts(dataset),
        "command": shlex.join(sys.argv),
    }
    return FittedBaseline(name, model, dataset, evaluation, manifest)


def load_baseline(
    folder: Path | str,
    data: PreparedDataset | Path | str | None = None,
    *,
    verify: bool = True,
) -> FittedBaseline:
    """Open a saved baseline.

    Args:
        folder: of ``FittedBaseline.save`` or ``candid baselines --save``.
        data: the prepared dataset, or its folder; None: the one that ``baseline.json`` names.
        verify: whether to compare the files of baseline and dataset with their checksums.

    Raises:
        ArtifactError: not a saved baseline, one of another version, a damaged one, or another
            dataset.
    """
    with verification(verify):
        return _load_baseline(Path(folder), data)


def _load_baseline(folder: Path, data: PreparedDataset | Path | str | None) -> FittedBaseline:
    from candid.baselines import BASELINES
    from candid.baselines.storage import read_baseline

    manifest = read_baseline_manifest(folder)
    name = manifest["baseline"]
    try:
        baseline = lookup(BASELINES, "baseline", name)
        config = validated(baseline.Config, manifest["settings"], "settings")
        evaluation = validated(EvaluationConfig, manifest["evaluation"], "evaluation")
    except ConfigError as error:
        raise ArtifactError(
            f"{folder / BASELINE}: {error}; the file is damaged or of another version of candid: "
            "save the baseline again"
        ) from None
    dataset = dataset_of(folder, manifest["dataset"], data, made="fitted", again="save it again")
    check_file(folder / ARRAYS, manifest["files"][ARRAYS], SAVE_AGAIN)
    model = read_baseline(folder / ARRAYS, baseline, config)
    if len(model.target_counts) != dataset.num_items:
        raise ArtifactError(
            f"{folder / ARRAYS} has {len(model.target_counts)} items and the dataset has "
            f"{dataset.num_items}: save the baseline again"
        )
    return FittedBaseline(name, model, dataset, evaluation, manifest, folder)


def read_baseline_manifest(folder: Path) -> dict[str, Any]:
    """Read ``baseline.json``, and compare it with its checksum.

    Raises:
        ArtifactError: missing, damaged or of another format.
    """
    path = folder / BASELINE
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        baseline_format = manifest["format"]
        manifest["dataset"]["fingerprint"], manifest["dataset"]["path"]
        for key in ("baseline", "settings", "evaluation", "fingerprint"):
            manifest[key]
        for entry in manifest["files"].values() if baseline_format == FORMAT else ():
            int(entry["bytes"]), str(entry["sha256"])
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} is not a saved baseline: it has no {BASELINE}") from None
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"{path} is damaged; {SAVE_AGAIN}") from None
    if baseline_format != FORMAT:
        raise ArtifactError(
            f"{folder} holds a baseline of format {baseline_format} and this version of candid "
            f"reads format {FORMAT}: save the baseline again"
        )
    check_seal(path, manifest, SAVE_AGAIN)
    return manifest
