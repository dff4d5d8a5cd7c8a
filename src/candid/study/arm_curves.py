"""Curves of each arm at each grid point: training, popularity of the target, and calibration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from candid.study.records import CalibrationBin, CurvePoint, Measured, PopularityGroup, Record
from candid.study.study_cells import GridPoint, StudyCells

DIGITS: Final = 5
"""Significant digits of a value in JSON."""


@dataclass(frozen=True, slots=True)
class ArmCurves:
    """Curves of an arm at a grid point, means over its finished seeds.

    Attributes:
        point: the grid point; that of the whole catalog for an arm that reads it.
        arm: name of the arm.
        training: validations, up to the last one that all seeds have.
        popularity: test metrics by popularity of the target, without standard errors; a metric is
            None where a seed lacks it.
        calibration: bins of P(item | user), pooled over the seeds.
    """

    point: GridPoint
    arm: str
    training: tuple[CurvePoint, ...]
    popularity: tuple[PopularityGroup, ...]
    calibration: tuple[CalibrationBin, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, rounded."""
        table: dict[str, Any] = _rounded(asdict(self))
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> ArmCurves:
        """Read the values of ``to_json``."""
        return cls(
            GridPoint(**table["point"]),
            table["arm"],
            tuple(CurvePoint(**one) for one in table["training"]),
            tuple(PopularityGroup.from_json(one) for one in table["popularity"]),
            tuple(CalibrationBin(**one) for one in table["calibration"]),
        )


def arm_curves(study: StudyCells) -> list[ArmCurves]:
    """Return the curves of all arms with a finished seed."""
    return [
        ArmCurves(
            point, arm, tuple(_training(cells)), tuple(_popularity(cells)), tuple(_pooled(cells))
        )
        for point in [*study.points, *study.blocks]
        for arm in study.arms(point)
        if (cells := list(study.finished(point, arm).values()))
    ]


def _training(cells: Sequence[Record]) -> Iterator[CurvePoint]:
    for together in zip(*(one.curve for one in cells), strict=False):
        yield CurvePoint(
            step=round(fmean(one.step for one in together)),
            cpu_seconds=fmean(one.cpu_seconds for one in together),
            ndcg=fmean(one.ndcg for one in together),
            nll=_mean(one.nll for one in together),
            sample_weight=_mean(one.sample_weight for one in together),
        )


def _popularity(cells: Sequence[Record]) -> Iterator[PopularityGroup]:
    for groups in zip(*(one.popularity for one in cells), strict=False):
        metrics = [
            _mean(None if one is None else one.value for one in values)
            for values in ([one.ndcg for one in groups], [one.nll for one in groups])
        ]
        ndcg, nll = (None if value is None else Measured(value) for value in metrics)
        yield PopularityGroup(groups[0].label, groups[0].targets, ndcg, nll)


def _pooled(cells: Sequence[Record]) -> Iterator[CalibrationBin]:
    bins: dict[float, list[CalibrationBin]] = {}
    for cell in cells:
        for one in cell.calibration:
            bins.setdefault(one.low, []).append(one)
    for low, found in sorted(bins.items()):
        pairs = sum(one.pairs for one in found)
        yield CalibrationBin(
            low=low,
            high=found[0].high,
            pairs=pairs,
            stated=sum(one.pairs * one.stated for one in found) / pairs,
            observed=sum(one.pairs * one.observed for one in found) / pairs,
        )


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None where a value is None."""
    known = list(values)
    return None if None in known else fmean(one for one in known if one is not None)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value
