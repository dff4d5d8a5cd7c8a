"""The audit's figures for in-batch candidates against those of iterated training batches.

    python benchmarks/jackknife.py --work WORK
    python benchmarks/audit_batches.py WORK/run --out benchmarks/results/audit_batches.json

Measures estimators with in-batch candidates of a trained run twice: with the audit, which samples
the units beside each audited row, and by iterating epochs of the loader and scoring the audited
rows where they stand in its batches. The second way uses none of the audit's code and none of the
losses: it evaluates their formulas in float64 on dense vectors. Both give the bias of gradient and
loss, the standard deviation of Z' and the drift, with standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import candid
from candid.audit import (
    AuditInput,
    AuditSampler,
    DriftBudget,
    Estimator,
    SamplingBudget,
    measure_drift,
    sampler_config,
)
from candid.audit.full_softmax import compute_full_softmax
from candid.audit.measurement import measure
from candid.audit.run_inputs import run_inputs
from candid.batches import Loader
from candid.runs import Run, load_run
from page_blocks import with_block

GROUPS = 8
ESTIMATORS = {"refined": Estimator("refined"), "logq": Estimator("logq")}
"""``logq`` keeps accidental hits, its default."""
DRIFT_ROWS = 48
"""Audited rows whose users the drift is measured for."""
JACKKNIFE = "refined + jackknife"
LEFT_OUT = ("users", "rows")
"""What the jackknife leaves out; the loss leaves out users."""


class Sums:
    """Sums over epochs of one estimator, in groups of epochs."""

    def __init__(self, num_rows: int, num_items: int) -> None:
        self.gradient = np.zeros((GROUPS, num_rows, num_items))
        self.loss = np.zeros((GROUPS, num_rows))
        self.z_ratio = np.zeros((2, num_rows))
        self.squared = np.zeros(num_rows)


def jackknifed(value: Any) -> tuple[float, float]:
    """Return a function of all groups, and its standard error from leaving out one at a time."""
    everything = list(range(GROUPS))
    parts = np.array([value([k for k in everything if k != out]) for out in everything])
    error = math.sqrt((GROUPS - 1) / GROUPS * float(((parts - parts.mean()) ** 2).sum()))
    return float(value(everything)), error


def cross_products(means: np.ndarray, groups: list[int], weights: np.ndarray) -> np.ndarray:
    """Mean over pairs of different groups of Σ m_k(d)·m_l(d)·weight(d), for each row."""
    chosen = means[groups]
    total = (chosen.sum(axis=0) ** 2 * weights).sum(axis=1)
    own = (chosen**2 * weights).sum(axis=2).sum(axis=0)
    return (total - own) / (len(groups) * (len(groups) - 1))


def iterate(run: Run, data: AuditInput, batch_size: int, epochs: int, seed: int) -> dict[str, Any]:
    """Measure the estimators on the batches of whole epochs of the loader."""
    config = run.config.batches.model_copy(update={"batch_size": batch_size})
    loader = Loader(run.dataset, config, seed=seed)
    num_items, rng = run.dataset.num_items, np.random.default_rng(seed)
    dealt = np.zeros(num_items)
    for step in range(loader.num_batches):
        dealt += np.bincount(loader.batch(0, step).positive_ids.numpy(), minlength=num_items)
    with np.errstate(divide="ignore"):
        log_q = np.log(dealt / dealt.sum())
    scores = data.query.double().numpy() @ data.item_vectors.double().numpy().T
    probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores = np.log(probabilities)  # the partition function is 1
    positives, users = data.positive_ids.numpy(), data.user_ids.numpy()
    row_of_user = {int(user): row for row, user in enumerate(users)}
    num_rows = len(scores)
    # A user may have several windows: the audited row stands in the one that holds its item.
    sums = {name: Sums(num_rows, num_items) for name in ESTIMATORS}
    jackknives = {name: np.zeros((GROUPS, num_rows)) for name in LEFT_OUT}
    drift = {name: np.zeros((GROUPS, DRIFT_ROWS, num_items)) for name in ESTIMATORS}
    for epoch in range(1, epochs + 1):
        for step in range(loader.num_batches):
            batch = loader.batch(epoch, step)
            ids, owners = batch.positive_ids.numpy(), batch.user_ids.numpy()
            is_audited = np.isin(owners, users)
            is_audited[is_audited] &= (
                ids[is_audited] == positives[[row_of_user[int(u)] for u in owners[is_audited]]]
            )
            for user in set(owners[is_audited].tolist()):
                row, group = row_of_user[user], epoch % GROUPS
                others = ids[owners != user]
                add(sums, drift, group, row, others, scores[row], log_q, positives, rng)
                for name, labels in (
                    ("users", owners[owners != user]),
                    ("rows", np.arange(len(others))),
                ):
                    loss = jackknife_loss(others, labels, scores[row], log_q, int(positives[row]))
                    jackknives[name][group, row] += loss
    results = {
        name: summary(sums[name], drift[name], probabilities, positives, epochs) for name in sums
    }
    for name, loss in jackknives.items():
        results[f"{JACKKNIFE} over {name}"] = loss_figures(loss, probabilities, positives, epochs)
    return results


def jackknife_loss(
    others: np.ndarray, labels: np.ndarray, scores: np.ndarray, log_q: np.ndarray, positive: int
) -> float:
    """Return the refined loss with its jackknife: G·L - (G - 1)/G · Σ L(-j) over the groups j.

    Args:
        others: items of the candidates.
        labels: group of each candidate.
        scores: [V], log P.
        log_q: [V].
        positive: item of the row.
    """
    is_valid = others != positive
    others = others[is_valid]
    _, group = np.unique(labels[is_valid], return_inverse=True)
    sizes = np.bincount(group)
    sums = np.bincount(group, np.exp(scores[others] - log_q[others]))
    scale = (1.0 - np.exp(log_q[positive])) / np.exp(scores[positive])
    loss = np.log1p(scale * sums.sum() / sizes.sum())
    without = np.log1p(scale * (sums.sum() - sums) / (sizes.sum() - sizes))
    num_groups = len(sizes)
    return float(num_groups * loss - (num_groups - 1) * without.mean())


def add(
    sums: dict[str, Sums],
    drift: dict[str, np.ndarray],
    group: int,
    row: int,
    others: np.ndarray,
    scores: np.ndarray,
    log_q: np.ndarray,
    positives: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Add the estimates of one row with the items of the other users' rows of its batch."""
    counts = np.bincount(others, minlength=len(scores))
    is_present = np.flatnonzero(counts)
    # Terms c(d)·exp(s(d)) / Q(d) of the items in the batch.
    terms = np.zeros(len(scores))
    terms[is_present] = counts[is_present] * np.exp(scores[is_present] - log_q[is_present])
    everything = terms.sum()

    def parts(name: str, p: int) -> tuple[float, float]:
        """Z' without the positive, and the weight of the positive in the estimated softmax."""
        if name == "refined":
            num_valid = len(others) - counts[p]
            return (everything - terms[p]) / num_valid * (1.0 - np.exp(log_q[p])), np.exp(scores[p])
        # Hits are kept: n terms, and the positive with the shift -log(n·Q(p)).
        num = len(others)
        return everything / num, np.exp(scores[p] - log_q[p]) / num

    positive = int(positives[row])
    points = (rng.random() + np.arange(8)) / 8
    sampled = np.searchsorted(np.exp(scores).cumsum(), points * np.exp(scores).sum())
    for name, one in sums.items():
        z, own = parts(name, positive)
        share = terms / everything if name == "logq" else masked(terms, positive)
        own_share = 1.0 / (1.0 + z / own)
        gradient = (1.0 - own_share) * share
        gradient[positive] -= 1.0 - own_share
        one.gradient[group, row] += gradient
        one.loss[group, row] += np.log1p(z / own)
        exact = np.exp(scores)
        exact[positive] -= 1.0
        one.squared[row] += ((gradient - exact) ** 2).sum()
        ratio = z / (1.0 - np.exp(scores[positive]))
        one.z_ratio[:, row] += ratio, ratio**2
        for p in sampled if row < DRIFT_ROWS else ():
            z, own = parts(name, int(p))
            share = terms / everything if name == "logq" else masked(terms, int(p))
            own_share = 1.0 / (1.0 + z / own)  # 1 for an item that is never dealt
            drift[name][group, row] += (1.0 - own_share) * share / len(sampled)
            drift[name][group, row, p] += own_share / len(sampled)


