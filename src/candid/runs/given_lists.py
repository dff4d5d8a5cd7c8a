"""Evaluation of given recommendations: those of any system, from a table or a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.config import default_recipe, validated
from candid.data import PreparedDataset, as_dataset, is_table, table_frame
from candid.data.readers import collect, open_sources
from candid.errors import DataError
from candid.evaluation import EvaluationConfig, EvaluationReport, evaluate_lists
from candid.inference import StageProgress
from candid.runs.splits import role_of


def evaluate_recommendations(
    recommendations: Any,
    dataset: PreparedDataset | Path | str,
    split: str = "test",
    ks: Sequence[int] = (10, 20, 100),
    *,
    item_counts: npt.NDArray[np.float64] | None = None,
    progress: StageProgress | None = None,
    **overrides: Any,
) -> EvaluationReport:
    """Evaluate lists of recommended items, of this package or of another system.

    Each row is one recommendation: ``query`` (source id of the user), ``item`` (source id), and
    ``rank`` or ``score``, in any order; other columns are ignored. The rules:

    - The lowest rank comes first; without a column ``rank``, the highest score. Only the order
      counts: ranks may begin at any number and have gaps.
    - Equal ranks (or scores) of a list are ties; metrics are expectations over their orders.
    - Ranks after the end of a short list have no item. A user with targets and without rows counts
      with 0. ``counts`` has ``short_lists`` and ``users_without_list``.
    - An item that the dataset does not have keeps its rank and is not relevant
      (``unknown_items``); among ties it comes first. Users that the dataset does not have are left
      out (``unknown_users``).
    - An item twice in a list, or a missing value, is refused.
    - Only retired items are removed from a list: a seen item keeps its rank.

    Lists must be made from the history before the targets, such as those of
    ``write_recommendations`` with ``split``; ``Run.recommend`` reads the whole history, and leaves
    out seen items, so that its lists have no target. For lists before the targets, with the
    ``item_counts`` of the run, the result is that of ``Run.evaluate``, except that it has no NLL
    and that users without a history count.

    Args:
        recommendations: a Polars or pandas data frame, an Arrow table, or the path of a file in a
            format of ``candid prepare``, such as Parquet, CSV or JSON Lines, or of a folder.
        dataset: the prepared dataset with the targets, or its folder.
        split: "test" or "validation".
        ks: cut-offs.
        item_counts: [V], how often training has each item as a target, such as ``Run.item_counts``;
            None: the stored training interactions. Popularity metrics and slices follow it.
        progress: called with (stage, done, total).
        **overrides: keys of ``EvaluationConfig``; others have the value of the default recipe of
            the dataset, such as ``filter_seen``: a target in the user's history is not relevant.

    Raises:
        DataError: there are no rows, a column or a value is missing, a column holds lists, an item
            is twice in one list, no user or no item is known, or the split has no target.
        ConfigError: an unknown split or setting, a cut-off k that is not a whole number or
            is larger than the catalog, or intra-list diversity without an item attribute.

    Example:
        >>> lists = pl.DataFrame({"query": [42, 42], "item": [260, 1196], "rank": [1, 2]})
        >>> report = candid.evaluate_recommendations(lists, "data/films", ks=(10,))
        >>> report.metrics["ndcg@10"]
    """
    role = role_of(split)
    dataset = as_dataset(dataset)
    table = lists_config(dataset).model_dump(mode="json") | _cut_offs(ks)
    config = validated(EvaluationConfig, {**table, **overrides}, "evaluate_recommendations")
    return evaluate_lists(
        read_recommendations(recommendations),
        dataset,
        config,
        role=role,
        item_counts=item_counts,
        progress=progress,
    )


def _cut_offs(ks: Any) -> dict[str, Any]:
    """Return the settings ``ks``, and ``metric`` where all cut-offs are numbers."""
    listed = list(ks) if isinstance(ks, Iterable) and not isinstance(ks, str) else ks
    try:
        numbers = [int(k) for k in listed]
    except (TypeError, ValueError):
        return {"ks": listed}  # the validation of the settings reports what is wrong
    chosen = [k for k in numbers if k <= 10] or numbers[:1]
    return {"ks": listed, "metric": f"ndcg@{max(chosen)}"} if chosen else {"ks": listed}


def lists_config(dataset: PreparedDataset) -> EvaluationConfig:
    """Return the evaluation settings of the default recipe of a dataset, without the NLL."""
    return default_recipe(dataset=dataset).evaluation.model_copy(update={"nll": False})


def read_recommendations(recommendations: Any) -> pl.DataFrame:
    """Return a table of any kind, or a file, as a Polars frame.

    Args:
        recommendations: a Polars or pandas data frame, an Arrow table, or the path of a file or
            of a folder of files.

    Raises:
        DataError: a file cannot be read, or the object is not a table.
    """
    if is_table(recommendations):
        return table_frame(recommendations, "the table of recommendations")
    if isinstance(recommendations, str | Path):
        sources = open_sources(str(recommendations), "auto", None)
        frame = pl.concat([source.frame for source in sources], how="diagonal_relaxed")
        return collect(frame, sources)
    raise DataError(
        f"recommendations must be a data frame or a path, not {type(recommendations).__name__}:"
        " give a Polars, pandas or Arrow table, or the path of a file"
    )
