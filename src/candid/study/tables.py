"""Tables of a study: each arm at each grid point, with its difference to a reference arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any, Final

from candid.evaluation import holm
from candid.study.records import finite
from candid.study.study_cells import METRICS, GridPoint, Metric, StudyCells

REFERENCE: Final = "logq_kept"
"""Arm that the others are compared with: the default correction of a recipe."""
COLUMNS: Final = (
    "arm",
    "rate",
    "seeds",
    *(
        column
        for name in METRICS.values()
        for column in (name, f"{name.split(',')[0]}: difference")
    ),
    "CPU seconds",
)
"""Columns of ``ArmRow.cells``."""
AT_EDGE: Final = "*"
"""Mark of a learning rate at an edge."""
EDGE: Final = "the smallest or the largest one that its pilot tried, a better one may lie beyond"
"""Meaning of the mark, in words."""
DIGITS: Final[Mapping[Metric, int]] = {"ndcg": 4, "nll": 3}


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference to the reference arm, over the users and seeds of both.

    Attributes:
        value: the arm minus the reference.
        low: lower end of the 95 % interval; None for a single user.
        high: upper end.
        adjusted_p_value: two-sided, adjusted after Holm over all differences of the metric with
            the same data and tower.
        users: number of users.
        seeds: number of seeds.
    """

    value: float
    low: float | None
    high: float | None
    adjusted_p_value: float
    users: int
    seeds: int


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """One metric of an arm; each user counts once.

    Attributes:
        mean: over users and seeds.
        sd: standard deviation of the means of the seeds; None for one seed.
        difference: to the reference arm; None for the reference, or where it is missing.
    """

    mean: float
    sd: float | None
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class ArmRow:
    """An arm at a grid point.

    Attributes:
        point: the grid point; an arm of the whole catalog has a row at each of its data and tower.
        arm: name of the arm.
        lr: learning rate; None without a record.
        seeds: number of finished seeds.
        planned: number of seeds that the arm shall have.
        errors: why cells failed, one sentence each.
        metrics: NDCG and NLL, where a seed is finished and defines them.
        cpu_seconds: of a training, mean over the seeds; None without one.
        chi2: Σ P²/Q - 1, median over the users, mean over the seeds; None where it is unknown.
        drift: predicted drift in nats, mean over the seeds; None where it is unknown.
        candidates_per_row: number of candidates that a row is compared with.
        num_items: items that both the softmax and the ranking have.
        rate_is_at_edge: whether ``lr`` is the smallest or the largest one that the pilot tried, so
            that a better one may lie beyond it; None where it is not known.
    """

    point: GridPoint
    arm: str
    lr: float | None
    seeds: int
    planned: int
    errors: tuple[str, ...]
    metrics: Mapping[Metric, MetricSummary]
    cpu_seconds: float | None
    chi2: float | None
    drift: float | None
    candidates_per_row: int
    num_items: int
    rate_is_at_edge: bool | None = None

    @property
    def rate(self) -> str:
        """The learning rate as text, with ``AT_EDGE`` where it is known to be at an edge."""
        if self.lr is None:
            return "–"
        return f"{self.lr:g}{AT_EDGE if self.rate_is_at_edge else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "errors": list(self.errors)}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> ArmRow:
        """Read the values of ``to_json``."""
        metrics = {
            name: MetricSummary(
                one["mean"],
                one["sd"],
                None if one["difference"] is None else Difference(**one["difference"]),
            )
            for name, one in table["metrics"].items()
        }
        point = GridPoint(**table["point"])
        return cls(
            **{**table, "point": point, "errors": tuple(table["errors"]), "metrics": metrics}
        )

    @property
    def cells(self) -> list[str]:
        """The values of ``COLUMNS`` as text."""
        shown = [self.arm, self.rate, self._seeds()]
        for metric in METRICS:
            shown += self._metric(metric)
        return [*shown, "–" if self.cpu_seconds is None else f"{self.cpu_seconds:,.0f}"]

    def _seeds(self) -> str:
        if not self.seeds and not self.errors:
            return "missing"
        shown = str(self.seeds) if self.seeds == self.planned else f"{self.seeds} of {self.planned}"
        return f"{shown}; {len(self.errors)} failed" if self.errors else shown

    def _metric(self, metric: Metric) -> list[str]:
        one, digits = self.metrics.get(metric), DIGITS[metric]
        if one is None:
            return ["–", "–"]
        mean = f"{one.mean:.{digits}f}"
        if one.sd is not None:
            mean += f" ± {one.sd:.{digits}f}"
        gap = one.difference
        if gap is None:
            return [mean, "reference" if self.arm == REFERENCE else "–"]
        return [mean, difference_text(gap, digits)]