def masked(terms: np.ndarray, positive: int) -> np.ndarray:
    """Shares of the terms without those of the positive."""
    shares = terms.copy()
    shares[positive] = 0.0
    return shares / shares.sum()


def summary(
    sums: Sums, drift: np.ndarray, probabilities: np.ndarray, positives: np.ndarray, epochs: int
) -> dict[str, float]:
    """Return the figures of one estimator with their standard errors."""
    per_group = epochs_per_group(epochs)
    rows = np.arange(len(positives))
    exact = probabilities.copy()
    exact[rows, positives] -= 1.0
    square = float((exact**2).sum())
    bias = sums.gradient / per_group[:, None, None] - exact
    ones = np.ones_like(probabilities)

    def bias_of(groups: list[int]) -> float:
        return float(cross_products(bias, groups, ones).sum()) / square

    squared, squared_error = jackknifed(bias_of)
    own = probabilities[:DRIFT_ROWS]
    deviation = drift / per_group[:, None, None] - own

    def drift_of(groups: list[int]) -> float:
        return float(cross_products(deviation, groups, 1.0 / own).mean()) / 2

    drift_value, drift_error = jackknifed(drift_of)
    z_mean = sums.z_ratio[0] / epochs
    variance = (sums.z_ratio[1] / epochs - z_mean**2) * epochs / (epochs - 1)
    # The variance of a row has a relative error of about sqrt(2 / epochs).
    z_sd = math.sqrt(float(variance.mean()))
    return {
        "bias": math.copysign(math.sqrt(abs(squared)), squared),
        "bias_error": math.sqrt(max(squared, 0.0) + squared_error) - math.sqrt(max(squared, 0.0)),
        "squared_bias": squared,
        "squared_bias_error": squared_error,
        "rmse": math.sqrt(float(sums.squared.sum()) / epochs / square),
        **loss_figures(sums.loss, probabilities, positives, epochs),
        "z_mean": float(z_mean.mean()),
        "z_sd": z_sd,
        "drift": drift_value,
        "drift_error": drift_error,
    }


