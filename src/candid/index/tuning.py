"""Tuning of a search by measurement: the fastest settings that reach a target recall."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from candid.index.measurement import GroundTruth, Measurement, measure_index
from candid.index.protocol import Index

Settings = dict[str, float]


@dataclass(frozen=True)
class TuningResult:
    """The result of tuning.

    Attributes:
        index: searches with the chosen settings.
        settings: of the search, by config key; empty if the index has none to choose.
        measurement: of these settings, on the queries of the tuning.
        trials: every setting that was measured.
        reaches_target: whether the chosen settings reach the target recall.
    """

    index: Index
    settings: Settings
    measurement: Measurement
    trials: Sequence[tuple[Settings, Measurement]]
    reaches_target: bool


def tune_index(
    index: Index,
    truth: GroundTruth,
    item_vectors: Tensor,
    *,
    target_recall: float,
    progress: Callable[[int], None] | None = None,
) -> TuningResult:
    """Choose the fastest settings that reach a target recall, or else those of highest recall.

    Recall is a mean over a sample of queries. Settings reach the target if their recall minus
    twice its standard error is at least the target. Recall grows along each axis, so the first
    axis is searched by bisection for each choice of the others.

    Args:
        index: without ``tuning_axes`` it is only measured.
        truth: its queries must not be used again to report the result.
        item_vectors: [V, D] float32.
        target_recall: 0..1.
        progress: called with the number of settings measured so far.
    """
    trials: list[tuple[Settings, Measurement]] = []

    def try_settings(settings: Settings) -> Measurement:
        candidate = index.with_settings(**settings)
        measurement = measure_index(candidate, truth, item_vectors, with_latency=False)
        trials.append((settings, measurement))
        if progress is not None:
            progress(len(trials))
        return measurement

    axes = index.tuning_axes(truth.k)
    if not axes:
        measurement = try_settings({})
        reaches = _reaches(measurement, target_recall)
        return TuningResult(index, {}, measurement, trials, reaches)
    _search_axes(axes, try_settings, target_recall)
    reaching = [trial for trial in trials if _reaches(trial[1], target_recall)]
    if reaching:
        settings, measurement = max(reaching, key=lambda trial: trial[1].queries_per_second)
    else:
        settings, measurement = max(trials, key=lambda trial: trial[1].recall)
    chosen = index.with_settings(**settings)
    return TuningResult(chosen, settings, measurement, trials, bool(reaching))


def _search_axes(
    axes: Mapping[str, Sequence[float]],
    try_settings: Callable[[Settings], Measurement],
    target_recall: float,
) -> None:
    """Bisect the first axis for each choice of the other axes."""
    (name, values), *others = axes.items()
    names = [other for other, _ in others]
    # From the most exact choice down: if it never reaches the target, no less exact one does.
    for choice in itertools.product(*(reversed(choices) for _, choices in others)):
        rest = dict(zip(names, choice, strict=True))
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2
            if _reaches(try_settings({name: values[middle], **rest}), target_recall):
                high = middle
            else:
                low = middle + 1
        if low == len(values) and len(others) == 1:
            return


def _reaches(measurement: Measurement, target_recall: float) -> bool:
    return measurement.recall - 2 * measurement.recall_error >= target_recall