def arm_rows(study: StudyCells, *, reference: str = REFERENCE) -> list[ArmRow]:
    """Return the rows of all grid points, block by block.

    Args:
        study: the study.
        reference: arm that the others are compared with.
    """
    rows: list[ArmRow] = []
    for block in study.blocks:
        of_block = list(_block_rows(study, block, reference))
        for metric in METRICS:
            of_block = _with_holm(of_block, metric)
        rows += of_block
    return rows


def difference_text(gap: Difference, digits: int) -> str:
    """Return a difference with its p-value and interval as text."""
    p = gap.adjusted_p_value
    shown = f"{gap.value:+.{digits}f}, p " + ("< .001" if p < 0.001 else f"{p:.3f}".lstrip("0"))
    if gap.low is None or gap.high is None:
        return shown
    return f"{shown} ({gap.low:+.{digits}f} to {gap.high:+.{digits}f})"


def _block_rows(study: StudyCells, block: GridPoint, reference: str) -> Iterator[ArmRow]:
    points = [point for point in study.points if point.whole_catalog == block]
    everywhere = study.arms(block)
    for point in points or [block]:
        arms = [*(study.arms(point) if points else []), *everywhere]
        for arm in arms:
            yield _row(study, point, arm, study.num_planned(point, arm), reference)


def _row(study: StudyCells, point: GridPoint, arm: str, planned: int, reference: str) -> ArmRow:
    cells = study.cells(point, arm)
    finished = list(study.finished(point, arm).values())
    metrics = {
        metric: summary
        for metric in METRICS
        if (summary := _metric(study, point, arm, metric, reference)) is not None
    }
    chi2 = [one.chi2.p50 for one in finished if one.chi2 is not None and one.chi2.p50 is not None]
    drift = [one.drift.value for one in finished if one.drift is not None]
    return ArmRow(
        point=point,
        arm=arm,
        lr=cells[-1].key.lr if cells else None,
        seeds=len(finished),
        planned=planned,
        errors=tuple(one.error for one in cells if not one.is_finished),
        metrics=metrics,
        cpu_seconds=fmean(one.cpu_seconds for one in finished) if finished else None,
        chi2=fmean(chi2) if chi2 else None,
        drift=fmean(drift) if drift else None,
        candidates_per_row=finished[0].candidates_per_row if finished else 0,
        num_items=finished[0].compared_items if finished else 0,
        rate_is_at_edge=study.rate_is_at_edge(point, arm),
    )


def _metric(
    study: StudyCells, point: GridPoint, arm: str, metric: Metric, reference: str
) -> MetricSummary | None:
    values, _ = study.values(point, (arm,), metric)
    if not values[arm].size:
        return None
    by_seed = values[arm].mean(axis=0).tolist()
    sd = stdev(by_seed) if len(by_seed) > 1 else None
    gap = None if arm == reference else study.difference(point, arm, reference, metric)
    if gap is None:
        return MetricSummary(fmean(by_seed), sd)
    ends = finite(gap.low), finite(gap.high)
    difference = Difference(gap.value, *ends, gap.p_value, gap.users, gap.seeds)
    return MetricSummary(fmean(by_seed), sd, difference)


def _with_holm(rows: Sequence[ArmRow], metric: Metric) -> list[ArmRow]:
    """Return the rows with the p-values of a metric adjusted over all of them."""
    gaps = [row.metrics[metric].difference if metric in row.metrics else None for row in rows]
    adjusted = iter(holm([gap.adjusted_p_value for gap in gaps if gap is not None]))
    result = []
    for row, gap in zip(rows, gaps, strict=True):
        if gap is not None:
            gap = replace(gap, adjusted_p_value=next(adjusted))
            summary = replace(row.metrics[metric], difference=gap)
            row = replace(row, metrics={**row.metrics, metric: summary})
        result.append(row)
    return result
