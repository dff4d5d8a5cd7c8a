"""The evaluation itself: full catalog, one query a user, all numbers from one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints, held_out_queries
from candid.data import HeldOut, PreparedDataset, Role
from candid.errors import ConfigError, DataError
from candid.evaluation.bootstrap import Estimate
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.item_subset import ItemSubset, is_ranked
from candid.evaluation.metric_sums import MetricSums, concatenate, tally
from candid.evaluation.metrics import Floats, list_mean, popularity_percentile
from candid.evaluation.queries import EvaluationQueries, Targets, seen, select, targets_of
from candid.evaluation.report import EvaluationReport, PerUser, Slice
from candid.evaluation.slices import Slicing, by_history_length, by_popularity, by_warmth
from candid.evaluation.two_tower_model import (
    StageProgress,
    TwoTowerModel,
    encoded_catalog,
    inference,
)
from candid.features import Context
from candid.index import Exclusions

TrueLogProb = Callable[[HeldOut], Floats]
"""EvaluationQueries to the true log P(target | user, history) of each target, [M] float64."""


def evaluate(
    model: TwoTowerModel,
    dataset: PreparedDataset,
    config: EvaluationConfig,
    *,
    role: Role = Role.TEST,
    max_length: int,
    context: Context | None = None,
    true_log_prob: TrueLogProb | None = None,
    progress: StageProgress | None = None,
) -> EvaluationReport:
    """Ask every user with targets of ``role`` one question and score the answers.

    The query is the history before the user's first target, and the context, where the model
    reads it, the kind and time of that target, also for the later ones of a user with several;
    the list is the exact top-k of the whole catalog. With ``filter_seen`` the items of the whole
    history are left out of the list (of several kinds of interaction only those of targets), and
    a target among them counts as not relevant (how many is in ``counts``). Ranking metrics
    are means over users who have a relevant item left. The NLL is over all targets and the
    unfiltered catalog, as in training. With ``config.catalog`` "warm" or "cold" the catalog is
    that part alone, in lists, coverage and NLL, and so are the targets.

    Args:
        model: encodes; put in inference mode meanwhile.
        dataset: the prepared dataset.
        config: what is measured.
        role: whose targets are asked for.
        max_length: longest history that the model reads.
        context: what encodes the moment of each question for the model; None: it reads none.
        true_log_prob: the truth, where it is known; adds ``true_nll`` and ``excess_nll``.
        progress: called with (stage, done, in all) while items are encoded and after each batch
            of users.

    Raises:
        ConfigError: a cut-off k is larger than the catalog, or a truth is given without nll.
        DataError: there are no targets, or no user that the model can answer.
        ArtifactError: the model's vectors are not finite.
    """
    ranked = is_ranked(dataset.train_counts, config.catalog)
    config.check_fits(int(ranked.sum()))
    if true_log_prob is not None and not config.nll:
        raise ConfigError("evaluation.nll must be true to compare with the true probabilities")
    questions = select(
        dataset,
        role,
        needs_history=model.needs_history,
        max_users=config.max_users,
        seed=config.seed,
        catalog=config.catalog,
    )
    with inference(model):
        items = encoded_catalog(model, progress).float()
        asked = _Pass(items, dataset, config, questions, true_log_prob)
        batches = held_out_queries(
            dataset, questions.held_out, max_length, config.batch_size, context
        )
        for rows, queries in batches:
            asked.answer(rows, model.encode_queries(queries.to(asked.device)).float())
            if progress is not None:
                progress("asking users", rows.stop, len(questions))
    return asked.report(role, max_length)


@dataclass(frozen=True)
class _Division:
    """A slicing of target items and what was counted under it."""

    slicing: Slicing
    parts: list[MetricSums]

    def joined(self) -> MetricSums:
        return concatenate(self.parts)


class _Pass:
    """The state of one evaluation: what is fixed, and what the batches add up to."""

    def __init__(
        self,
        items: Tensor,
        dataset: PreparedDataset,
        config: EvaluationConfig,
        questions: EvaluationQueries,
        true_log_prob: TrueLogProb | None,
    ) -> None:
        self._dataset, self._config, self._questions = dataset, config, questions
        self._items = items
        if len(self._items) != dataset.num_items:
            raise ConfigError(
                f"the model knows {len(self._items)} items and the dataset has "
                f"{dataset.num_items}: evaluate it on the dataset it was trained on"
            )
        self.device = self._items.device
        counts = dataset.train_counts
        self._is_ranked = is_ranked(counts, config.catalog)
        self._ranked = ItemSubset(self._items, self._is_ranked)
        self._item_values = {
            "popularity": counts.astype(np.float64),
            "popularity_percentile": popularity_percentile(counts),
        }
        self._recommended = np.zeros((len(config.ks), dataset.num_items), dtype=np.bool_)
        self._truth = None if true_log_prob is None else true_log_prob(questions.held_out)
        targets = questions.held_out.target_ids
        if self._truth is not None and self._truth.shape != targets.shape:
            raise DataError(
                f"true log-probabilities have shape {list(self._truth.shape)}, one a target "
                f"would be [{len(targets)}]"
            )
        self._everything = _Division(Slicing(("all",), np.zeros_like(counts)), [])
        self._divisions: dict[str, _Division] = {}
        if config.popularity_slices:
            popularity = by_popularity(counts, config.popularity_slices)
            self._divisions["target_popularity"] = _Division(popularity, [])
        if 0 < questions.counts["cold_targets"] < questions.counts["targets"]:
            self._divisions["target_warmth"] = _Division(by_warmth(counts), [])
        self._num_relevant = self._without_relevant = self._num_distinct = 0

    def answer(self, rows: slice, query: Tensor) -> None:
        """Count one batch: queries [b, D]."""
        config, questions = self._config, self._questions.held_out
        history = seen(self._dataset, questions, rows) if config.filter_seen else None
        targets = targets_of(questions, rows, self._dataset.num_items, history)
        exclude = None
        if history is not None:
            exclude = Exclusions(history.item_ids.to(self.device), history.offsets.to(self.device))
        found = self._ranked.best(query, config.ks[-1], exclude)
        lists: dict[str, Floats] = {}
        for name, values in self._item_values.items():
            means = list_mean(values, found, config.ks)
            lists |= {f"{name}@{k}": means[:, c] for c, k in enumerate(config.ks)}
        for c, k in enumerate(config.ks):
            shown = found[:, :k]
            self._recommended[c, shown[shown >= 0]] = True
        likelihoods = self._likelihoods(rows, query, targets) if config.nll else {}
        for division in (self._everything, *self._divisions.values()):
            division.parts.append(
                tally(
                    found,
                    targets,
                    division.slicing.groups,
                    len(division.slicing.labels),
                    config.ks,
                    lists,
                    likelihoods,
                    rows.start,
                )
            )
        self._num_relevant += len(targets.relevant)
        answered = len(np.unique(targets.relevant // self._dataset.num_items))
        self._without_relevant += len(query) - answered
        pairs = targets.rows * self._dataset.num_items + targets.item_ids
        self._num_distinct += len(np.unique(pairs))

    def _likelihoods(self, rows: slice, query: Tensor, targets: Targets) -> dict[str, Floats]:
        target_rows = torch.from_numpy(targets.rows).to(self.device)
        target_ids = torch.from_numpy(targets.item_ids).to(self.device)
        nll = self._ranked.nll(query, target_rows, target_ids).cpu().numpy()
        if self._truth is None:
            return {"nll": nll}
        offsets = self._questions.held_out.target_offsets
        true_nll = -self._truth[offsets[rows.start] : offsets[rows.stop]]
        return {"nll": nll, "true_nll": true_nll, "excess_nll": nll - true_nll}

    def report(self, role: Role, max_length: int) -> EvaluationReport:
        """Reduce what was counted."""
        config = self._config
        everything = self._everything.joined()
        metrics = dict(self._estimates(everything, 1)[0])
        for c, k in enumerate(config.ks):
            metrics[f"coverage@{k}"] = Estimate(float(self._recommended[c, self._is_ranked].mean()))
        slices = {}
        for name, division in self._divisions.items():
            slices[name] = self._slices(
                division.joined(), division.slicing.labels, division.slicing.groups
            )
        if config.history_slices:
            lengths = by_history_length(self._questions.history_lengths, config.history_slices)
            slices["history_length"] = self._slices(
                everything.regrouped(lengths.groups), lengths.labels, None
            )
        if 0 < self._questions.counts["cold_users"] < self._questions.counts["users"]:
            users = by_warmth(self._questions.user_is_trained.astype(np.int64))
            slices["user_warmth"] = self._slices(
                everything.regrouped(users.groups), users.labels, None
            )
        counts = self._questions.counts | {
            "targets_seen_before": self._num_distinct - self._num_relevant,
            "users_without_relevant": self._without_relevant,
        }
        settings: dict[str, Any] = {
            "role": role.name.lower(),
            "max_length": max_length,
            **config.model_dump(mode="json"),
        }
        return EvaluationReport(
            metrics=metrics,
            metric=config.metric,
            slices=slices,
            counts=counts,
            settings=settings,
            per_user=PerUser.of(self._questions.held_out.user_ids, everything),
        )

    def _estimates(self, rows: MetricSums, num_groups: int) -> list[dict[str, Estimate]]:
        return rows.estimates(
            num_groups,
            len(self._questions),
            bootstrap=self._config.bootstrap,
            confidence=self._config.confidence,
            seed=self._config.seed,
        )

    def _slices(
        self, rows: MetricSums, labels: tuple[str, ...], group_of_item: Ints | None
    ) -> tuple[Slice, ...]:
        """Reduce a slicing, of items (``group_of_item`` given) or of queries."""
        asked = self._questions.held_out
        queries = np.bincount(rows.groups, minlength=len(labels))
        if group_of_item is None:
            group_of_target = np.repeat(rows.groups, np.diff(asked.target_offsets))
        else:
            group_of_target = group_of_item[asked.target_ids]
        targets = np.bincount(group_of_target, minlength=len(labels))
        found: list[Mapping[str, Estimate]] = list(self._estimates(rows, len(labels)))
        slices = []
        for g, label in enumerate(labels):
            here = rows.groups == g
            per_user = PerUser(
                asked.user_ids[rows.owners[here]],
                rows.names,
                rows.numerators[here],
                rows.denominators[here],
            )
            if queries[g]:
                slices.append(Slice(label, int(queries[g]), int(targets[g]), found[g], per_user))
        return tuple(slices)
