"""Settings of a search chosen by measuring: the least work that reaches a wanted recall."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from candid.index.approximate import TunableIndex
from candid.index.measurement import Measured, Truth, measure
from candid.index.protocol import Index

Settings = dict[str, float]


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        index: searches with the chosen settings.
        settings: of the search, by config key; empty where there is nothing to choose.
        tried: every setting that was measured, on the queries that decided.
        reaches: whether the choice reached the target on these queries.
    """

    index: Index
    settings: Settings
    tried: Sequence[tuple[Settings, Measured]]
    reaches: bool


def tune(
    index: Index,
    truth: Truth,
    item_vectors: Tensor,
    target_recall: float,
    progress: Callable[[int], None] | None = None,
) -> Tuned:
    """Choose the fastest settings whose recall reaches a target, or else those of most recall.

    A recall is a mean over some queries, and others will be asked: it reaches the target where
    it lies above by twice its standard error.
    Recall grows along each axis, so the first axis is halved for each choice of the others.

    Args:
        index: any; one that is not a ``TunableIndex`` is only measured.
        truth: of queries that are not those of the report.
        item_vectors: [V, D] float32.
        target_recall: 0..1.
        progress: told how many settings were measured.
    """
    tried: list[tuple[Settings, Measured]] = []

    def try_out(settings: Settings) -> Measured:
        asked = index.with_settings(**settings) if isinstance(index, TunableIndex) else index
        found = measure(asked, truth, item_vectors, alone=False)
        tried.append((settings, found))
        if progress is not None:
            progress(len(tried))
        return found

    axes = index.axes(truth.k) if isinstance(index, TunableIndex) else {}
    if not axes or not isinstance(index, TunableIndex):
        return Tuned(index, {}, tried, _reaches(try_out({}), target_recall))
    _walk(axes, try_out, target_recall)
    reaching = [entry for entry in tried if _reaches(entry[1], target_recall)]
    if reaching:
        chosen = max(reaching, key=lambda entry: entry[1].queries_per_second)
    else:
        chosen = max(tried, key=lambda entry: entry[1].recall)
    return Tuned(index.with_settings(**chosen[0]), chosen[0], tried, bool(reaching))


def _walk(
    axes: Mapping[str, Sequence[float]],
    try_out: Callable[[Settings], Measured],
    target_recall: float,
) -> None:
    """Measure, for each choice of the other axes, around the first value that reaches."""
    (name, values), *others = axes.items()
    names = [other for other, _ in others]
    # From the most exact down: where that misses the target at every value, less exact ones do.
    for chosen in itertools.product(*(reversed(choices) for _, choices in others)):
        rest = dict(zip(names, chosen, strict=True))
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2
            if _reaches(try_out({name: values[middle], **rest}), target_recall):
                high = middle
            else:
                low = middle + 1
        if low == len(values) and len(others) == 1:
            return


def _reaches(found: Measured, target_recall: float) -> bool:
    return found.recall - 2 * found.recall_error >= target_recall