def loss_figures(
    loss: np.ndarray, probabilities: np.ndarray, positives: np.ndarray, epochs: int
) -> dict[str, float]:
    """Return the bias of a loss, from its sums [K, B] over the epochs of each group."""
    exact = -np.log(probabilities[np.arange(len(positives)), positives])
    gaps = (loss / epochs_per_group(epochs)[:, None]).mean(axis=1) - exact.mean()
    return {
        "loss_bias": float(gaps.mean()),
        "loss_bias_error": float(gaps.std(ddof=1) / math.sqrt(GROUPS)),
    }


def epochs_per_group(epochs: int) -> np.ndarray:
    """Return how many of the epochs 1 to ``epochs`` each group has, by epoch modulo K."""
    return np.bincount(np.arange(1, epochs + 1) % GROUPS, minlength=GROUPS)


def audited(data: AuditInput, repeats: int, seed: int, batch_rows: int = 1) -> dict[str, Any]:
    """Measure the same with the audit; the drift with real batches only."""
    estimators = [*ESTIMATORS.values(), Estimator("refined", jackknife=True)]
    means = measure(
        data,
        compute_full_softmax(data),
        sampler_of(data, seed, batch_rows),
        estimators,
        SamplingBudget(repeats=repeats),
    )
    results: dict[str, Any] = {}
    for name, one in zip([*ESTIMATORS, f"{JACKKNIFE} over users"], means, strict=True):
        statistics = one.statistics()
        floor = max(statistics.bias, 0.0)
        results[name] = {
            "bias": statistics.bias,
            "bias_error": statistics.bias_error,
            "squared_bias": math.copysign(statistics.bias**2, statistics.bias),
            "squared_bias_error": (statistics.bias_error + floor) ** 2 - floor**2,
            "rmse": statistics.rmse,
            "loss_bias": statistics.loss_bias,
            "loss_bias_error": statistics.loss_bias_error,
            "z_mean": statistics.z_mean,
            "z_sd": statistics.z_sd,
        }
    if data.batches is not None:
        names = ("query", "positive_ids", "user_ids")
        some = replace(data, **{name: getattr(data, name)[:DRIFT_ROWS] for name in names})
        budget = DriftBudget(repeats=repeats, num_positives=2, seed=seed)
        drifts = measure_drift(some, sampler_of(some, seed + 1, 1), estimators, budget)
        for figures, drift in zip(results.values(), drifts, strict=True):
            figures |= {"drift": drift.mean, "drift_error": drift.block_error}
    return results


