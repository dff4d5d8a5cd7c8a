"""The tests of the claims of the study, from the records of its cells.

Each test judges one claim at every grid point that it is about. ``candid.study.claims`` has the
claims themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from candid.evaluation import holm
from candid.study.drift_cells import FULL, DriftCell, drift_cells, predicted_difference
from candid.study.statistics import (
    PairedDifference,
    paired_difference,
    rank_correlation,
)
from candid.study.study_cells import METRICS, GridPoint, Metric, StudyCells
from candid.study.verdicts import Evidence, Judgement, judge_all

MARGINS: Final[dict[Metric, float]] = {"ndcg": 0.002, "nll": 0.01}
"""Differences that are too small to matter."""
DRIFT_SHARE: Final = 0.3
"""Largest distance of a measured difference from the predicted one, as a share of the latter."""
MIN_SEEDS: Final = 5
"""Least number of common seeds, planned and finished, of a test."""
CORRELATION: Final = 0.9
MIN_PAIRS: Final = 10
"""Least number of cells of a rank correlation."""
MIN_DATASETS: Final = 5
"""Least number of datasets of a rank correlation."""
LARGE_CATALOG: Final = 50_000
HUGE_CATALOG: Final = 1_000_000
CANDIDATE_SHARE: Final = 0.01
"""Largest n as a share of the catalog where a sampled recipe shall be level with all items."""
COST_SHARE: Final = 0.5
KEPT: Final = "logq_kept"
KEPT_OR_DISTINCT: Final = (KEPT, "logq_distinct")
MASKED: Final = "logq_masked"
REFINED: Final = "refined"
PUBLISHED: Final = "published_code"
UNCORRECTED: Final = "none"
UNIFORM: Final = "uniform"
_NO_COMMON_SEED: Final = PairedDifference(0.0, math.nan, math.nan, users=0, seeds=0)


def correction_doubles_ndcg(study: StudyCells) -> Judgement:
    """Test whether NDCG@10 of logq_kept is above twice that of none."""
    evidence = []
    points, too_few = (
        [point for point in found if point.sampler != UNIFORM]
        for found in _points(study, UNCORRECTED, KEPT)
    )
    for point in points:
        gap = study.difference(point, KEPT, UNCORRECTED, "ndcg", factor=2.0)
        if gap is None or gap.seeds < MIN_SEEDS:
            evidence.append(_too_few_seeds(point, gap.seeds if gap else 0))
            continue
        values, _ = study.values(point, (KEPT, UNCORRECTED), "ndcg")
        means = [float(values[arm].mean()) for arm in (KEPT, UNCORRECTED)]
        ratio = f"{means[0] / means[1]:.2f} times" if means[1] > 0 else "against"
        detail = f"NDCG@10 {means[0]:.4f}, {ratio} {means[1]:.4f}"
        evidence.append(Evidence(point.label, detail, gap.p_above(0.0), gap.p_below(0.0)))
    return judge_all(evidence, left_out=_few_planned(len(too_few)))


def difference_follows_drift(study: StudyCells) -> Judgement:
    """Test whether the difference in NLL of refined and logq is that of their drifts.

    A grid point is left out if it has enough seeds to compare refined neither with kept hits nor
    with masked ones.
    """
    evidence = []
    compared: set[GridPoint] = set()
    left_out: set[GridPoint] = set()
    for other in (KEPT, MASKED):
        points, too_few = _points(study, REFINED, other)
        compared.update(points)
        left_out.update(too_few)
        for point in points:
            label = f"{point.label}, against {other}"
            gap = study.difference(point, REFINED, other, "nll")
            predicted = predicted_difference(study, point, REFINED, other)
            if gap is None or gap.seeds < MIN_SEEDS:
                evidence.append(_too_few_seeds(point, gap.seeds if gap else 0, label))
            elif predicted is None:
                evidence.append(Evidence(label, "drift was not measured"))
            else:
                evidence.append(_drift_evidence(label, gap, *predicted))
    return judge_all(evidence, left_out=_few_planned(len(left_out - compared)))


def _drift_evidence(label: str, gap: PairedDifference, predicted: float, error: float) -> Evidence:
    """Compare a measured difference with the ends of an interval around the predicted one.

    Each end is a multiple of the prediction plus a constant, so that its error is that multiple of
    the error of the prediction.
    """
    if DRIFT_SHARE * abs(predicted) > MARGINS["nll"]:
        ends = [(1 - DRIFT_SHARE, 0.0), (1 + DRIFT_SHARE, 0.0)]
    else:
        ends = [(1.0, -MARGINS["nll"]), (1.0, MARGINS["nll"])]
    ends.sort(key=lambda end: end[0] * predicted + end[1])
    low, high = (
        replace(
            gap,
            value=gap.value - factor * predicted - shift,
            error=math.hypot(gap.error, factor * error),
        )
        for factor, shift in ends
    )
    detail = f"NLL {gap.value:+.3f}, predicted {predicted:+.3f} ± {error:.3f}"
    p_support = max(low.p_above(0.0), high.p_below(0.0))
    p_against = min(1.0, 2 * min(low.p_below(0.0), high.p_above(0.0)))
    return Evidence(label, detail, p_support, p_against)


def kept_is_never_behind(study: StudyCells) -> Judgement:
    """Test whether logq_kept or logq_distinct is not inferior to any other arm."""
    evidence, left_out = [], 0
    for point in study.points:
        arms = [arm for arm in study.arms(point) if study.num_planned(point, arm) >= MIN_SEEDS]
        ours = [arm for arm in KEPT_OR_DISTINCT if arm in arms]
        others = [arm for arm in arms if arm not in KEPT_OR_DISTINCT]
        if not ours or not others:
            left_out += 1
            continue
        tests = [_gains(study, point, arm, others) for arm in ours]
        seeds = min((gap.seeds for gaps in tests for _, gap, _ in gaps), default=0)
        if seeds < MIN_SEEDS:
            evidence.append(_too_few_seeds(point, seeds))
            continue
        p_support, p_against = [], []
        for gaps in tests:
            p_support.append(max(gap.p_above(-margin) for _, gap, margin in gaps))
            p_against.append(min(holm([gap.p_below(-margin) for _, gap, margin in gaps])))
        # Two arms are two chances to support; both have to be behind to contradict.
        best = int(np.argmin(p_support))
        worst, gap, _ = min(tests[best], key=lambda one: one[1].value / one[2])
        detail = f"{ours[best]} at least {gap.value:+.4f} from {worst}, positive is better"
        evidence.append(
            Evidence(point.label, detail, min(1.0, len(tests) * p_support[best]), max(p_against))
        )
    return judge_all(evidence, left_out=_few_planned(left_out))


def _gains(
    study: StudyCells, point: GridPoint, arm: str, others: Sequence[str]
) -> list[tuple[str, PairedDifference, float]]:
    """Return name, gain and margin of an arm against all others in all metrics."""
    gains = []
    for other in others:
        for metric, margin in MARGINS.items():
            gap = _gain(study, point, arm, other, metric) or _NO_COMMON_SEED
            gains.append((f"{other} in {METRICS[metric]}", gap, margin))
    return gains


def gain_is_over_the_published_baseline(study: StudyCells) -> Judgement:
    """Test whether refined is ahead of published_code and not of logq_kept."""
    evidence = []
    points, too_few = _points(study, REFINED, PUBLISHED, KEPT)
    for point in points:
        over_published = study.difference(point, REFINED, PUBLISHED, "ndcg")
        over_kept = study.difference(point, REFINED, KEPT, "ndcg")
        seeds = min(one.seeds if one else 0 for one in (over_published, over_kept))
        if over_published is None or over_kept is None or seeds < MIN_SEEDS:
            evidence.append(_too_few_seeds(point, seeds))
            continue
        margin = MARGINS["ndcg"]
        detail = (
            f"NDCG@10 of refined {over_published.value:+.4f} over {PUBLISHED}, "
            f"{over_kept.value:+.4f} over {KEPT}"
        )
        p_support = max(over_published.p_above(0.0), over_kept.p_below(margin))
        p_against = 2 * min(over_published.p_below(0.0), over_kept.p_above(margin))
        evidence.append(Evidence(point.label, detail, p_support, min(1.0, p_against)))
    return judge_all(evidence, left_out=_few_planned(len(too_few)))


def drift_ranks_the_excess(study: StudyCells) -> Judgement:
    """Test whether the drift ranks the excess NLL over datasets, and the gradient bias does not."""
    cells = [one for one in drift_cells(study) if one.seeds >= MIN_SEEDS]
    datasets = [one.point.dataset for one in cells]
    if len(cells) < MIN_PAIRS or len(set(datasets)) < MIN_DATASETS:
        reason = f"{len(cells)} cells of {len(set(datasets))} datasets with a drift; needs "
        reason += f"{MIN_PAIRS} cells of {MIN_DATASETS} datasets, each with {MIN_SEEDS} seeds"
        return Judgement("not decided", reason)
    excess, sources = [one.excess for one in cells], [study.source(name) for name in datasets]
    drift = rank_correlation([one.drift for one in cells], excess, groups=sources)
    reason = f"{len(cells)} cells: rank correlation with the excess NLL {drift} of drift"
    biases = [one.gradient_bias for one in cells if one.gradient_bias is not None]
    all_known = len(biases) == len(cells)
    bias = rank_correlation(biases, excess, groups=sources) if all_known else None
    known = "was not measured in all cells" if bias is None else f"{bias}"
    reason += f"; of the gradient bias given the positive: {known}; {_with_zeros(cells, sources)}"
    if drift.high < CORRELATION or (bias is not None and bias.low > CORRELATION):
        return Judgement("against", reason)
    if drift.low > CORRELATION and bias is not None and bias.high < CORRELATION:
        return Judgement("supported", reason)
    return Judgement("not decided", reason)


def _with_zeros(cells: Sequence[DriftCell], sources: Sequence[str]) -> str:
    """Return the correlations with values below twice their error as 0, and how many there are."""
    columns = {
        "drifts": [one.drift if one.drift_is_above_its_error else 0.0 for one in cells],
        "gradient biases": [
            one.gradient_bias if one.gradient_bias and one.bias_is_above_its_error else 0.0
            for one in cells
        ],
    }
    parts = []
    for name, values in columns.items():
        found = rank_correlation(values, [one.excess for one in cells], groups=sources)
        parts.append(f"{values.count(0.0)} {name} are below twice their error, as 0: {found}")
    return "; ".join(parts)


def sampled_is_level(study: StudyCells, least: int, most: float) -> Judgement:
    """Test whether logq_kept is level with the full softmax for less of its CPU time.

    Args:
        study: its cells.
        least: smallest catalog of the claim, in items.
        most: larger than its largest catalog, in items.
    """
    sizes = [study.num_items(block) for block in study.blocks]
    if sizes and not any(size is None or least <= size < most for size in sizes):
        end = "" if math.isinf(most) else f" and fewer than {most:,.0f}"
        reason = f"no catalog of the study has at least {least:,}{end} items"
        return judge_all([], left_out=reason)
    evidence, left_out = [], 0
    planned, _ = _points(study, KEPT)
    for block, num_items in zip(study.blocks, sizes, strict=True):
        points = [point for point in planned if point.whole_catalog == block]
        if num_items is not None and not least <= num_items < most:
            continue
        if not points or study.num_planned(block, FULL) < MIN_SEEDS:
            left_out += 1
        elif num_items is None:
            evidence.append(Evidence(block.data, "no cell is finished: the catalog is unknown"))
        else:
            evidence.append(_block_evidence(study, block, _largest(study, points, num_items)))
    return judge_all(evidence, left_out=_few_planned(left_out))


def _largest(study: StudyCells, points: Sequence[GridPoint], num_items: int) -> list[GridPoint]:
    """Return, for each planned sampler, the grid point with the largest n that is small enough.

    An n that follows from the batch and has no finished cell yet counts as small enough.
    """
    largest: dict[str, tuple[int, GridPoint]] = {}
    for point in points:
        finished = list(study.finished(point, KEPT).values())
        n = finished[0].candidates_per_row if finished else point.num_candidates
        if n <= CANDIDATE_SHARE * num_items and n >= largest.get(point.sampler, (0, point))[0]:
            largest[point.sampler] = n, point
    return [point for _, point in largest.values()]


def _block_evidence(study: StudyCells, block: GridPoint, largest: Sequence[GridPoint]) -> Evidence:
    """Compare the grid point of each sampler with the full softmax."""
    if not largest:
        return Evidence(
            block.data, f"no sampler has n of at most {CANDIDATE_SHARE:.0%} of the items"
        )
    tests, few = [], []
    for point in largest:
        mine, full = study.finished(point, KEPT), study.finished(point, FULL)
        seeds = sorted(set(mine) & set(full))
        gaps = [_gain(study, point, KEPT, FULL, metric) for metric in METRICS]
        if len(seeds) < MIN_SEEDS or None in gaps:
            few.append(f"{point.candidates}: {_seed_count(len(seeds))}")
            continue
        ndcg, nll = (gap for gap in gaps if gap is not None)
        seconds = [np.array([[one[s].cpu_seconds] for s in seeds]) for one in (mine, full)]
        # Seconds have no users: the seeds are the sample.
        cost = paired_difference(seconds[0], COST_SHARE * seconds[1])
        p_values = [
            (ndcg.p_above(-MARGINS["ndcg"]), ndcg.p_below(-MARGINS["ndcg"])),
            (nll.p_above(-MARGINS["nll"]), nll.p_below(-MARGINS["nll"])),
            (cost.p_below(0.0), cost.p_above(0.0)),
        ]
        detail = (
            f"{point.candidates}: NDCG@10 {ndcg.value:+.4f}, NLL {-nll.value:+.3f}, "
            f"{seconds[0].mean() / seconds[1].mean():.2f} of the CPU seconds"
        )
        support, against = zip(*p_values, strict=True)
        tests.append((max(support), min(holm(against)), detail))
    if not tests:
        return Evidence(block.data, "; ".join(few))
    # One level sampler is enough, and each is a chance; all have to fail to contradict.
    p_support, _, detail = min(tests)
    p_against = 1.0 if few else max(one for _, one, _ in tests)
    return Evidence(
        block.data, "; ".join([detail, *few]), min(1.0, len(largest) * p_support), p_against
    )


def _points(study: StudyCells, *arms: str) -> tuple[list[GridPoint], list[GridPoint]]:
    """Return the grid points that have all arms: with enough planned seeds, and with too few."""
    enough: list[GridPoint] = []
    too_few: list[GridPoint] = []
    for point in study.points:
        if set(arms) <= set(study.arms(point)):
            planned = min(study.num_planned(point, arm) for arm in arms)
            (enough if planned >= MIN_SEEDS else too_few).append(point)
    return enough, too_few


def _few_planned(left_out: int) -> str:
    """Return how many grid points have no test because the study plans too few seeds there."""
    if not left_out:
        return ""
    places = "1 grid point has" if left_out == 1 else f"{left_out} grid points have"
    return f"{places} no arms to compare with {MIN_SEEDS} planned seeds"


def _gain(
    study: StudyCells, point: GridPoint, arm: str, other: str, metric: Metric
) -> PairedDifference | None:
    """Return the difference of two arms, positive where the first one is better."""
    pair = (other, arm) if metric == "nll" else (arm, other)
    return study.difference(point, *pair, metric)


def _too_few_seeds(point: GridPoint, seeds: int, label: str | None = None) -> Evidence:
    return Evidence(label or point.label, _seed_count(seeds))


def _seed_count(seeds: int) -> str:
    return f"{seeds} common seed{'' if seeds == 1 else 's'} finished; needs {MIN_SEEDS}"