def sampler_of(data: AuditInput, seed: int, batch_rows: int) -> AuditSampler:
    """Return the audit's sampler of in-batch candidates."""
    generator = torch.Generator().manual_seed(seed)
    config = sampler_config({"type": "in_batch"})
    return AuditSampler(config, data, batch_rows=batch_rows, generator=generator)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Return four significant digits."""
    return {key: float(f"{value:.4g}") for key, value in values.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a trained run over windows of histories")
    parser.add_argument("--rows", type=int, default=192, help="audited rows, one of each user")
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--iterated-epochs", type=int, default=24)
    parser.add_argument(
        "--repeats", type=int, default=320, help="of the audit, fewer for more rows"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    results = []
    run = load_run(options.run)
    data = run_inputs(run, options.rows)[-1]
    for windows in options.windows:
        part = replace(data, batches=replace(data.batches, units_per_batch=windows))
        rows = round(part.batches.mean_other_rows)
        repeats = max(48, options.repeats * 16 // windows)
        ways = {
            "iterated": iterate(run, data, windows, options.iterated_epochs, seed=7),
            "audit": audited(part, repeats, seed=8),
            "independent rows": audited(replace(data, batches=None), repeats, 9, rows),
        }
        for way, by_estimator in ways.items():
            for estimator, values in by_estimator.items():
                line = {"windows": windows, "rows": rows, "estimator": estimator, "way": way}
                results.append(line | rounded(values))
                print(results[-1], flush=True)
        print(f"{time.process_time() - began:.0f} CPU seconds", flush=True)
        if options.out:
            write(options, results, part.batches.num_units, time.process_time() - began)


def table(document: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| windows | correction | batches | gradient bias | RMSE | loss bias | sd of Z' | drift |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in document["results"]:
        cells = [f"{one['windows']} ({one['rows']:,} rows)", one["estimator"], one["way"]]
        cells.append(_with_error(one, "bias"))
        cells.append(f"{one['rmse']:.3f}" if "rmse" in one else "–")
        cells.append(_with_error(one, "loss_bias"))
        cells.append(f"{one['z_sd']:.3f}" if "z_sd" in one else "–")
        cells.append(_with_error(one, "drift"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_error(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:.4f} ± {values[name + '_error']:.4f}" if name in values else "–"


def with_table(docs: str, document: dict[str, Any]) -> str:
    """Return a page of the docs with the table of the results."""
    return with_block(docs, "batches", table(document) + "\n")


def write(options: argparse.Namespace, results: list[Any], num_windows: int, cpu: float) -> None:
    """Write the results so far."""
    settings = {key: value for key, value in vars(options).items() if key not in ("run", "out")}
    report = {
        "command": "python benchmarks/audit_batches.py WORK/run",
        "run": "of python benchmarks/jackknife.py --work WORK",
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": settings,
        "windows_in_data": num_windows,
        "cpu_seconds": round(cpu),
        "results": results,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
